#!/usr/bin/env python
"""What does a prediction cost as candidates become more? Runs of several strategies with few and many of them, side by side.

runs on tiny_scenes with 60 and 1,000 captions each, and a picture:
  python scripts/plot_candidates.py RUN_60_RACE RUN_60_SURROGATE RUN_1000_RACE RUN_1000_SURROGATE -o candidates.png

Of every run evaluations per image and accuracy; where there is a race on the same images with as many candidates, also its share
of the race's evaluations and how often both predict the same. Of every strategy the exponent: evaluations grow as candidates
to its power. Intervals of evaluations, shares and exponents are of a bootstrap over images.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from diffusion.utils import startup

    startup.be_quiet()

from diffusion import cli, metrics
from diffusion.analysis import figures, pages, reload, tables
from diffusion.cli import parsing
from diffusion.runs import loop
from diffusion.strategy import STRATEGIES, Race
from diffusion.utils import drawing, outputs

DRAWS = 2000  # of the bootstrap


def parse_args(argv=None):
    parser = parsing.Parser(__doc__)
    one = "run folders, one of each strategy and number of candidates"
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help=one)
    parser.add_argument("--csv", type=outputs.Output(), metavar="FILE", help="also write the table")
    parser.add_argument("-o", "--out", type=figures.picture_file, metavar="FILE", help="also draw the table's numbers")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Point:
    """A run: its strategy's name, how many candidates an image had, and its images by index."""

    run: Any
    n_candidates: int

    @property
    def strategy(self) -> str:
        return self.run.strategy.NAME

    @cached_property
    def images(self) -> dict:
        return {image.index: image for image in self.run.images}

    @property
    def accuracy(self):
        return metrics.top1([image.pred for image in self.run.images], [image.label for image in self.run.images])

    def evaluations(self, indices):
        """float64 [n] of these images."""
        import numpy as np

        return np.array([self.images[index].evaluations for index in indices], dtype=float)

    def is_paired_with(self, other: "Point") -> bool:
        """Whether an index is the same image in both, among as many candidates."""
        mine, others = (point.run.config["identity"].get("images") for point in (self, other))
        return mine == others and self.n_candidates == other.n_candidates and bool(self.images.keys() & other.images.keys())


def read_point(folder: Path) -> Point:
    """Raises ValueError for a folder without records or config.json, and as `rerun.open_images`."""
    run = tables.read_run(folder)
    figures.tell_unreadable(run)
    if "candidates" not in run.config:
        raise ValueError(f"{folder} has no config.json that names its candidates, so it is not known how many there were")
    if run.strategy.TRIES_ALL:
        return Point(run, max(int((image.counts > 0).sum()) for image in run.images))
    return Point(run, reload.n_candidates(reload.Past(folder, run.config)))


def read_points(folders: list[Path]) -> list[Point]:
    """In the order of the strategies' table, then of candidates. Raises ValueError for two runs that would be one point."""
    points, order = [read_point(folder) for folder in folders], list(STRATEGIES)
    places = {}
    for point in points:
        other = places.setdefault((point.strategy, point.n_candidates), point)
        if other is not point:
            raise ValueError(f"{other.run.folder} and {point.run.folder} are both {point.strategy} with {point.n_candidates:,} "
                             "candidates: give one of them")  # fmt: skip
    return sorted(points, key=lambda point: (order.index(point.strategy) if point.strategy in order else len(order),
                                             point.n_candidates))  # fmt: skip


# ---------------------------------------------------------------- numbers


def draws(n: int):
    """How often each of n images is in each draw of a bootstrap: int64 [DRAWS,n]."""
    import numpy as np

    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)


def interval(value: float, drawn) -> metrics.Interval:
    """Percentiles of the draws that had what they need."""
    import numpy as np

    return metrics.Interval(value, *(float(end) for end in np.nanpercentile(drawn, (2.5, 97.5))))


def mean_cost(point: Point) -> metrics.Interval:
    """Evaluations per image."""
    spent = point.evaluations(point.images)
    return interval(spent.mean(), draws(len(spent)) @ spent / len(spent))


def against(point: Point, race: Point) -> dict:
    """Share of the race's evaluations, and how often both predict the same, on the images of both."""
    common = sorted(point.images.keys() & race.images.keys())
    mine, others, drawn = point.evaluations(common), race.evaluations(common), draws(len(common))
    same = metrics.top1(*([side.images[index].pred for index in common] for side in (point, race)))
    return {"share": interval(mine.sum() / others.sum(), (drawn @ mine) / (drawn @ others)), "agreement": same}


def exponent(points: list[Point]) -> metrics.Interval:
    """The exponent of a strategy's cost: the slope of a line through log evaluations per image against log candidates, by
    least squares. An image that is in several runs is drawn for all of them."""
    import numpy as np

    x = np.log([point.n_candidates for point in points])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    every = sorted({index for point in points for index in point.images})
    place, drawn = {index: i for i, index in enumerate(every)}, draws(len(every))
    slope, slopes = 0.0, np.zeros(DRAWS)
    for weight, point in zip(weights, points, strict=True):
        spent, times = point.evaluations(point.images), drawn[:, [place[index] for index in point.images]]
        slope += weight * np.log(spent.mean())
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw may have none of a run's images
            slopes += weight * np.log(times @ spent / times.sum(1))
    return interval(slope, slopes)


def exponents(points: list[Point]) -> dict[str, metrics.Interval]:
    """Strategy -> exponent, of those with two numbers of candidates or more."""
    names = dict.fromkeys(point.strategy for point in points)
    of_each = {name: [point for point in points if point.strategy == name] for name in names}
    return {name: exponent(rows) for name, rows in of_each.items() if len(rows) > 1}


def rows_of(points: list[Point]) -> list[dict]:
    races = [point for point in points if point.strategy == Race.NAME]
    rows = []
    for point in points:
        row = {"candidates": point.n_candidates, "strategy": point.strategy, "run": str(point.run.folder)}
        row |= {"evaluations": mean_cost(point), "accuracy": point.accuracy}
        race = next((race for race in races if point is not race and point.is_paired_with(race)), None)
        rows.append(row | (against(point, race) if race else {}))
    return rows


# ---------------------------------------------------------------- what comes out


def table(rows: list[dict]) -> pages.Table:
    """Without the runs' names."""
    columns = ["strategy", "candidates", "images", "evaluations (95 %)", "top-1 (95 %)", "of the race's", "as the race (95 %, n)"]
    return pages.Table("", columns, [cells(row) for row in rows])


def cells(row: dict) -> list:
    spent, same = row["evaluations"], row.get("agreement")
    cost = f"{spent.value:,.0f} ({spent.low:,.0f} to {spent.high:,.0f})"
    compared = ["", ""] if same is None else [row["share"], f"{pages.percent_and_interval(same)}, n = {same.n}"]
    return [row["strategy"], row["candidates"], row["accuracy"].n, cost, row["accuracy"], *compared]


def draw(path: Path, rows: list[dict], powers: dict[str, metrics.Interval]):
    """Evaluations (log) and accuracy against candidates (log), a line a strategy."""
    import numpy as np

    figure, axes = drawing.pyplot().subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for number, name in enumerate(dict.fromkeys(row["strategy"] for row in rows)):
        points = [row for row in rows if row["strategy"] == name]
        label = f"{name}, exponent {powers[name].value:.2f}" if name in powers else name
        for axis, key, scale in ((axes[0], "evaluations", 1), (axes[1], "accuracy", 100)):
            y, low, high = (scale * np.array([getattr(row[key], end) for row in points]) for end in ("value", "low", "high"))
            beside = 1 if axis is axes[0] else 1.06**number  # intervals side by side
            x = np.array([row["candidates"] for row in points]) * beside
            errors = np.maximum(0, (y - low, high - y))  # rounding can leave -1e-16
            axis.errorbar(x, y, yerr=errors, marker="so^vDX"[number % 6], capsize=2, alpha=0.8, label=label)
    for axis, about in zip(axes, ("network evaluations per image", "accuracy, %"), strict=True):
        counts = sorted({row["candidates"] for row in rows})
        axis.set(xscale="log", xlabel="candidates", ylabel=about)
        axis.set_xticks(counts, [f"{n:,}" for n in counts])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].set(yscale="log", title="what it costs")
    axes[1].set(ylim=(0, 100), title="how often it is right, 95 % intervals")
    axes[0].yaxis.set_major_formatter("{x:,.0f}")
    axes[0].legend()
    figures.save(figure, path)


def main(argv=None) -> int:
    args = parse_args(argv)
    with cli.bad_input():
        points = read_points(args.folders)
        rows, powers = rows_of(points), exponents(points)
        if args.csv:
            figures.write_csv(args.csv, rows)
        if args.out:
            draw(args.out, rows, powers)
    print(pages.plain(table(rows)))
    for name, power in powers.items():
        print(f"{name}: evaluations grow as candidates to the power of {power.value:.2f} ({power.low:.2f} to {power.high:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(loop.run(main))
