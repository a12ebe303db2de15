"""Runs as the plain numbers of a report: accuracy, cost, confusions, mistakes, and how several runs compare."""

from itertools import combinations

import numpy as np

from diffusion import metrics, schedule
from diffusion.analysis import tables
from diffusion.strategy import round_numbers

MISTAKES = 12
GROUPS = 5  # of images, by their evaluations
ACCURACIES = ("top1", "top5", "mean_per_class")


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


def make_report(runs) -> dict:
    """All that the formats hold: plain values and Estimates."""
    return {"runs": [summarise(number, run) for number, run in enumerate(runs, 1)], "comparisons": compare(runs)}


def summarise(number: int, run) -> dict:
    preds, labels = [image.pred for image in run.images], [image.label for image in run.images]
    seconds = [image.seconds for image in run.images if image.seconds is not None]
    names = {label: run.names.get(label, str(label)) for label in {*run.names, *preds, *labels}}
    return {
        "number": number,
        "name": name_of(run),
        "folder": str(run.folder),
        "config": run.config,
        "unreadable": run.unreadable,
        "n": len(preds),
        "n_expected": run.config.get("images_expected"),
        "kept": run.kept,
        "top1": metrics.top1(preds, labels),
        "top5": top5(run),
        "mean_per_class": metrics.mean_per_class(preds, labels),
        "evaluations": metrics.cost(evaluations(run)),
        "seconds": metrics.cost(seconds) | {"n": len(seconds)} if seconds else None,
        "names": names,
        "classes": metrics.per_class(preds, labels),
        "confusion": metrics.confusion(preds, labels),
        "curve": curve(run),
        "groups": groups(run),
        "mistakes": mistakes(run),
    }


def name_of(run) -> str:
    """The folder's name; where that is only the split's, as for DiT on ImageNet, with its parent's."""
    folder = run.folder.resolve()
    return folder.name if folder.name != run.config["identity"].get("split") else f"{folder.parent.name}/{folder.name}"


def evaluations(run) -> list[int]:
    return [int(image.counts.sum()) for image in run.images]


def top5(run):
    """None where candidates were eliminated, which leaves the others unranked, and where five are all the classes."""
    if run.kept not in ("sums", "full") or len(set(run.class_of)) <= 5:
        return None
    return metrics.proportion([metrics.class_rank(image.means, run.class_of, image.label) < 5 for image in run.images])


def curve(run) -> list[dict]:
    """Accuracy, had every image stopped after so many pairs; nothing when only sums were kept."""
    kind = run.kept
    if kind == "sums":
        return []
    points = stops(run, kind)
    along = [metrics.running_predictions(in_order(image, kind), run.class_of, points) for image in run.images]
    preds, spent = (np.array(part) for part in zip(*along, strict=True))
    labels = [image.label for image in run.images]
    return [
        {"pairs": n, "evaluations": float(spent[:, i].mean()), "accuracy": metrics.top1(preds[:, i], labels)}
        for i, n in enumerate(points)
    ]


def stops(run, kind: str) -> list[int]:
    """Numbers of pairs: 1, 2, 5, 10, ... and all of a full grid, else what the strategy says."""
    counts = {int(n) for image in run.images for n in image.counts}
    return round_numbers(max(counts)) if kind == "full" else run.strategy.stops(counts)


def in_order(image, kind: str) -> list:
    """Errors of every candidate; those of a full grid, which ascends by t, in an order that covers the timesteps evenly."""
    if kind != "full":
        return list(image.errors)
    order = np.argsort(image.t, kind="stable")[schedule.spread_order(len(image.t))]
    return [e[order] for e in image.errors]


def groups(run) -> list[dict]:
    """Accuracy among images by what they needed; nothing when all needed the same."""
    spent = evaluations(run)
    found = [[(spent[i], run.images[i]) for i in members] for members in metrics.quantile_groups(spent, GROUPS)]
    return [
        {
            "from": min(n for n, _ in members),
            "to": max(n for n, _ in members),
            "accuracy": metrics.proportion([image.pred == image.label for _, image in members]),
        }
        for members in found
        if len(found) > 1
    ]


def mistakes(run) -> list[dict]:
    """The wrong predictions with the largest margins."""
    wrong = [
        {"index": image.index, "label": image.label, "pred": image.pred} | margin(image, run.class_of)
        for image in run.images
        if image.pred != image.label and {image.pred, image.label} <= set(run.class_of)
    ]
    known = [mistake for mistake in wrong if mistake["margin"] is not None]
    return sorted(known, key=lambda mistake: (-mistake["margin"], mistake["index"]))[:MISTAKES]


def margin(image, class_of) -> dict:
    """How much worse the true class's best row is than the predicted one's, on the pairs that both saw.

    In standard errors of the paired difference; in percent of the lower error where only sums were kept.
    """
    right, wrong = (tables.best_row(image, class_of, label) for label in (image.label, image.pred))
    n = int(min(image.counts[right], image.counts[wrong]))
    if image.errors is None:
        return {"margin": float(100 * (image.means[right] / image.means[wrong] - 1)), "unit": "%", "pairs": n}
    value = metrics.paired_margin(image.errors[right][:n], image.errors[wrong][:n])
    return {"margin": value, "unit": "SE", "pairs": n}


def compare(runs) -> list[dict]:
    """Every two runs that have images in common."""
    right = [{image.index: image.pred == image.label for image in run.images} for run in runs]
    found = []
    for i, j in combinations(range(len(runs)), 2):
        common = sorted(right[i].keys() & right[j].keys())
        if common:
            pair = [[result[index] for index in common] for result in (right[i], right[j])]
            tested = metrics.mcnemar(*pair).as_dict()
            found.append({"first": i + 1, "second": j + 1, "difference": metrics.paired_difference(*pair)} | tested)
    return found


# ---------------------------------------------------------------- as rows


def number_rows(report: dict):
    """run, quantity, item, value, low, high, n: one row a number."""
    for run in report["runs"]:
        yield from ([run["number"], *row] for row in run_rows(run))
    for c in report["comparisons"]:
        pair, d = f"{c['first']} less {c['second']}", c["difference"]
        yield [pair, "difference", "", d.value, d.low, d.high, d.n]
        yield from ([pair, name, "", c[name], "", "", d.n] for name in ("only_first", "only_second", "p_value"))


def run_rows(run: dict):
    """quantity, item, value, low, high, n of all that a run's part holds."""

    def proportion(quantity, item, e):
        return [quantity, item, e.value, e.low, e.high, e.n]

    name = run["names"]
    yield ["images", "", run["n"], "", "", ""]
    yield ["images_expected", "", run["n_expected"], "", "", ""]
    yield ["unreadable", "", len(run["unreadable"]), "", "", ""]
    yield from (proportion(key, "", run[key]) for key in ACCURACIES if run[key])
    for key in ("evaluations", "seconds"):
        spent = run[key] or {}
        yield from (
            [key, item, spent[item], "", "", spent.get("n", run["n"])] for item in ("median", "mean", "p95", "total") if spent
        )
    yield from (proportion("accuracy_of_class", name[label], e) for label, e in run["classes"].items())
    yield from (["confusion", f"{name[a]} > {name[b]}", n, "", "", run["classes"][a].n] for a, b, n in run["confusion"])
    for point in run["curve"]:
        yield proportion("accuracy_after_pairs", point["pairs"], point["accuracy"])
        yield ["evaluations_after_pairs", point["pairs"], point["evaluations"], "", "", run["n"]]
    yield from (proportion("accuracy_by_evaluations", f"{g['from']} to {g['to']}", g["accuracy"]) for g in run["groups"])
    for m in run["mistakes"]:
        item = f"{m['index']}: {name[m['label']]} > {name[m['pred']]}"
        yield [f"margin_{m['unit']}", item, m["margin"], "", "", m["pairs"]]
