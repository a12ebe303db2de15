"""A classifier that gives every class one score per image, evaluated on a data set: what its commands share.

Records and folders are those of eval_prob_adaptive.py, with minus the score as the one error of a class, at level 0, so that all
scripts that read runs read these. A command supplies a `Scorer`, made in its `prepare`, and calls `main`.
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
from diffusion.runs.task import Task
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
class Scorer:
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
class ScoreTask(Task):
    """Images, and what gives every class one score for each."""

    images: Images
    scorer: Scorer

    price = 1

    @property
    def command(self) -> str:  # type: ignore[override]  # an attribute that nobody writes, like the two below
        return self.scorer.command

    @property
    def running(self) -> settings.Running:  # type: ignore[override]
        return self.images.running

    @property
    def dataset(self) -> Any:
        return self.images.dataset

    @property
    def incomplete(self) -> bool:
        """Weights are looked for where a scorer is made, so only images can be missing."""
        return bool(self.dataset.missing)

    @cached_property
    def folder(self) -> Path:  # type: ignore[override]
        return self.images.folder(self.scorer.name, lambda: self.identity)

    @cached_property
    def identity(self) -> dict:
        dataset = self.dataset
        of_images = {
            "images": dataset.fingerprint(),
            "subset": sharding.subset_identity(self.images.selection.subset_path, len(dataset)),
        }
        return self.images.data.identity() | self.scorer.identity | of_images

    @property
    def options(self) -> dict:
        """All of them, resolved."""
        return settings.options_of(self.images.data, self.images.selection, *self.scorer.settings, self.images.running)

    @property
    def selected(self) -> list[int]:
        return self.images.selected

    def read_records(self) -> dict[int, results.Ranked]:
        classes, labels = self.scorer.labels, self.dataset.labels
        wanted = schema.Wanted(range(len(classes)), classes, np.zeros(1, int))

        def convert(index, record):
            wanted.check(record, int(labels[index]))
            return ranked(record, classes)

        places = {i: self.record_path(i) for i in self.selected}
        return run_folder.load_classifications(places, convert, self.unreadable)

    def record_path(self, index: int) -> Path:
        return run_folder.record_path(self.folder, index, len(self.dataset))


def open_images(data: settings.Data, selection: settings.Selection, running: settings.Running, seed: int) -> Images:
    """Raises ValueError or OSError as `datasets.open_images`, whose dry run is that of `running`."""
    return Images(data, selection, running, datasets.open_images(data, running.dry_run), seed)


def refuse_torchrun() -> None:
    """For a command with stages before its images: raises ValueError under torchrun, whose hand-out serves one loop per start."""
    if loop.team().size > 1:
        raise ValueError("torchrun cannot share this command's stages: start it by itself, with --n_workers and --worker_idx")


def announce(run: ScoreTask) -> None:
    """Prints what will be done. Raises ValueError where the folder holds records of another run."""
    if not run.incomplete:
        run.check_folders()
    run.announce(run.scorer.about, (run.dataset.notice, *run.scorer.notices))


def start(run: ScoreTask) -> Callable:
    """Loads the weights and writes config.json; returns image [3,H,W] -> scores float32 [K]."""
    log.info("Loading PyTorch and the weights: %s ...", run.scorer.about["weights"])
    run.make_ready()
    run.dataset.transform, score = run.scorer.load(run.running.device)
    begin(run)
    return score


def begin(run: ScoreTask) -> None:
    """Makes the folder and its config.json."""
    candidates = {"labels": list(run.scorer.labels), "names": list(run.scorer.names)}
    run.write_config(candidates=candidates, task=run.scorer.task)


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


def evaluate(run: ScoreTask, score: Callable, tracker, line: str, through: Callable) -> int:
    """Goes through the images and prints the closing lines; returns the exit code. line: the command as it was typed.

    through: as of loop.work_through; what it makes of an image is what is scored
    """

    def work(index, image, label):
        record = record_of(score(image), run.scorer.labels, label)
        return run.save(index, record, ranked(record, run.scorer.labels))

    ended = loop.work_through(run.running, run.dataset, run.todo, run.done, work, tracker.progress, through)
    lines = accuracy_lines(run.done.values())
    lines += results.at_end(run.running.results, tracker, ended, run.folder, run.selected, line)
    return run.close(lines, f"scripts/print_acc.py {run.folder}", ended)


def main(prepare: Callable[[], ScoreTask], line: str) -> int:
    """The exit code of a whole command. prepare raises ValueError or OSError for bad input; line: the command as it was typed."""
    with cli.bad_input():
        run = prepare()
        announce(run)
        printing.tell_missing(run.dataset)
    return 0 if run.running.dry_run else finish(run, line)


def finish(run: ScoreTask, line: str, through: Callable = loop.in_turn) -> int:
    """Loads the weights and goes through the images; the rest is as of `evaluate`."""
    with cli.bad_input():
        score = start(run)
        tracker = tracking.Tracker(run.running.tracker).start(run.options, run.folder.name)
    return evaluate(run, score, tracker, line, through)
