"""A run as one results file: CLIP_benchmark's fields, so that its tools read ours, and beside them intervals, n and cost.

Everything comes from the run folder, so a command at its end and a script that reads old runs say the same of the same records.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion import datasets, metrics, settings
from diffusion.analysis import tables
from diffusion.datasets import winoground
from diffusion.metrics import curves
from diffusion.runs import run_folder
from diffusion.strategy import level_weights
from diffusion.utils import files
from diffusion.utils.distributed import team

CLASSIFICATION, PAIRS = "zeroshot_classification", "image_caption_selection"  # tasks, as CLIP_benchmark calls them
PAIR_METRICS = {"text_acc": "text", "image_acc": "image", "acc": "group"}  # its names for Winoground's three scores
BEST = 5  # of acc5
TEXTS = ("dataset", "model", "pretrained", "task", "language", "split", "score_mode", "command", "identity", "run")
COUNTS = ("n", "n_expected", "evaluations")


class Ranked(NamedTuple):
    """What accuracy and cost need of an image. best: whether its label is among the best five classes, None where the record
    does not rank so many."""

    label: int
    pred: int
    evaluations: int
    best: bool | None

    @property
    def right(self) -> bool:
        return self.pred == self.label


def ranked(image: tables.Scored, class_of: list[int]) -> Ranked:
    """A record ranks the classes that saw all of its pairs: those that were dropped come after them, in no certain order."""
    whole = image.counts == image.counts.max()
    n_ranked = len({label for label, seen in zip(class_of, whole, strict=True) if seen})
    rank = curves.class_rank(np.where(whole, image.means, np.inf), class_of, image.label)
    return Ranked(image.label, image.pred, image.evaluations, rank < BEST if n_ranked >= BEST else None)


def each_ranked(folder, config: dict, unreadable: list, only: Collection[int] | None = None) -> Iterator[tuple[int, Ranked]]:
    """(index, what it needs) of every readable record of a run of classifications, one at a time; by the run's level weights.

    Arguments and errors are those of `tables.each_image`.
    """
    class_of, weights = None, level_weights.of_config(config, folder)
    for keys, image in tables.each_image(folder, config, unreadable, only):
        class_of = class_of or tables.classes(folder, config, keys)[0]
        yield image.index, ranked(tables.weighted(image, weights), class_of)


def accuracies(images: Collection[Ranked]) -> dict[str, metrics.Estimate]:
    """By CLIP_benchmark's names; without acc5 where an image's record does not rank so many classes."""
    labels, preds, _, best = zip(*images, strict=True)
    measured = {"acc1": metrics.top1(preds, labels)}
    measured |= {"acc5": metrics.proportion(best)} if None not in best else {}
    return measured | {"mean_per_class_recall": metrics.mean_per_class(preds, labels)}


# ---------------------------------------------------------------- from records


def of_folder(
    folder, only: Collection[int] | None = None, command: str | None = None, score_mode: str | None = None, unreadable=None
) -> dict:
    """What a results file holds, of a run folder of classifications or of caption pairs, ours or the reference's.

    only: indices or example ids to look at, None: all; command: the line that made it, where that is known; score_mode: of pairs
    (default: the run's own); unreadable: a list for the names of records that do not count. Values are in 0..1; what is not known
    is None. Raises ValueError for a folder without a readable record, and for one class's errors of a DiT.
    """
    folder, unreadable = Path(folder), [] if unreadable is None else unreadable
    config = tables.config_of(folder)
    if config.get("kind") == run_folder.ONE_CLASS:
        raise ValueError(f"{folder} holds errors of one class, and no prediction: see scripts/print_dit_acc.py")
    measure = _pairs if _is_of_pairs(folder, config) else _classification
    estimates, cost, more = measure(folder, config, only, score_mode, unreadable)
    identity, options = config["identity"], config.get("options", {})
    n_expected = config.get("images_expected") if only is None else len(only)
    return {
        "dataset": dataset_of(identity, options),
        "model": identity.get("version") or options.get("model"),
        "pretrained": options.get("pretrained") or options.get("model_path") or identity.get("weights"),
        "task": PAIRS if measure is _pairs else config.get("task", CLASSIFICATION),
        "metrics": {name: estimate.value for name, estimate in estimates.items()},
        "language": "en",
        "split": identity.get("split"),
        "intervals": {name: [estimate.low, estimate.high] for name, estimate in estimates.items()},
        "n": len(cost),
        "n_expected": n_expected,
        "evaluations": sum(cost) / len(cost),
        **more,
        "command": command,
        "identity": files.fingerprint(dict(sorted(identity.items()))) if identity else None,
        "run": str(folder),
    }


def dataset_of(identity: dict, options: dict) -> str | None:
    """The set of a run, by its config.json; one of the user's own by its place too, which older folders' names lack."""
    name = identity.get("dataset")
    return name and datasets.name_of(settings.pick(settings.Data, options, dataset=name))


def _is_of_pairs(folder: Path, config: dict) -> bool:
    """By the config, or of a run of the reference by its first record."""
    if "kind" in config:
        return config["kind"] == run_folder.PAIRS
    first = next(iter(run_folder.list_records(folder).values()), None)
    return first is not None and run_folder.load_pair(first, []) is not None


def _classification(folder: Path, config: dict, only, _, unreadable: list) -> tuple[dict, list[int], dict]:
    """Name -> Estimate, evaluations of each image, and nothing more."""
    images = [image for _, image in each_ranked(folder, config, unreadable, only)]
    if not images:
        raise ValueError(tables.NO_RECORD.format(folder))
    return accuracies(images), [image.evaluations for image in images], {}


def _pairs(folder: Path, config: dict, only, score_mode: str | None, unreadable: list) -> tuple[dict, list[int], dict]:
    """The same of caption pairs, and how they were scored."""
    mode = score_mode or config.get("options", {}).get("score_mode") or winoground.SCORE_MODES[0]
    records = run_folder.load_pair_records(folder, unreadable)
    chosen = records if only is None else sorted(records.keys() & set(only))
    outcomes = {i: run_folder.pair_outcome(records[i]) for i in chosen}
    if not outcomes:
        raise ValueError(tables.NO_RECORD.format(folder))
    right = winoground.correct({i: outcome.scores for i, outcome in outcomes.items()}, mode).values()
    measured = {name: metrics.proportion([getattr(one, part) for one in right]) for name, part in PAIR_METRICS.items()}
    return measured, [outcome.evaluations for outcome in outcomes.values()], {"score_mode": mode}


# ---------------------------------------------------------------- the file


def read(path) -> dict:
    """A results file, ours or CLIP_benchmark's own, which has no intervals.

    Raises ValueError, naming file and field, for anything else, OSError for a file that cannot be read.
    """
    result = files.read_json(path, {"task": str, "metrics": dict})
    wrong = next((name for name in TEXTS if not _is_text(result.get(name))), None)
    wrong = wrong or next((name for name in COUNTS if not _is_number(result.get(name, 0))), None)
    wrong = wrong or next((name for name, value in result["metrics"].items() if not (_is_number(value) or value != value)), None)
    wrong = wrong or (None if _are_intervals(result.get("intervals", {}), result["metrics"]) else "intervals")
    if wrong:
        raise ValueError(f"{path} is no results file: its {wrong} is not what --results writes")
    return result


def _is_text(value) -> bool:
    """Which half of a surrogate pair, that JSON can name, is not."""
    return value is None or (isinstance(value, str) and value.encode(errors="ignore").decode() == value)


def _is_number(value) -> bool:
    """Nor NaN, infinity or an integer beyond all floats, which JSON can hold."""
    return value is None or (type(value) in (int, float) and abs(value) < 2**63)


def _are_intervals(intervals, of: dict) -> bool:
    """Metric -> low and high, of some of these metrics."""
    if not (isinstance(intervals, dict) and set(intervals) <= set(of)):
        return False
    pairs = intervals.values()
    return all(isinstance(pair, list) and len(pair) == 2 and None not in pair and all(map(_is_number, pair)) for pair in pairs)


def at_end(path: str | None, tracker, ended, folder, only, command: str, score_mode: str | None = None) -> list[str]:
    """Writes --results and tells the tracker at the end of a command, unless it was stopped; the lines that say so.

    path: None where nothing was asked for; tracker: tracking.Tracker; ended: session.Ended; folder: None where nothing follows
    from it; only: the images or examples of this command, as a folder can hold more. Of torchrun's processes rank 0 writes.
    Raises OSError where the file cannot be written any more.
    """
    result, lines = {}, []
    if (path or tracker.listens) and folder and team().leads and not (ended.signal or ended.unwritten):
        try:
            result = of_folder(folder, only, command, score_mode)
        except ValueError as error:  # every image failed
            lines = [f"No results: {error}"]
    tracker.end(result)
    if path and result:
        write(path, result)
        lines = [f"Results: {path}"]
    return lines


def write(path, result: dict) -> None:
    """JSON, whole or absent. Raises OSError where it cannot be written."""
    files.write_text(path, json.dumps(result, indent=1) + "\n")
