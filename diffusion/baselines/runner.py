"""A classifier that gives every class one score per image, evaluated on a data set: what its commands share.

Records and folders are those of eval_prob_adaptive.py, with minus the score as the one error of a class, at level 0, so that all
scripts that read runs read these. A command supplies a `Method`, made in its `prepare`, and calls `main`.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffusion import cli, datasets, settings
from diffusion.analysis import results
from diffusion.metrics import curves
from diffusion.runs import loop, printing, run_folder, schema, sharding, tracking
from diffusion.utils import paths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """Which images are scored, and how to run. dataset: datasets.ImageData, without a transform; seed: of a choice of images."""

    data: settings.Data
    selection: settings.Selection
    running: settings.Running
    dataset: Any
    seed: int

    @cached_property
    def selected(self) -> list[int]:
        """Indices of the images, over all workers."""
        selection = self.selection
        return sharding.select(len(self.dataset), selection.subset_path, selection.imgs_to_eval, self.seed)

    def folder(self, name: str, identity: Callable[[], dict]) -> Path:
        """The folder of this name, for what is made of these images. identity: as in run_folder.continued"""

        def make(dataset: str) -> Path:
            return run_folder.dataset_folder(paths.log_dir(), dataset, self.running.extra) / name

        return run_folder.continued(make, datasets.name_of(self.data), self.data.dataset, identity)


@dataclass(frozen=True)
class Method:
    """What gives the scores, known before any weights are loaded.

    command: name of the script, for config.json
    name: of the run folder
    settings: dataclasses of `settings` or like them, whose fields are printed first and kept in config.json
    identity: what the numbers depend on beside the images
    labels, names: of the K classes, in the order of the scores; labels are the data set's
    about, notices: more rows and lines of what a run prints first
    load: device -> (transform, score): PIL image -> [3,H,W] on the CPU, which other processes can unpickle, and
        [3,H,W] -> scores float32 [K] on the CPU; raises ValueError or OSError for weights that do not do
    task: what results files call it, None: zero-shot classification
    """

    command: str
    name: str
    settings: tuple
    identity: dict
    labels: Sequence[int]
    names: Sequence[str]
    about: dict
    notices: tuple
    load: Callable
    task: str | None = None


@dataclass(frozen=True)
class Run:
    """Images and a method: what is evaluated, and where its records are."""

    images: Images
    method: Method

    @cached_property
    def folder(self) -> Path:
        return self.images.folder(self.method.name, lambda: self.identity)

    @cached_property
    def identity(self) -> dict:
        dataset = self.images.dataset
        of_images = {
            "images": dataset.fingerprint(),
            "subset": sharding.subset_identity(self.images.selection.subset_path, len(dataset)),
        }
        return self.images.data.identity() | self.method.identity | of_images

    @property
    def options(self) -> dict:
        """All of them, resolved."""
        return settings.options_of(self.images.data, self.images.selection, *self.method.settings, self.images.running)

    @property
    def selected(self) -> list[int]:
        """Indices of the images, over all workers."""
        return self.images.selected

    @cached_property
    def unreadable(self) -> list[str]:
        """Names of files in the place of records that are none of this run's, which are redone; filled by `done`."""
        return []

    @cached_property
    def done(self) -> dict[int, results.Ranked]:
        """Outcomes of the records of `selected` that exist; the work adds to it."""
        if self.images.dataset.missing:
            return run_folder.unread({i: [self.record_path(i)] for i in self.selected})
        classes, labels = self.method.labels, self.images.dataset.labels
        wanted = schema.Wanted(range(len(classes)), classes, np.zeros(1, int))

        def convert(index, record):
            wanted.check(record, int(labels[index]))
            return ranked(record, classes)

        places = {i: self.record_path(i) for i in self.selected}
        return run_folder.load_classifications(places, convert, self.unreadable)

    @cached_property
    def todo(self) -> list[int]:
        """Indices that this worker has to evaluate."""
        running = self.images.running
        return [i for i in sharding.shard(self.selected, running.worker_idx, running.n_workers) if i not in self.done]

    def record_path(self, index: int) -> Path:
        return run_folder.record_path(self.folder, index, len(self.images.dataset))


def open_images(data: settings.Data, selection: settings.Selection, running: settings.Running, seed: int) -> Images:
    """Raises ValueError or OSError as `datasets.open_images`, whose dry run is that of `running`."""
    return Images(data, selection, running, datasets.open_images(data, running.dry_run), seed)


def refuse_torchrun() -> None:
    """For a command with stages before its images: raises ValueError under torchrun, whose hand-out serves one loop per start."""
    if loop.team().size > 1:
        raise ValueError("torchrun cannot share this command's stages: start it by itself, with --n_workers and --worker_idx")


def announce(run: Run) -> None:
    """Prints what will be done. Raises ValueError where the folder holds records of another run."""
    if not run.images.dataset.missing:
        run_folder.check_config(run.folder, run.identity, run.options)
    loop.tell_reading(run.folder)
    counts = (len(run.todo), len(run.done), len(run.selected))
    redone = run_folder.unreadable_told(run.unreadable, "redone")
    notices = (run.images.dataset.notice, *run.method.notices, redone)
    printing.announce(run.options, run.method.about, notices, run.folder, counts, 1)


def start(run: Run) -> Callable:
    """Loads the weights and writes config.json; returns image [3,H,W] -> scores float32 [K]."""
    log.info("Loading PyTorch and the weights: %s ...", run.method.about["weights"])
    run_folder.make_ready(run.folder)
    run.images.dataset.transform, score = run.method.load(run.images.running.device)
    begin(run)
    return score


def begin(run: Run) -> None:
    """Makes the folder and its config.json."""
    if loop.team().leads:
        candidates = {"labels": list(run.method.labels), "names": list(run.method.names)}
        what = (run.method.command, run_folder.CLASSIFICATION, run.identity, run.options, len(run.selected))
        run_folder.write_config(run.folder, run_folder.describe(*what, candidates=candidates, task=run.method.task))
    else:
        run.folder.mkdir(parents=True, exist_ok=True)  # on a network file system it may not be seen here yet


def record_of(scores, classes: Sequence[int], label: int) -> dict:
    """One "error" of every class, minus its score, at level 0. scores: float32 [K]."""
    import torch

    t, negative = torch.zeros(1, dtype=torch.int64), -scores  # whose parts are one block of the file
    errors = {row: {"t": t, "pred_errors": negative[row : row + 1]} for row in range(len(classes))}
    return {"errors": errors, "pred": classes[int(scores.argmax())], "label": label, "evaluations": 1}


def ranked(record: dict, classes: Sequence[int]) -> results.Ranked:
    """What accuracy needs of a record of `record_of`."""
    errors = [float(error["pred_errors"]) for error in record["errors"].values()]
    rank = curves.class_rank(errors, classes, record["label"])
    best = rank < results.BEST if len(classes) >= results.BEST else None
    return results.Ranked(record["label"], record["pred"], record["evaluations"], best)


def accuracy_lines(outcomes: Collection[results.Ranked]) -> list[str]:
    """The accuracies of images that were scored; no line without any."""
    names = {"acc1": "Top-1 accuracy", "acc5": "Top-5 accuracy", "mean_per_class_recall": "Mean per class"}
    return [f"{names[name]}: {estimate}" for name, estimate in results.accuracies(outcomes).items()] if outcomes else []


def evaluate(run: Run, score: Callable, tracker, line: str, through: Callable) -> int:
    """Goes through the images and prints the closing lines; returns the exit code. line: the command as it was typed.

    through: as of session.work_through; what it makes of an image is what is scored
    """

    def work(index, image, label):
        record = record_of(score(image), run.method.labels, label)
        run_folder.save_record(run.record_path(index), record)
        run.done[index] = ranked(record, run.method.labels)
        return run.done[index]

    running = run.images.running
    ended = loop.work_through(running, run.images.dataset, run.todo, run.done, work, tracker.progress, through)
    lines, in_folder = accuracy_lines(run.done.values()), len(run_folder.list_records(run.folder))
    lines += results.at_end(running.results, tracker, ended, run.folder, run.selected, line)
    return loop.close(lines, run.done, f"scripts/print_acc.py {run.folder}", ended, in_folder=in_folder)


def main(prepare: Callable[[], Run], line: str) -> int:
    """A whole command: prepare() -> Run, which raises ValueError or OSError for bad input. line: the command as it was typed.
    Returns the exit code."""
    with cli.bad_input():
        run = prepare()
        announce(run)
        printing.tell_missing(run.images.dataset)
    return 0 if run.images.running.dry_run else finish(run, line)


def finish(run: Run, line: str, through: Callable = loop.in_turn) -> int:
    """Loads the weights and goes through the images; the rest is as of `evaluate`."""
    with cli.bad_input():
        score = start(run)
        tracker = tracking.Tracker(run.images.running.tracker).start(run.options, run.folder.name)
    return evaluate(run, score, tracker, line, through)
