#!/usr/bin/env python
"""Fit a race to a model: how far above the best a candidate is dropped, by a run that kept all errors. Labels play no part.

a run of images that the test set does not hold, its fit, and a run with it:
  python eval_prob_adaptive.py --version tiny --dataset fashion_mnist --split validation --imgs_to_eval 350 --to_keep 1 \\
      --n_samples 250 --loss l1 --extra validation
  python scripts/fit_race.py data/fashion_mnist_validation/vtiny_1trials_1keep_250samples_l1_64 -o race.json
  python eval_prob_adaptive.py --version tiny --dataset fashion_mnist --strategy race_calibrated --race_fit race.json

The table is cross-fitted: each image's race has the limits of the other half of the images (by index). Agreement is with the
prediction of the whole grid.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, race_fit, replay, tables
from diffusion.analysis.pages import percent_and_interval
from diffusion.cli import parsing
from diffusion.runs import loop
from diffusion.strategy import CalibratedRace, Race, Stages
from diffusion.strategy.race import GapFit
from diffusion.utils import files, outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    figures.add_run_argument(parser)
    parser.add_argument("--target", type=float, default=0.997, metavar="SHARE", help="of races that the winner of the whole grid "
                        "is to survive, 0.5 to below 1 (default: 0.997)")  # fmt: skip
    parser.add_argument("-o", "--out", type=outputs.Output(), metavar="FILE", help="write the fit on all images, for --race_fit")
    return parser.parse_args(argv)


def part_of(grid: tables.Grid, chosen) -> tables.Grid:
    """The grid of some images, by an index of numpy's."""
    return replace(grid, errors=grid.errors[chosen], labels=grid.labels[chosen])


def cross_fitted(grid: tables.Grid, target: float, about: dict) -> replay.Played:
    """Every second image's race with the limits of the others, and the other way round."""
    import numpy as np

    preds, spent = np.empty(len(grid.labels), int), np.empty(len(grid.labels), int)
    for half, other in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
        fit = race_fit.fit_limits(part_of(grid, other), target, about)
        preds[half], spent[half] = replay.play(part_of(grid, half), CalibratedRace(fit=fit))
    return replay.Played(preds, spent)


def print_table(played: dict[str, replay.Played], labels) -> None:
    """played: the whole grid first."""
    full, *_ = played.values()
    print(f"{'':26}{'evaluations':>12}{'of full':>9}  {'accuracy (95 %)':26}as the full grid (95 %)")
    for name, (preds, spent) in played.items():
        accuracy, agreement = (percent_and_interval(metrics.top1(preds, truth)) for truth in (labels, full.preds))
        share = 100 * spent.mean() / full.evaluations.mean()
        print(f"{name:26}{spent.mean():12,.1f}{share:8.1f}%  {accuracy:26}{agreement}")


def read_grid(args) -> tuple[tables.Grid, dict]:
    """The run's errors, and what of its identity a fit depends on. Raises ValueError or OSError for what cannot be fitted."""
    if not 0.5 <= args.target < 1:
        raise ValueError(f"--target {args.target} must lie in 0.5 to below 1, as 0.997")
    run, grid = figures.read_grid(args.folder, args.loss, args.prompt_path)
    if len(grid.labels) < 2:
        raise ValueError(f"{args.folder} has one image, and a fit is tried on others than its own: evaluate more of them")
    if args.out:
        files.try_file(args.out)
    return grid, GapFit.belonging(run.config["identity"] | {"loss": run.loss})


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        grid, about = read_grid(args)
        fit = race_fit.fit_limits(grid, args.target, about)
        n, n_races = len(set(grid.t.tolist())), len(grid.labels) * len(race_fit.SHIFTS)
        played = {
            "full grid": replay.play(grid, Stages((1,), (n,), grid.plan.n_trials)),
            "race": replay.play(grid, Race(max_samples=n, n_trials=grid.plan.n_trials)),
            "race_calibrated, held out": cross_fitted(grid, args.target, about),
        }
    print(f"{len(grid.labels)} images, {len(grid.class_of)} candidates, {len(grid.t)} pairs each")
    if (1 - args.target) * n_races < 2:
        print(f"Note: a share of {1 - args.target:.3g} of {n_races} races is one or none: give more images, or a lower --target")
    print_table(played, grid.labels)
    if args.out:
        fit.write(args.out)
        print(f"Fit: {args.out}, for --strategy race_calibrated --race_fit {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
