"""What a file has to hold to be a record, or a record of this run, or a run's config.json: what loads need not be one."""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.kernel import scores
from diffusion.strategy import STRATEGIES, Grid, level_weights
from diffusion.strategy.elimination import means_of

MOST_LABEL = 2**31  # of labels, keys, rounds and evaluations
ROUNDING = 1e-5  # of the largest mean error, by which means in float32 and float64 may order candidates differently


@dataclass(frozen=True)
class Rules:
    """What a folder's config.json says that holds for each of its records; {} of a run of the reference, which has none."""

    config: Mapping = field(default_factory=dict)
    folder: Path = Path()

    def __post_init__(self):
        _ = self.config and self.weights  # which, if they are none, are no record's fault

    def check(self, record: Any) -> dict:
        """As `check_classification`, and of this run. Raises KeyError, TypeError or ValueError for anything else."""
        record = check_classification(record)
        if self.config:
            if not all((t < self.n_levels).all() for t, _ in _parts(record)):
                raise ValueError(f"it is about other timesteps than the {self.n_levels} of its model")
            self._check_pred(record)
        return record

    @property
    def n_levels(self) -> int:
        return self.config.get("n_levels", 1000)

    @cached_property
    def label_of(self) -> dict[int, int]:
        """Key of a candidate in a record -> its label; empty where nothing follows from the errors."""
        labels = self.config.get("candidates", {}).get("labels", [])
        keys = self.config["identity"].get("classes") or range(len(labels))
        comparable = "prune_img_size" not in self.config["identity"] and len(keys) == len(labels)
        return dict(zip(keys, labels, strict=True)) if comparable else {}

    @cached_property
    def weights(self) -> level_weights.LevelWeights | None:
        return level_weights.of_config(self.config, self.folder)

    def _check_pred(self, record: dict) -> None:
        """The prediction is the class of who was dropped last, of several of whom has the lowest mean error."""
        keys = _keys(record)
        known = STRATEGIES | {Grid.NAME: Grid}
        strategy = known.get(self.config["identity"].get("strategy", Grid.NAME))  # stages and grids do not say
        if not (strategy and strategy.LOWEST_WINS and set(keys) <= self.label_of.keys()):
            return
        counts, means = self._compared(record)
        last = counts == counts.max()
        theirs = last & np.array([self.label_of[key] == record["pred"] for key in keys])
        lowest = means[last].min()
        if not theirs.any() or means[theirs].min() > lowest + ROUNDING * np.abs(means[last]).max():
            raise ValueError("its prediction is not that of its errors")

    def _compared(self, record: dict) -> tuple[np.ndarray, np.ndarray]:
        """int64 [K], float64 [K]: how many errors each candidate has, and their mean as the run compared it."""
        loss = self.config["identity"].get("loss", "l2")
        if "classes" not in record:
            errors = [level_weights.weighted(self.weights, e.float().numpy(), t.numpy()) for t, e in _parts(record)]
            return np.array([len(e) for e in errors]), means_of(errors)
        counts = np.full(len(record["classes"]), len(record["t"]))
        if "terms" in record:
            terms = scores.pick_term(loss, record["terms"], record["t"]).numpy()
            return counts, means_of([level_weights.weighted(self.weights, e, record["t"].numpy()) for e in terms])
        return counts, record["sums"][:, scores.TERMS[loss]].double().numpy() / counts


def check_classification(record: Any) -> dict:
    """A record of every candidate's errors, or of a DiT's with numbers over a grid, ours or the reference's; labels as integers.

    Raises KeyError, TypeError or ValueError for anything else.
    """
    if not isinstance(record, dict):
        raise TypeError(f"holds a {type(record).__name__}, not the record of an image")
    record = record | {name: _whole(record[name], name, -1) for name in ("pred", "label")}
    if "classes" in record:
        _check_grid(record)
    else:
        _check_errors(record["errors"])
    _check_race(record)
    seconds = record.get("seconds")
    if not (seconds is None or (type(seconds) in (int, float) and 0 <= seconds < math.inf)):
        raise TypeError("seconds are no time")
    return record


def _whole(value: Any, what: str, low: int = 0) -> int:
    """An integer, Python's, numpy's or a tensor's without dimensions; no truth value, text or float."""
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError):
        raise TypeError(f"{what} is a {type(value).__name__}, no integer") from None
    if isinstance(value, bool) or not low <= number < MOST_LABEL:
        raise ValueError(f"{what} is {str(value)[:20]}")
    return number


def _plain(values: Any, what: str, floating: bool):
    """Values in memory, one after another. Raises TypeError for other tensors, ValueError for what is no error or timestep."""
    import torch

    if not torch.is_tensor(values) or values.layout != torch.strided or values.device.type != "cpu" or values.requires_grad:
        raise TypeError(f"{what} are no plain tensor")
    if values.is_floating_point() != floating or values.is_complex() or values.is_quantized or values.dtype == torch.bool:
        raise TypeError(f"{what} are {values.dtype}")
    return values


def _finite(values: Any, what: str) -> None:
    if not _plain(values, what, True).isfinite().all():
        raise ValueError(f"{what} are not finite")


def _check_t(t: Any) -> None:
    """int64 [n] of levels."""
    if _plain(t, "timesteps", False).ndim != 1 or not len(t):
        raise ValueError(f"timesteps {list(t.shape)}")
    if not 0 <= int(t.min()) <= int(t.max()) < level_weights.MOST_LEVELS:
        raise ValueError("timesteps that no model has")


def _check_errors(errors: Any) -> None:
    """key -> t int64 [n] and pred_errors float32 [n] of every candidate."""
    if not isinstance(errors, dict) or not errors:
        raise TypeError("no errors of candidates")
    for key, candidate in errors.items():
        _whole(key, "a candidate")
        t, values = candidate["t"], candidate["pred_errors"]
        _check_t(t)
        _finite(values, f"errors of candidate {key}")
        if t.shape != values.shape:
            raise ValueError(f"candidate {key} has {list(values.shape)} errors at {list(t.shape)} timesteps")


def _check_race(record: dict) -> None:
    """Evaluations, and candidate -> round in which it was dropped, where a record says so."""
    dropped = record.get("fell") or {}
    if not isinstance(dropped, dict) or not set(dropped) <= set(_keys(record)):
        raise ValueError("rounds of other candidates than it has errors of")
    for number in (*dropped.values(), record.get("evaluations", 0)):
        _whole(number, "rounds or evaluations")


def _keys(record: dict) -> list[int]:
    return record["classes"].tolist() if "classes" in record else list(record["errors"])


def _check_grid(record: dict) -> None:
    """classes int64 [K], t int64 [S]; sums float64 [K,4], terms float32 [K,S,4] or both."""
    classes = _plain(record["classes"], "classes", False)
    _check_t(record["t"])
    k, s = len(classes) if classes.ndim == 1 else 0, len(record["t"])
    parts = {name: shape for name, shape in (("sums", (k, 4)), ("terms", (k, s, 4))) if name in record}
    if not (parts and k):
        raise KeyError("sums")
    for name, shape in parts.items():
        _finite(record[name], name)
        if record[name].shape != shape:
            raise ValueError(f"{name} {list(record[name].shape)} of {k} classes and {s} timesteps")


@dataclass(frozen=True)
class Wanted:
    """What records of a run with several candidates hold. keys: of the rows; class_of: their labels; t: int64 [S] of its plan;
    partial: whether some of the candidates will do."""

    keys: Sequence
    class_of: Sequence[int]
    t: Any
    partial: bool = False

    def check(self, record: dict, label: int, keys: Sequence | None = None) -> None:
        """record: as `check_classification` returns it; label: the data set's; keys: of the rows that compete for it, None:
        all. Raises ValueError for one of another run."""
        present = _keys(record)
        wanted = list(self.keys if keys is None else keys)
        if record["label"] != label:
            raise ValueError(f"its label is {record['label']}, the data set's {label}")
        known = set(present) <= set(wanted) if self.partial else present == wanted
        if not known or record["pred"] not in self.class_of:
            raise ValueError("it is about other candidates")
        if any(t.tolist() != self.t[: len(t)].tolist() for t, _ in _parts(record)):
            raise ValueError("it is about other timesteps")


def _parts(record: dict) -> list[tuple]:
    """(t, errors) of every candidate; of a grid one t, and no errors."""
    if "classes" in record:
        return [(record["t"], None)]
    return [(candidate["t"], candidate["pred_errors"]) for candidate in record["errors"].values()]


def check_pairs(record: Any, names: Sequence[str]) -> list:
    """What an example's record holds under these names: finite errors, or the logit of a contrastive model.

    Raises TypeError, ValueError or KeyError for another kind of record.
    """
    if not isinstance(record, dict):
        raise TypeError(f"holds a {type(record).__name__}, not the record of an example")
    for name in names:
        if type(record[name]) not in (int, float):
            _finite(record[name], name)
    return [record[name] for name in names]


def check_tensor(values: Any, shape: tuple[int, ...] | None = None):
    """The float tensor of a file, float32; of this shape where that is known, and then finite. Raises TypeError or ValueError."""
    values = _plain(values, "errors", True)
    if shape is not None and tuple(values.shape) != tuple(shape):
        raise ValueError(f"it holds {list(values.shape)}, this run {list(shape)}")
    if shape is not None and not values.isfinite().all():
        raise ValueError("its values are not finite")
    return values.float()


# ---------------------------------------------------------------- config.json

PARTS = {"options": dict, "candidates": dict, "versions": dict, "images_expected": int, "n_levels": int,
         "batch_size_found": int, "level_weights": dict, "command": str, "kind": str, "task": str,
         "error_space": str, "partial": bool}  # fmt: skip
NAMED = {"dataset": str, "split": str, "model": str, "strategy": str, "loss": str, "saved": str, "to_keep": list,
         "n_samples": list, "classes": list, "n_trials": int, "t_interval": int, "max_samples": int, "min_samples": int,
         "round_size": int, "seed": int, "alpha": float, "img_size": int, "level_weights": str, "shortlist": str,
         "shortlist_size": int}  # fmt: skip


def wrong_key(config: dict, option_types: dict) -> str | None:
    """What of a config.json could not have been written by a run, in words; None where all can be relied on.

    config: with an identity; option_types: name -> type or types of the options that are read back
    """
    wrong = _wrong_types(config, PARTS) or _wrong_types(config["identity"], NAMED, "identity.")
    wrong = wrong or _wrong_types(config.get("options") or {}, option_types, "options.")
    return wrong or _wrong_candidates(config.get("candidates"))


def _wrong_types(content: dict, wanted: dict, where: str = "") -> str | None:
    """The first of these keys whose value has another type. Null is what an option has that was not given."""
    for name, kind in wanted.items():
        value = content.get(name)
        fits = (value is None and where) or isinstance(value, kind) or (kind is float and type(value) is int)
        if name in content and (not fits or (type(value) is bool and kind is int)):
            return f"{where}{name} is {value!r}"
        if kind is list and not all(type(part) is int for part in value or ()):
            return f"{where}{name} is {value!r}"
    return None


def _wrong_candidates(candidates: dict | None) -> str | None:
    if candidates is None:
        return None
    labels, names = candidates.get("labels"), candidates.get("names")
    if not (isinstance(labels, list) and isinstance(names, list) and len(labels) == len(names) > 0):
        return "candidates need as many labels as names"
    kinds = {type(label) for label in labels}, {type(name) for name in names}
    return None if kinds == ({int}, {str}) else "candidates need integers as labels and text as names"
