"""Run folders as arrays: the errors that every candidate of every image kept, and which class each candidate stands for."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from diffusion import strategy
from diffusion.datasets import prompts
from diffusion.kernel import scores
from diffusion.runs import run_folder, schema
from diffusion.strategy import Strategy, level_weights
from diffusion.strategy.elimination import NEVER, means_of
from diffusion.strategy.level_weights import LevelWeights
from diffusion.strategy.schedule import Plan


@dataclass(frozen=True)
class Scored:
    """What the record of one image holds. Candidate k saw the first counts[k] pairs of one order that all candidates share.

    label, pred: labels; t: int64 [S] of the longest candidate, in order of evaluation; means: float64 [K] of each candidate's
    errors, inf of one that was never tried, counts: int64 [K] how many they are; errors: K arrays float32 [counts[k]], or None
    where only sums were kept, times the level weights that they were compared by; seconds: what the image took, None for records
    that do not say; evaluations: of the network, which a contrastive model has one of; dropped: row -> round in which a race
    dropped it, None of other strategies.
    """

    index: int
    label: int
    pred: int
    t: np.ndarray
    means: np.ndarray
    counts: np.ndarray
    errors: tuple[np.ndarray, ...] | None
    seconds: float | None
    evaluations: int
    dropped: dict[int, int] | None


@dataclass(frozen=True)
class Run:
    """A run folder. loss: of its errors; class_of: label of each of the K candidates; names: label -> class name (its number
    where it has none); unreadable: names of records that do not count, with the reason."""

    folder: Path
    config: dict
    loss: str
    class_of: list[int]
    names: dict[int, str]
    images: list[Scored]
    unreadable: list[str]

    @cached_property
    def strategy(self) -> Strategy:
        """That of the run; of a folder without a config.json stages."""
        return strategy.of_identity(self.config["identity"])

    @property
    def guided(self) -> bool:
        """Whether every pair was evaluated under the empty condition, too."""
        return bool(self.config["identity"].get("guidance"))

    @property
    def n_levels(self) -> int:
        """The number of levels of the model's law of noise."""
        return self.config.get("n_levels", 1000)

    @property
    def belonging(self) -> dict:
        """What level weights that are fitted on it belong to. Folders without a word on their errors' space had one."""
        space = self.config.get("error_space", "epsilon")
        return level_weights.belonging(self.config["identity"], self.loss, self.n_levels, space)

    @property
    def kept(self) -> str:
        """What its records hold: "sums"; "full", all errors of all candidates; or those of candidates still alive, by the name of
        the strategy."""
        if any(image.errors is None for image in self.images):
            return "sums"
        if self.strategy.KEEPS_GRID and all(image.counts.min() == image.counts.max() for image in self.images):
            return "full"
        return self.strategy.NAME


@dataclass(frozen=True)
class Grid:
    """All errors of a run that dropped nobody. errors: float32 [n,K,S], pairs ascending by t; t: int64 [S], of n_levels levels;
    class_of: label of each candidate; labels: [n]; guided: as of Run; rows: int64 [n,K], which of the candidates competed for an
    image, None where all did."""

    errors: np.ndarray
    t: np.ndarray
    class_of: list[int]
    labels: np.ndarray
    n_levels: int = 1000
    guided: bool = False
    rows: np.ndarray | None = None

    @property
    def n_candidates(self) -> int:
        """The number of candidates of every image."""
        return self.errors.shape[1]

    def competing(self, image: int) -> list[int]:
        """Which of the candidates the errors of an image are of."""
        return list(range(len(self.class_of))) if self.rows is None else self.rows[image].tolist()

    @cached_property
    def plan(self) -> Plan:
        """All pairs, in the run's order."""
        return Plan(self.t, (slice(0, len(self.t)),))


NO_RECORD = "{} holds no readable record <index>.pt: give a run folder"


def read_run(folder, loss: str | None = None, part: str = "all", prompt_path=None, weights_path=None) -> Run:
    """All records of a folder, ours or the reference's, with errors as the run compared them: times its level weights, if any.

    loss: of a DiT's numbers (default: the run's own); part: all, even or odd indices; prompt_path: the CSV of a folder whose
    config.json does not name its candidates; weights_path: file of level weights in place of the run's. Raises ValueError for a
    folder without a readable record, for errors of two image sizes, for a loss or prompts that would change nothing, and for
    level weights of another model or loss.
    """
    given = LevelWeights.read(weights_path) if weights_path else None
    run = read_unweighted(folder, loss, part, prompt_path)
    if given:
        given.check(run.belonging)
    own_weights = level_weights.of_config(run.config, folder)
    if own_weights and not given and own_weights.about["loss"] != run.loss:
        raise ValueError(f"--loss {run.loss}: {folder} was made with level weights of {own_weights.about['loss']}: leave it out")
    return replace(run, images=[weighted(image, given or own_weights) for image in run.images])


def read_unweighted(folder, loss: str | None = None, part: str = "all", prompt_path=None) -> Run:
    """The same with errors as they are recorded, whatever weights the run had."""
    folder, config = Path(folder), config_of(folder)
    if prompt_path and "candidates" in config:
        raise ValueError(f"--prompt_path: {folder} names its candidates itself, in config.json: leave the option out")
    parity = {"all": (0, 1), "even": (0,), "odd": (1,)}[part]
    unreadable: list[str] = []
    only = [index for index in run_folder.list_records(folder) if index % 2 in parity]
    images = list(each_image(folder, config, unreadable, only, loss))
    if not images:
        raise ValueError(NO_RECORD.format(folder))
    loss = loss or config["identity"].get("loss", "l2")
    return Run(
        folder, config, loss, *classes(folder, config, images[0][0], prompt_path), [image for _, image in images], unreadable
    )


def config_of(folder) -> dict:
    """The folder's config.json, with an empty identity of a run of the reference.

    Raises ValueError for a run whose errors do not compare, and as `runlog.read_config`.
    """
    config = run_folder.read_config(folder) or {"identity": {}}
    if "prune_img_size" in config["identity"]:
        raise ValueError(f"{folder}: with --prune_img_size errors are of two image sizes, which do not compare; see print_acc.py")
    return config


def each_image(
    folder, config: dict, unreadable: list, only: Collection[int] | None = None, loss: str | None = None
) -> Iterator[tuple[list[int], Scored]]:
    """(keys of the candidates, the image, unweighted) of every readable record, one at a time: a run may not fit into memory.

    unreadable: where the names of records that do not count go, with the reason; only: indices to look at, None: all of them;
    loss: of a DiT's numbers (default: the run's own). Raises ValueError for a loss that would change nothing.
    """
    requested, loss, keys = loss, loss or config["identity"].get("loss", "l2"), _all_keys(config)
    records, rules = run_folder.list_records(folder), schema.Rules(config, folder)
    for index in sorted(records if only is None else records.keys() & set(only)):
        path, record = records[index], run_folder.load_record(records[index], unreadable, rules)
        if record is None:
            continue
        keys = keys or _candidates(record)
        partial = config.get("partial") and set(_candidates(record)) <= set(keys)
        if _candidates(record) != keys and not partial:
            unreadable.append(f"{path.name} (it is about other candidates)")
            continue
        if requested and "classes" not in record:
            raise ValueError(f"--loss {requested}: the records of {folder} hold one loss, {loss}: leave the option out")
        yield keys, _scored(index, record, loss, keys)


def weighted(image: Scored, weights: LevelWeights | None) -> Scored:
    """The image with errors as they are compared. Sums stay as they are: they are none of a run with weights, and no grid.

    Raises ValueError for errors at levels that the weights lack.
    """
    if weights is None or image.errors is None:
        return image
    if not 0 <= image.t.min() <= image.t.max() < weights.about["n_levels"]:
        raise ValueError(f"image {image.index} has errors at other levels than the {weights.about['n_levels']} of its model")
    errors = tuple(level_weights.weighted(weights, e, image.t[: len(e)]) for e in image.errors)
    return replace(image, errors=errors, means=means_of(errors))


def check_full(run: Run, uneven: bool = False) -> None:
    """Raises ValueError, with the flags that would have kept them, when not all errors of all candidates are there, and for one
    that is not finite. uneven: images may have candidates of their own, if all have as many."""
    if run.kept == "sums":
        raise ValueError(f"{run.folder} kept sums only: run it again with --save_errors (and another --extra)")
    if run.config.get("partial") and not uneven:
        raise ValueError(f"{run.folder} did not try all candidates on every image, so it has no grid of all errors: give a run "
                         "with --strategy stages or race where all compete for every image, so without --shortlist")  # fmt: skip
    if not (_tried_alike(run) if uneven else run.kept == "full"):
        raise ValueError(
            f"{run.folder} eliminated candidates: run it again with --to_keep 1 --n_samples N, which keeps all errors"
        )
    if not all(np.isfinite(image.means[image.counts > 0]).all() for image in run.images):
        raise ValueError(f"{run.folder} holds errors that are not finite")


def _tried_alike(run: Run) -> bool:
    """Whether nobody who was tried was dropped, and every image tried as many."""
    tried = [image.counts[image.counts > 0] for image in run.images]
    return run.strategy.KEEPS_GRID and all(n.min() == n.max() for n in tried) and len({len(n) for n in tried}) == 1


def grid_of(run: Run, uneven: bool = False) -> Grid:
    """uneven: also of a run whose images have candidates of their own. Raises ValueError as `check_full`."""
    check_full(run, uneven)
    order = np.argsort(run.images[0].t, kind="stable")
    rows = np.stack([np.flatnonzero(image.counts) for image in run.images])
    pairs = zip((image.errors or () for image in run.images), rows, strict=True)  # none was refused
    errors = np.stack([np.stack([kept[row] for row in tried])[:, order] for kept, tried in pairs])
    labels = np.array([image.label for image in run.images])
    some = rows if run.config.get("partial") else None
    return Grid(errors, run.images[0].t[order], run.class_of, labels, run.n_levels, run.guided, some)


def best_row(image: Scored, class_of: list[int], label: int) -> int:
    """The row of a class that survived longest, of several the one with the lowest error, the lower row at a tie."""
    rows = [row for row, c in enumerate(class_of) if c == label]
    return min(rows, key=lambda row: (-image.counts[row], image.means[row], row))


def _candidates(record: dict) -> list[int]:
    return record["classes"].tolist() if "classes" in record else list(record["errors"])


def _all_keys(config: dict) -> list[int]:
    """All keys of a run whose records lack candidates that were never tried; none where a record has them all."""
    if not config.get("partial"):
        return []
    return config["identity"].get("classes") or list(range(len(config["candidates"]["labels"])))


def _rounds(record: dict, keys: list[int]) -> dict[int, int] | None:
    """Row -> round in which a race dropped it."""
    rows = {key: row for row, key in enumerate(keys)}
    return {rows[key]: number for key, number in record["fell"].items()} if record.get("fell") is not None else None


def _scored(index: int, record: dict, loss: str, keys: list[int]) -> Scored:
    about = {"index": index, "label": record["label"], "pred": record["pred"], "seconds": record.get("seconds"),
             "evaluations": run_folder.outcome(record).evaluations, "dropped": _rounds(record, keys)}  # fmt: skip
    if "classes" not in record:
        tried = {key: candidate["pred_errors"].float().numpy() for key, candidate in record["errors"].items()}
        errors = tuple(tried.get(key, NEVER) for key in keys)
        t = max((candidate["t"].numpy() for candidate in record["errors"].values()), key=len)
    else:
        t = record["t"].numpy()
        if "terms" not in record:
            means = (record["sums"][:, scores.TERMS[loss]] / len(t)).numpy()
            return Scored(t=t, means=means, counts=np.full(len(means), len(t)), errors=None, **about)
        errors = tuple(scores.pick_term(loss, record["terms"], record["t"]).numpy())
    return Scored(t=t, means=means_of(errors), counts=np.array([len(e) for e in errors]), errors=errors, **about)


def classes(folder, config: dict, keys: list[int], prompt_path=None) -> tuple[list[int], dict[int, str]]:
    """The label that each candidate stands for, and the names of labels: from config.json, else from a prompt CSV."""
    if "candidates" in config:
        class_of, names = config["candidates"]["labels"], config["candidates"]["names"]
    elif prompt_path:
        table = prompts.read_prompts(prompt_path)
        class_of, names = table.classidx, table.classnames
    else:
        return keys, {key: str(key) for key in keys}
    if len(class_of) != len(keys):
        source = prompt_path or Path(folder) / "config.json"
        raise ValueError(f"{source} names {len(class_of)} candidates and the records {len(keys)}")
    return class_of, dict(zip(class_of, names, strict=True))
