#!/usr/bin/env python
"""Accuracy of full grids in each error space, and on fewer of their levels: nothing is evaluated again.

An error in another space is this one times a factor of its level (docs/models.md): a run that dropped nobody holds them all.

python scripts/print_spaces.py data/fashion_mnist/vtiny-sd3_1trials_1keep_50samples_l1_64 --n_samples 10 50
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics, settings
from diffusion.analysis import figures, reload, tables
from diffusion.cli import parsing
from diffusion.runs import loop
from diffusion.strategy import schedule
from diffusion.utils import outputs

POWER = {"l1": 1, "l2": 2}  # of the factor, in errors that are homogeneous


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="run folder that kept all errors, l1 or l2")
    parser.add_argument("--n_samples", type=parsing.at_least(1), nargs="+", metavar="N", help="levels, thinned as the published "
                        "grids are (default: all of the run)")  # fmt: skip
    parser.add_argument("--csv", type=outputs.Output(), metavar="FILE", help="also write the table")
    return parser.parse_args(argv)


def thinned(grid, n: int):
    """Every pair of n levels of the grid. Raises ValueError for more levels than it has."""
    import numpy as np

    n_all = grid.plan.n_timesteps
    if n > n_all:
        raise ValueError(f"--n_samples {n}: the run has {n_all} levels")
    kept = np.isin(grid.t, schedule.stage_timesteps([n, n_all], grid.n_levels)[0])
    return replace(grid, errors=grid.errors[:, :, kept], t=grid.t[kept])


def factors(past, power: int) -> dict:
    """space -> float64 [T], what the run's errors are multiplied with at each level. Raises ValueError or OSError for a model
    that is not here any more, or tells its levels only when it is loaded."""
    source = reload.open_source(past)
    if (levels := source.levels()) is None:
        raise ValueError(f"{past.folder}: the levels of {source.describe()} are not known without its weights")
    recorded = past.config["error_space"]
    return {space: (levels.error_factor(recorded, space) ** power).numpy() for space in settings.SPACES}


def accuracy(grid, factor) -> metrics.Estimate:
    """Top-1 of the lowest mean error, each error times its level's factor. Raises ValueError where one has none."""
    import numpy as np

    if not np.isfinite(factor[grid.t]).all():
        raise ValueError("at one of the run's levels, which is all noise or none, the errors of another space do not follow")
    winners = (grid.errors * factor[grid.t]).mean(2).argmin(1)
    return metrics.top1(np.array(grid.class_of)[winners], grid.labels)


def rows_of(folder: Path, n_samples) -> list[dict]:
    """One row per number of levels and space. Raises ValueError for a run that dropped candidates, or of another loss."""
    run = tables.read_run(folder)
    past, loss = reload.Past(folder, run.config), run.config["identity"].get("loss", "l2")
    if loss not in POWER:
        raise ValueError(f"{folder}: its errors are {loss}, and those of another space follow only for {' and '.join(POWER)}")
    if run.config.get("level_weights"):
        raise ValueError(f"{folder} was made with --level_weights, which belong to one space")
    if past.is_dit:
        raise ValueError(f"{folder}: the errors of a DiT are of epsilon only")
    grid, by_space = tables.grid_of(run), factors(past, POWER[loss])
    levels = past.options.get("levels", "own")
    about = {"run": folder.name, "levels": levels, "loss": loss}
    thin = [thinned(grid, n) for n in n_samples or [grid.plan.n_timesteps]]
    return [about | {"n_samples": part.plan.n_timesteps, "space": space, "top1": accuracy(part, factor)}
            for part in thin for space, factor in by_space.items()]  # fmt: skip


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        rows = [row for folder in args.folders for row in rows_of(folder, args.n_samples)]
        if args.csv:
            figures.write_csv(args.csv, [row | row["top1"].as_dict() | {"top1": row["top1"].value} for row in rows])
    print(f"{'levels':>13}{'number':>8}  {'errors':12}top-1")
    for row in rows:
        print(f"{row['levels']:>13}{row['n_samples']:8}  {row['space'] + ' ' + row['loss']:12}{row['top1']}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
