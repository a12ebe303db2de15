"""Runs as the plain numbers of a report: accuracy, cost, confusions, mistakes, and how several runs compare."""

from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from diffusion import metrics
from diffusion.analysis import tables
from diffusion.metrics import Estimate, curves
from diffusion.strategy import round_numbers, schedule

MISTAKES = 12
GROUPS = 5  # of images, by their evaluations
ACCURACIES = ("top1", "top5", "mean_per_class")


# ---------------------------------------------------------------- what a report holds


@dataclass(frozen=True)
class Cost:
    """What images cost: evaluations, or seconds."""

    median: float
    mean: float
    p95: float
    total: float


@dataclass(frozen=True)
class Seconds(Cost):
    """n: images whose record says how long it took."""

    n: int


class Confused(NamedTuple):
    """How many images of a label have a prediction, which may be the label itself."""

    label: int
    pred: int
    n: int


@dataclass(frozen=True)
class Point:
    """A point of the curve: what images would have cost (the mean) and how many would be right after so many pairs."""

    pairs: int
    evaluations: float
    accuracy: Estimate


@dataclass(frozen=True)
class Group:
    """Images that cost from `fewest` to `most` evaluations."""

    fewest: int
    most: int
    accuracy: Estimate

    def as_dict(self) -> dict:
        return {"from": self.fewest, "to": self.most, "accuracy": self.accuracy}


@dataclass(frozen=True)
class Mistake:
    """A wrong prediction. margin: error of the true class less that of the predicted one, in `unit`, on so many pairs.

    unit: SE, standard errors of the paired difference; or %, of the lower error, where only sums were kept.
    """

    index: int
    label: int
    pred: int
    margin: float
    unit: str
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """Two runs, by their numbers in the report, on the images of both. difference: top-1 of the first less the second's."""

    first: int
    second: int
    difference: Estimate
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class RunSummary:
    """One run.

    number: from 1; kept: see `tables.Run`; top5: None where classes are not ranked; seconds: None where no record says; names:
    label -> class name; classes: label -> accuracy among its images; curve, groups, mistakes: empty where nothing is known.
    """

    number: int
    name: str
    folder: str
    config: dict
    unreadable: list[str]
    n: int
    n_expected: int | None
    kept: str
    top1: Estimate
    top5: Estimate | None
    mean_per_class: Estimate
    evaluations: Cost
    seconds: Seconds | None
    names: dict[int, str]
    classes: dict[int, Estimate]
    confusion: list[Confused]
    curve: list[Point]
    groups: list[Group]
    mistakes: list[Mistake]


@dataclass(frozen=True)
class Report:
    """All that the formats hold."""

    runs: list[RunSummary]
    comparisons: list[Comparison]


# ---------------------------------------------------------------- from runs


def check_alike(runs) -> None:
    """Raises ValueError when runs cannot be compared image by image."""
    for other in runs[1:]:
        check_pair(runs[0], other)


def check_pair(first, other) -> None:
    """Raises ValueError when two runs cannot be compared image by image."""
    either = f"{first.folder} and {other.folder}"
    for name, what in (("dataset", "--dataset"), ("split", "--split"), ("images", "the images under --data_dir")):
        a, b = first.config["identity"].get(name), other.config["identity"].get(name)
        if None not in (a, b) and a != b:
            raise ValueError(f"{either} differ in {what} ({a}, {b}): report them one by one")
    if set(first.class_of) != set(other.class_of):
        sizes = f"{len(set(first.class_of))}, {len(set(other.class_of))}"
        raise ValueError(f"{either} differ in the classes to choose from ({sizes} of them): report them one by one")
    labels = {image.index: image.label for image in first.images}
    if any(labels.get(image.index, image.label) != image.label for image in other.images):
        raise ValueError(f"{either} give one image two labels, so they are of different datasets: report them one by one")


def make_report(runs) -> Report:
    """runs: of `tables.read_run`, which `check_alike` lets pass."""
    return Report([summarise(number, run) for number, run in enumerate(runs, 1)], compare(runs))


def summarise(number: int, run) -> RunSummary:
    preds, labels = [image.pred for image in run.images], [image.label for image in run.images]
    seconds = [image.seconds for image in run.images if image.seconds is not None]
    names = {label: run.names.get(label, str(label)) for label in {*run.names, *preds, *labels}}
    return RunSummary(
        number=number,
        name=name_of(run),
        folder=str(run.folder),
        config=run.config,
        unreadable=run.unreadable,
        n=len(preds),
        n_expected=run.config.get("images_expected"),
        kept=run.kept,
        top1=metrics.top1(preds, labels),
        top5=top5(run),
        mean_per_class=metrics.mean_per_class(preds, labels),
        evaluations=Cost(**cost(evaluations(run))),
        seconds=Seconds(**cost(seconds), n=len(seconds)) if seconds else None,
        names=names,
        classes=per_class(preds, labels),
        confusion=confusion(preds, labels),
        curve=curve(run),
        groups=groups(run),
        mistakes=mistakes(run),
    )


def per_class(preds, labels) -> dict[int, Estimate]:
    """Label -> accuracy among the images of that label, for the labels that occur, ascending. preds, labels: [n] ints."""
    preds, labels = np.asarray(preds), np.asarray(labels)
    return {int(c): metrics.proportion(preds[labels == c] == c) for c in np.unique(labels)}


def confusion(preds, labels) -> list[Confused]:
    """Every label with every prediction that it has, ascending. preds, labels: [n] ints."""
    confused, counts = np.unique(np.stack([labels, preds], 1), axis=0, return_counts=True)
    return [Confused(*row) for row in np.column_stack([confused, counts]).tolist()]


def cost(values) -> dict[str, float]:
    """The fields of Cost, of [n] numbers, n > 0."""
    statistics = {"median": np.median(values), "mean": np.mean(values), "p95": np.percentile(values, 95), "total": np.sum(values)}
    return {name: float(value) for name, value in statistics.items()}


def name_of(run) -> str:
    """The folder's name; where that is only the split's, as for DiT on ImageNet, with its parent's."""
    folder = run.folder.resolve()
    return folder.name if folder.name != run.config["identity"].get("split") else f"{folder.parent.name}/{folder.name}"


def evaluations(run) -> list[int]:
    return [image.evaluations for image in run.images]


def top5(run):
    """None where candidates were eliminated, which leaves the others unranked, and where five are all the classes."""
    if run.kept not in ("sums", "full") or len(set(run.class_of)) <= 5:
        return None
    return metrics.proportion([curves.class_rank(image.means, run.class_of, image.label) < 5 for image in run.images])


def curve(run) -> list[Point]:
    """Accuracy, had every image stopped after so many pairs; nothing when only sums were kept."""
    kind = run.kept
    if kind == "sums":
        return []
    points = stops(run, kind)
    along = [curves.running_predictions(in_order(image, kind), run.class_of, points) for image in run.images]
    preds, spent = (np.array(part) for part in zip(*along, strict=True))
    if run.guided:
        spent = spent + [np.minimum(points, image.counts.max()) for image in run.images]
    labels = [image.label for image in run.images]
    return [Point(n, float(spent[:, i].mean()), metrics.top1(preds[:, i], labels)) for i, n in enumerate(points)]


def stops(run, kind: str) -> list[int]:
    """Numbers of pairs: 1, 2, 5, 10, ... and all of a full grid, else what the strategy says."""
    counts = {int(n) for image in run.images for n in image.counts if n}
    return round_numbers(max(counts)) if kind == "full" else run.strategy.stops(counts)


def in_order(image, kind: str) -> list:
    """Errors of every candidate; those of a full grid, which ascends by t, in an order that covers the timesteps evenly."""
    if kind != "full":
        return list(image.errors)
    order = np.argsort(image.t, kind="stable")[schedule.spread_order(len(image.t))]
    return [e[order] for e in image.errors]


def groups(run) -> list[Group]:
    """Accuracy among images by what they needed; nothing when all needed the same."""
    spent = np.array(evaluations(run))
    right = np.array([image.pred == image.label for image in run.images])
    masks = curves.quantile_groups(spent, GROUPS)
    if len(masks) < 2:
        return []
    return [Group(int(spent[m].min()), int(spent[m].max()), metrics.proportion(right[m])) for m in masks]


def mistakes(run) -> list[Mistake]:
    """The wrong predictions with the largest margins."""
    wrong = [image for image in run.images if image.pred != image.label and {image.pred, image.label} <= set(run.class_of)]
    margins = [(image, margin(image, run.class_of)) for image in wrong]
    known = [Mistake(image.index, image.label, image.pred, by, unit, n) for image, (by, unit, n) in margins if by is not None]
    return sorted(known, key=lambda mistake: (-mistake.margin, mistake.index))[:MISTAKES]


def margin(image, class_of) -> tuple[float | None, str, int]:
    """How much worse the true class's best row is than the predicted one's, its unit, and the number of pairs that both saw.

    In standard errors of the paired difference, None where these are not known; in percent of the lower error where only sums
    were kept.
    """
    right, wrong = (tables.best_row(image, class_of, label) for label in (image.label, image.pred))
    n = int(min(image.counts[right], image.counts[wrong]))
    if image.errors is None:
        return float(100 * (image.means[right] / image.means[wrong] - 1)), "%", n
    return curves.paired_margin(image.errors[right][:n], image.errors[wrong][:n]), "SE", n


def compare(runs) -> list[Comparison]:
    """Every two runs that have images in common."""
    right = [{image.index: image.pred == image.label for image in run.images} for run in runs]
    comparisons = []
    for i, j in combinations(range(len(runs)), 2):
        common = sorted(right[i].keys() & right[j].keys())
        if common:
            pair = [[result[index] for index in common] for result in (right[i], right[j])]
            tested = metrics.mcnemar(*pair).as_dict()
            comparisons.append(Comparison(first=i + 1, second=j + 1, difference=metrics.paired_difference(*pair), **tested))
    return comparisons


# ---------------------------------------------------------------- as rows


def number_rows(report: Report):
    """run, quantity, item, value, low, high, n: one row a number."""
    for run in report.runs:
        yield from ([run.number, *row] for row in run_rows(run))
    for c in report.comparisons:
        either, d = f"{c.first} less {c.second}", c.difference
        yield [either, "difference", "", d.value, d.low, d.high, d.n]
        yield from ([either, name, "", getattr(c, name), "", "", d.n] for name in ("only_first", "only_second", "p_value"))


def run_rows(run: RunSummary):
    """quantity, item, value, low, high, n of all that a run's part holds."""

    def proportion(quantity, item, e):
        return [quantity, item, e.value, e.low, e.high, e.n]

    name = run.names
    yield ["images", "", run.n, "", "", ""]
    yield ["images_expected", "", run.n_expected, "", "", ""]
    yield ["unreadable", "", len(run.unreadable), "", "", ""]
    yield from (proportion(key, "", getattr(run, key)) for key in ACCURACIES if getattr(run, key))
    yield from cost_rows("evaluations", run.evaluations, run.n)
    yield from cost_rows("seconds", run.seconds, run.seconds.n) if run.seconds else ()
    yield from (proportion("accuracy_of_class", name[label], e) for label, e in run.classes.items())
    yield from (["confusion", f"{name[c.label]} > {name[c.pred]}", c.n, "", "", run.classes[c.label].n] for c in run.confusion)
    for point in run.curve:
        yield proportion("accuracy_after_pairs", point.pairs, point.accuracy)
        yield ["evaluations_after_pairs", point.pairs, point.evaluations, "", "", run.n]
    yield from (proportion("accuracy_by_evaluations", f"{g.fewest} to {g.most}", g.accuracy) for g in run.groups)
    for m in run.mistakes:
        yield [f"margin_{m.unit}", f"{m.index}: {name[m.label]} > {name[m.pred]}", m.margin, "", "", m.pairs]


def cost_rows(quantity: str, cost: Cost, n: int):
    """A row a statistic."""
    yield from ([quantity, item, getattr(cost, item), "", "", n] for item in ("median", "mean", "p95", "total"))
