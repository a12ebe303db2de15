#!/usr/bin/env python
"""Effective robustness: is a model better on shifted images than its accuracy on ordinary ones suggests?

the paper's figure 6, a run on each set (or a known accuracy: percent/number of images) beside the published points:
  python scripts/plot_robustness.py --benchmark imagenetA --in_dist data/imagenet/RUN --out_dist data/imagenetA/RUN -o robust.png
as the paper draws it, a line with a knee at ResNet-50 and exact 99.5 % intervals beside ours:
  python scripts/plot_robustness.py --benchmark imagenetA --in_dist 77.5/50000 --out_dist 20/7500 --curve knee \
      --clopper_pearson -o robust.png
several models, in the same order on both sides:
  python scripts/plot_robustness.py --benchmark objectnet --in_dist 77.5/50000 RUN --out_dist 32.1/18574 RUN -o robust.svg

The line is fitted on logit axes to the published discriminative models. Writes the picture and a CSV of its points beside it.
"""

import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, tables
from diffusion.analysis.pages import percent_and_interval
from diffusion.cli import parsing
from diffusion.datasets import DATASETS
from diffusion.metrics import robustness
from diffusion.runs import loop
from diffusion.utils import drawing

SIDES = ("in_dist", "out_dist")
TICKS = (0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)  # percent, of both axes


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    parser.add_argument(
        "--benchmark", choices=robustness.BENCHMARKS, required=True, help="which published out-of-distribution set"
    )
    for flag, what in (("--in_dist", "ImageNet"), ("--out_dist", "the benchmark")):
        parser.add_argument(flag, nargs="+", required=True, metavar="RUN", help=f"a model's run on {what}, or PERCENT/N")
    renamed = parser.add_argument("--curve", choices=["line", "knee"], default="line",
                        help="what is fitted to the published models: a line, "
                        "or two that meet at ResNet-50's accuracy, as the paper has it (default: line)")  # fmt: skip
    parser.rename("--fit", renamed)
    parser.add_argument("--clopper_pearson", action="store_true", help="also the paper's intervals, exact ones of 99.5 %%, "
                        "beside Wilson's of 95 %%")  # fmt: skip
    parser.add_argument("-o", "--out", type=figures.picture_and_table, required=True, metavar="FILE", help=".png or .svg")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- points


def estimate_of(flag: str, text: str, benchmark: str):
    """The Estimate of a run folder, or of `77.5/50000`. Raises ValueError for neither."""
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/([1-9]\d*))?", text)
    if number and not Path(text).exists():
        return known_accuracy(f"{flag} {text}", number)
    if not Path(text).is_dir():
        raise ValueError(f"{flag} {text} is neither a run folder nor an accuracy such as 77.5/50000")
    run = tables.read_run(text)
    figures.tell_unreadable(run)
    dataset = run.config["identity"].get("dataset", benchmark)
    if dataset not in (benchmark, *(name for name, spec in DATASETS.items() if spec.custom)):
        print(f"Note: {text} is a run on {dataset}, and is drawn as one on {benchmark}", file=sys.stderr)
    return metrics.top1([image.pred for image in run.images], [image.label for image in run.images])


def known_accuracy(text: str, number):
    """number: what matched, percent and number of images."""
    p = float(number[1]) / 100
    if number[2] is None:
        raise ValueError(f"{text} lacks the number of images, which its interval needs: write {number[1]}/50000 for 50,000")
    if p > 1:
        raise ValueError(f"{text}: an accuracy of more than 100 percent")
    return metrics.Estimate(p, *metrics.wilson(p, int(number[2])), int(number[2]))


def user_rows(args, line) -> list[dict]:
    """One row a model of the user's, accuracies with intervals. Raises ValueError for sides of different length."""
    if len(args.in_dist) != len(args.out_dist):
        raise ValueError(f"--in_dist names {len(args.in_dist)} and --out_dist {len(args.out_dist)}: give one of each per model")
    rows = []
    for ordinary, shifted in zip(args.in_dist, args.out_dist, strict=True):
        x, y = estimate_of("--in_dist", ordinary, "imagenet"), estimate_of("--out_dist", shifted, args.benchmark)
        above = robustness.effective_robustness(line, x, y)
        name = "/".join(Path(shifted).parts[-2:])
        row = {"kind": "yours", "name": name, "in_dist": x, "out_dist": y, "expected": y.value - above.value, "above": above}
        rows.append(row | (exact_intervals(row) if args.clopper_pearson else {}))
    return rows


def exact_intervals(row: dict) -> dict:
    """The paper's intervals of both accuracies."""
    sides = {side: row[side] for side in SIDES}
    intervals = {side: metrics.clopper_pearson(x.value, x.n) for side, x in sides.items()}
    return {
        f"{side}_exact_{end}": value for side, ends in intervals.items() for end, value in zip(("low", "high"), ends, strict=True)
    }


def published_rows(kind: str, points: dict, line) -> list[dict]:
    """The same of published models, whose numbers of images are not in the table: accuracies alone."""
    from scipy.special import expit

    expected = {name: float(expit(line.at(x)[0])) for name, (x, _) in points.items()}
    return [
        {"kind": kind, "name": name, "in_dist": x, "out_dist": y, "expected": expected[name], "above": y - expected[name]}
        for name, (x, y) in points.items()
    ]


# ---------------------------------------------------------------- what comes out


def value(cell) -> float:
    """The number in an Estimate or Interval, or the number itself."""
    return getattr(cell, "value", cell)


def limits(rows: list[dict], side: str) -> tuple[float, float]:
    """Ends of an axis: all points and intervals, but for what is too near to 0 and 1, and a little more."""
    from scipy.special import expit, logit

    cells = [row[side] for row in rows]
    ends = [p for c in cells for p in (value(c), getattr(c, "low", value(c)), getattr(c, "high", value(c)))]
    ends += [row[f"{side}_exact_{end}"] for row in rows for end in ("low", "high") if f"{side}_exact_{end}" in row]
    ends = [p for p in ends if 0.002 < p < 0.998]
    return float(expit(logit(min(ends)) - 0.25)), float(expit(logit(max(ends)) + 0.25))


MARKERS = "osDPX^v"
COLOURS = {"discriminative": ("grey",), "dit": ("tab:blue",), "yours": ("tab:red", "tab:orange", "tab:purple", "tab:green")}


def looks(rows: list[dict]):
    """A row with its marker and colour, each kind from the first on."""
    for kind, colours in COLOURS.items():
        for i, row in enumerate(row for row in rows if row["kind"] == kind):
            yield row, {"marker": MARKERS[i % len(MARKERS)], "color": colours[i % len(colours)]}


def draw_point(axis, row: dict, look: dict):
    """One model; what has no place on the axis sits at its end, with its value."""
    low, high = axis.get_ylim()
    x, y = value(row["in_dist"]), value(row["out_dist"])
    shown = min(max(y, low), high)
    axis.plot(x, shown, linestyle="none", markersize=7, clip_on=False, label=textwrap.fill(row["name"], 26), **look)
    if row["kind"] == "yours":
        axis.hlines(shown, row["in_dist"].low, row["in_dist"].high, look["color"])
        axis.vlines(x, max(low, row["out_dist"].low), min(high, row["out_dist"].high), look["color"])
    if "out_dist_exact_low" in row:  # thinner, beyond ours
        axis.hlines(shown, row["in_dist_exact_low"], row["in_dist_exact_high"], look["color"], linewidth=0.7)
        ends = max(low, row["out_dist_exact_low"]), min(high, row["out_dist_exact_high"])
        axis.vlines(x, *ends, look["color"], linewidth=0.7)
    if shown != y:
        place = (0, 8 if y < low else -14)
        axis.annotate(f"{100 * y:.1f} %", (x, shown), place, textcoords="offset points", ha="center", fontsize=8)


def draw(path: Path, rows: list[dict], line, benchmark: str):
    import numpy as np
    from matplotlib.ticker import FixedLocator, NullLocator
    from scipy.special import expit

    figure, axis = drawing.pyplot().subplots(figsize=(9, 6), layout="constrained")
    axis.set(xscale="logit", yscale="logit", xlim=limits(rows, "in_dist"), ylim=limits(rows, "out_dist"))
    x = np.linspace(*axis.get_xlim(), 200)
    z, half = line.at(x)
    axis.plot(x, expit(z), color="grey", linewidth=1, label=f"fit to {line.n} discriminative,\n95 % band")
    axis.fill_between(x, expit(z - half), expit(z + half), color="grey", alpha=0.15, linewidth=0)
    for row, look in looks(rows):
        draw_point(axis, row, look)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(FixedLocator([tick / 100 for tick in TICKS]))
        side.set_minor_locator(NullLocator())
        side.set_major_formatter(lambda p, _: f"{100 * p:g}")
    axis.set(xlabel="accuracy on ImageNet, %", ylabel=f"accuracy on {benchmark}, %", title="effective robustness, logit axes")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9)
    figures.save(figure, path)


def formula(line) -> str:
    if not line.bends:
        return f"logit(y) = {line.intercept:.3f} + {line.slope:.3f} logit(x)"
    a, b, c = line.coefficients
    return f"logit(y) = {a:.3f} + {b:.3f} logit(x) {c:+.3f} max(0, logit(x) - logit({line.knee:g}))"


def print_rows(rows: list[dict]):
    name_width = max(len(row["name"]) for row in rows)
    print(f"{'':{name_width}}  {'ImageNet':24}{'out of distribution':24}{'expected':>9}  above the line, points")
    for row in rows:
        cells = [percent_and_interval(c) if hasattr(c, "low") else f"{100 * c:.1f} %" for c in (row["in_dist"], row["out_dist"])]
        above = f"{100 * value(row['above']):+.1f}"
        if row["kind"] == "yours":
            above += f" ({100 * row['above'].low:+.1f} to {100 * row['above'].high:+.1f}, "
            above += f"n = {row['in_dist'].n} and {row['out_dist'].n})"
        print(f"{row['name']:{name_width}}  {cells[0]:24}{cells[1]:24}{100 * row['expected']:7.1f} %  {above}")
        if "out_dist_exact_low" in row:
            ends = [f"{100 * row[f'{side}_exact_low']:.1f} to {100 * row[f'{side}_exact_high']:.1f}" for side in SIDES]
            print(f"{'':{name_width}}  {ends[0]:24}{ends[1]:24}exact, 99.5 %")


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        models = robustness.published(robustness.DISCRIMINATIVE, args.benchmark)
        line, left_out = robustness.fit_published(models, args.curve == "knee")
        rows = user_rows(args, line) + published_rows("dit", robustness.published(robustness.DIT, args.benchmark), line)
        rows += published_rows("discriminative", models, line)
        draw(args.out, rows, line, args.benchmark)
        figures.write_csv(args.out.with_suffix(".csv"), rows)
    print(f"{args.benchmark}: {formula(line)}, {line.n} discriminative models")
    for name in left_out:
        there = f"{100 * models[name][1]:.1f} %"
        print(f"{name} has {there} there, which a logit axis cannot show: left out of the fit, drawn at the edge")
    print_rows(rows)
    print(f"Drawn: {args.out}, its points: {args.out.with_suffix('.csv')}")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
