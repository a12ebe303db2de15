"""A DiT's predictions by each of the four columns of the paper's Table 5, from records of all classes."""

from dataclasses import dataclass, field
from pathlib import Path

from diffusion import datasets, metrics
from diffusion.runs import run_folder, schema


def scores_of(means):
    """Means [K,Q] over an image's evaluations -> what the published columns compare, {name: [K]}; Q is 4, or 1 for mse alone."""
    if means.shape[1] == 1:
        return {"L2": means[:, 0]}
    return {"L2": means[:, 0], "L1": means[:, 1], "VLB": means[:, 2], "L2+VLB": means[:, 0] + means[:, 2]}


def predictions(means, labels_of_rows) -> dict[str, int]:
    """The label of the row with the lowest score, the first at a tie, by every column."""
    return {name: labels_of_rows[int(score.argmin())] for name, score in scores_of(means).items()}


def record_predictions(record: dict, label_of, weighted: bool) -> dict[str, int] | None:
    """All columns of a record with sums over a grid, None when one is not finite; the one prediction of an elimination or of
    level weights."""
    if "sums" not in record or weighted:
        return {f"its own loss, by {'level weights' if weighted else 'elimination'}": record["pred"]}
    if not record["sums"].isfinite().all():
        return None
    rows = [label_of.get(c) for c in record["classes"].tolist()]
    return None if None in rows else predictions(record["sums"] / len(record["t"]), rows)


@dataclass
class Columns:
    """The prediction by each column and the label of every image with a readable record; evaluations: in all; n_classes: the
    most; left_out: records that do not count; unreadable: names of those that cannot be read."""

    preds: list[dict[str, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    evaluations: int = 0
    n_classes: int = 0
    left_out: int = 0
    unreadable: list[str] = field(default_factory=list)


def read(folder: Path, config: dict | None, dataset: str | None) -> Columns:
    """The columns of a folder with records of all classes; one record in memory at a time."""
    weighted = bool(config and config.get("level_weights"))
    label_of = datasets.labels_of_classes(dataset, 1000) if dataset else {i: i for i in range(1000)}
    rules, columns, paths = schema.Rules(config or {}, folder), Columns(), run_folder.list_records(folder).values()
    for path in paths:
        record = run_folder.load_record(path, columns.unreadable, rules)
        if record and (predicted := record_predictions(record, label_of, weighted)):
            columns.preds.append(predicted)
            columns.labels.append(record["label"])
            columns.evaluations += run_folder.outcome(record).evaluations
            columns.n_classes = max(columns.n_classes, len(record["classes"] if "classes" in record else record["errors"]))
    columns.left_out = len(paths) - len(columns.preds)
    return columns


def accuracies(preds: list[dict[str, int]], labels: list[int]) -> dict[str, metrics.Estimate]:
    """Column -> accuracy over the images that have it, in the published order."""
    columns = dict.fromkeys(name for predicted in sorted(preds, key=len, reverse=True) for name in predicted)
    labelled = list(zip(preds, labels, strict=True))
    having = {name: [(predicted[name], label) for predicted, label in labelled if name in predicted] for name in columns}
    return {name: metrics.top1(*zip(*pairs, strict=True)) for name, pairs in having.items()}
