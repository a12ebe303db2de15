"""A shortlist: of every image only those classes compete that an earlier run ranks first on it (the paper's Table 7).

That run is any run of classifications that is there, or one of a contrastive model, which first ranks the images that it lacks.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion import metrics, settings
from diffusion.analysis import tables
from diffusion.baselines import contrastive, runner
from diffusion.datasets.prompts import PromptTable
from diffusion.runs import run_folder, sharding
from diffusion.strategy import level_weights
from diffusion.strategy.candidate_sets import Proposals
from diffusion.utils import files

USUAL = 20  # classes, the paper's


class Ranking(NamedTuple):
    """The labels of an image, best first, and what the ranking cost."""

    labels: tuple[int, ...]
    evaluations: int


@dataclass(frozen=True)
class Shortlist:
    """Who competes for which image.

    requested: with the size, how many classes an image has; folder, config: of the run that ranks; images: to be evaluated
    class_of: label of each candidate; allowed_by: of a set whose images have candidates of their own
    model: the run of a contrastive model, of which records may lack; None: all records have to be there
    """

    requested: settings.Shortlist
    folder: Path
    config: dict
    images: runner.Images
    class_of: Sequence[int]
    allowed_by: Proposals | None = None
    model: runner.ScoreTask | None = None

    @property
    def size(self) -> int:
        assert self.requested.shortlist_size is not None  # as `find` chooses it
        return self.requested.shortlist_size

    @cached_property
    def ranked(self) -> dict[int, Ranking]:
        """Index -> ranking, cut to the size, of the selected images that the run has a record of."""
        rankings = {}
        weights = level_weights.of_config(self.config, self.folder)
        for keys, image in tables.each_image(self.folder, self.config, [], self.images.selected):
            class_of, _ = tables.classes(self.folder, self.config, keys)
            if set(class_of) != set(self.class_of):
                raise ValueError(f"--shortlist {self.folder} is about {len(set(class_of))} classes, this run about "
                                 f"{len(set(self.class_of))}, and they are not the same: give one of these prompts")  # fmt: skip
            labels = ranking(tables.weighted(image, weights), class_of)
            allowed = set(map(int, self.allowed_by.labels_of(image.index))) if self.allowed_by else set(labels)
            rankings[image.index] = Ranking(tuple(label for label in labels if label in allowed)[: self.size], image.evaluations)
        return rankings

    @property
    def todo(self) -> list[int]:
        """Images of this worker that are to be ranked first."""
        return self.model.todo if self.model else []

    @property
    def proposals(self) -> Proposals:
        """Nothing competes for an image without a ranking."""
        return Proposals(lambda index: self.ranked[index].labels if index in self.ranked else (), self.size, self.class_of)

    @property
    def leaves_out(self) -> bool:
        """Whether some image may have fewer candidates than there are."""
        return bool(self.size < len(set(self.class_of)) or self.config.get("partial"))

    @property
    def identity(self) -> dict:
        """What a run's numbers depend on: the size, and the run that ranks, whichever images that was about."""
        about = {name: value for name, value in self.config["identity"].items() if name != "subset"}
        return {"shortlist": files.fingerprint(dict(sorted(about.items()))), "shortlist_size": self.size}

    @property
    def name(self) -> str:
        """For the end of a run folder's name."""
        return f"_shortlist{self.size}_{self.folder.name}"

    @property
    def described(self) -> str:
        return f"{self.size} of {len(set(self.class_of))} classes, by {self.folder}"

    @property
    def priced(self) -> str:
        """What a price says of images that are to be ranked first."""
        n, n_prompts = len(self.todo), len(self.class_of)
        return f"; before, {n:,} images and {n_prompts:,} prompts through the contrastive model" if n else ""

    def made(self) -> tuple["Shortlist", int]:
        """With all rankings of this worker that can be had, and the exit code of the run that made them."""
        assert self.model is not None  # else no ranking lacks
        code = runner.finish(self.model, "")
        return replace(self), code  # which reads the records anew

    def line(self, labels: Mapping[int, int]) -> str:
        """How good it is by itself. labels: index -> true one, of images that were ranked."""
        share = metrics.proportion([label in self.ranked[index].labels for index, label in labels.items()])
        cost = sum(self.ranked[index].evaluations for index in labels) / len(labels)
        return f"Shortlist of {self.size}: has the true class in {share}; {cost:,.0f} evaluations of {self.folder.name} per image"


def ranking(image: tables.Scored, class_of: Sequence[int]) -> list[int]:
    """Labels, best first, of the classes that were tried: who was dropped later is better, then who has the lower mean error."""
    tried = np.flatnonzero(image.counts).tolist()
    rows = sorted(tried, key=lambda row: (-image.counts[row], image.means[row], row))
    return list(dict.fromkeys(class_of[row] for row in rows))


# ---------------------------------------------------------------- what was asked for


def find(
    requested: settings.Shortlist, images: runner.Images, table: PromptTable, proposals: Proposals | None
) -> Shortlist | None:
    """None where none was requested. proposals: of a set whose images have candidates of their own.

    Raises ValueError or OSError for a size that no image can have, for a model that is not known, and for a run that is about
    other images or classes, or lacks some that this worker is to evaluate.
    """
    size = checked_size(requested, proposals.size if proposals else len(set(table.classidx)))
    place = requested.shortlist
    if place is None:
        return None
    requested = replace(requested, shortlist_size=size)
    if requested.model is None:
        shortlist = Shortlist(requested, Path(place), _config_of(place, images), images, table.classidx, proposals)
        _check_whole(shortlist)
        return shortlist
    model = model_run(requested, images, table)
    if not images.dataset.missing:
        model.check_folders()
    if model.todo:
        runner.refuse_torchrun()
    config = {"identity": model.identity, "candidates": {"labels": model.scorer.labels, "names": model.scorer.names}}
    return Shortlist(requested, model.folder, config, images, table.classidx, proposals, model)


def checked_size(requested: settings.Shortlist, n: int) -> int:
    """How many classes compete, of n that can. Raises ValueError for more than n, and for a size of no shortlist."""
    if requested.shortlist is None and requested.shortlist_size is not None:
        raise ValueError("--shortlist_size needs --shortlist, which says by whom")
    if (requested.shortlist_size or 0) > n:
        raise ValueError(f"--shortlist_size {requested.shortlist_size}: {n} classes compete for an image, give at most so many")
    return requested.shortlist_size or min(USUAL, n)


def model_run(requested: settings.Shortlist, images: runner.Images, table: PromptTable) -> runner.ScoreTask:
    """That of scripts/eval_clip.py with these images and prompts. Raises ValueError for a model that is not known."""
    assert requested.model is not None
    names = ("device", "extra", "n_workers", "worker_idx", "dry_run")
    running = settings.Running(**{name: getattr(images.running, name) for name in names})
    try:
        scorer = contrastive.scorer(requested.model, table)
    except ValueError as error:
        raise ValueError(f"--shortlist {requested.shortlist}: {error}") from None
    # whose transform is another
    return runner.ScoreTask(replace(images, running=running, dataset=copy.copy(images.dataset)), scorer)


def _config_of(place: str, images: runner.Images) -> dict:
    """Raises ValueError for a folder of no run of classifications on these images."""
    config = tables.config_of(place) if Path(place).is_dir() else {}
    if config.get("kind") != run_folder.CLASSIFICATION:
        raise ValueError(f"--shortlist {place} is no folder of a run that ranks classes, with its config.json: give one, or a "
                         "contrastive model such as openclip:ViT-H-14")  # fmt: skip
    now = images.data.identity() | ({} if images.dataset.missing else {"images": images.dataset.fingerprint()})
    for name, value in now.items():
        if (then := config["identity"].get(name, value)) != value:
            raise ValueError(f"--shortlist {place} is about other images: its {name} is {then}, this run's {value}")
    return config


def _check_whole(shortlist: Shortlist) -> None:
    """Raises ValueError where images of this worker have no ranking."""
    running = shortlist.images.running
    mine: Collection[int] = sharding.shard(shortlist.images.selected, running.worker_idx, running.n_workers)
    lacking = [index for index in mine if index not in shortlist.ranked]
    if lacking:
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise ValueError(f"--shortlist {shortlist.folder} has no readable record of image {lacking[0]}{more}: evaluate them "
                         "there first, or less of them here with --imgs_to_eval")  # fmt: skip
