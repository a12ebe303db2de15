#!/usr/bin/env python
"""Level weights fitted to a run's labels, without a model: how much each noise level's errors should count.

a run that eliminated nobody (--to_keep 1 --n_samples N), or a DiT run with --save_errors, on other images than those of the test:
  python scripts/fit_weights.py RUN
for --level_weights of the commands that classify, of print_acc.py and of replay.py:
  python scripts/fit_weights.py RUN -o weights.json

The weight of level t is exp(a1 u + a2 u^2 + a3 u^3), u being t scaled to -1..1, divided by its mean over all levels. A class's
logit is minus the weighted mean error of its best candidate, over a temperature. The temperature and the three coefficients are
those with the lowest cross-entropy of the labels plus a ridge of (a1^2 + a2^2 + a3^2) / 2n for n images, a standard normal prior.
Printed is what they do to images that they were not fitted on: of two random halves, with the same share of every class, each is
judged by the fit on the other.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli
from diffusion.analysis import confidence, figures, level_fit, tables
from diffusion.analysis.level_fit import Comparison, Fitted, Labelled
from diffusion.analysis.pages import percent_and_interval
from diffusion.cli import parsing
from diffusion.runs import loop
from diffusion.strategy.level_weights import LevelWeights, curve
from diffusion.utils import outputs


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    figures.add_run_argument(parser)
    parser.add_argument("-o", "--out", type=outputs.Output(), metavar="FILE",
                        help="write the weights as JSON, fitted on ALL images of the "
                        "run: for other images of the same model, loss and levels, not for these")  # fmt: skip
    return parser.parse_args(argv)


def read(args) -> tuple[tables.Run, tables.Grid]:
    """The run with errors as recorded. Raises ValueError for one on which nothing can be fitted, or whose model is not known."""
    run = tables.read_unweighted(args.folder, args.loss, prompt_path=args.prompt_path)
    figures.tell_unreadable(run)
    grid = tables.grid_of(run)
    figures.check_several(grid, run.folder)
    confidence.check_classes(run)
    if args.out and run.belonging["weights"] is None:
        raise ValueError(f"-o {args.out}: {run.folder} has no config.json that says of which model its errors are")
    return run, grid


def halves(run: tables.Run, data: Labelled):
    """Which images are in the second half. Raises ValueError where a half has nothing to fit."""
    right = level_fit.log_posterior(data, Fitted(1.0)).argmax(1) == data.columns
    second = confidence.halves(data.columns, right)
    confidence.check_enough(right, second, run.folder)
    return second


# ---------------------------------------------------------------- what comes out


def print_comparison(comparison: Comparison) -> None:
    print(f"{'':11}{'accuracy (95 %)':28}NLL")
    for name, scores in (("unweighted", comparison.plain), ("weighted", comparison.weighted)):
        print(f"{name:11}{percent_and_interval(scores.accuracy):28}{scores.nll:.4f}")
    points, nll = comparison.difference, comparison.nll_difference
    print(f"Weighted less unweighted: {100 * points.value:+.2f} points (95% interval {100 * points.low:+.1f} to "
          f"{100 * points.high:+.1f}), McNemar p = {comparison.mcnemar.p_value:.2g}")  # fmt: skip
    print(f"  NLL {nll.value:+.4f} (95% interval {nll.low:+.4f} to {nll.high:+.4f})")


def print_weights(fits: dict[str, Fitted], n_levels: int) -> None:
    """Each fit's weights at five levels."""
    shown = [round(part * (n_levels - 1) / 4) for part in range(5)]
    print(f"{'weight at t =':16}" + "".join(f"{t:8}" for t in shown))
    for name, fit in fits.items():
        print(f"  {name:14}" + "".join(f"{w:8.3f}" for w in curve(fit.coefficients, n_levels)[shown]))


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        run, grid = read(args)
        data = Labelled.of(grid)
        comparison = level_fit.compare(data, halves(run, data))
        whole = level_fit.fit_weights(data)
        if args.out:
            LevelWeights(whole.coefficients, len(grid.labels), run.belonging).write(args.out)
    sizes = (
        f"{len(grid.labels)} images, {len(grid.class_of)} candidates of {len(set(grid.class_of))} classes, {len(grid.t)} pairs"
    )
    print(f"{sizes}, loss {run.loss}; fitted on halves, each for the other")
    print_comparison(comparison)
    print_weights({"first half": comparison.halves[1], "second half": comparison.halves[0], "all images": whole}, grid.n_levels)
    if args.out:
        print(f"Written, fitted on all {len(grid.labels)} images: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
