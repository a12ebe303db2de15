"""What a file has to hold to be a record, or a record of this run, or a run's config.json: what loads need not be one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def check_classification(record: Any) -> dict:
    """A record of every candidate's errors, or of a DiT's with numbers over a grid, ours or the reference's; labels as integers.

    Raises KeyError, TypeError or ValueError for anything else.
    """
    if not isinstance(record, dict):
        raise TypeError(f"holds a {type(record).__name__}, not the record of an image")
    record = record | {"pred": int(record["pred"]), "label": int(record["label"])}
    if "classes" in record:
        _check_grid(record)
    else:
        _check_errors(record["errors"])
    _check_race(record)
    return record


def _check_errors(errors: Any) -> None:
    """key -> t int64 [n] and pred_errors float32 [n] of every candidate."""
    if not isinstance(errors, dict) or not errors:
        raise TypeError("no errors of candidates")
    for key, candidate in errors.items():
        t, values = candidate["t"], candidate["pred_errors"]
        if t.ndim != 1 or t.shape != values.shape or not len(t):
            raise ValueError(f"candidate {key} has {list(values.shape)} errors at {list(t.shape)} timesteps")
        if not values.is_floating_point():
            raise TypeError(f"candidate {key} has errors of {values.dtype}")


def _check_race(record: dict) -> None:
    """Evaluations, and candidate -> round in which it was dropped, where a record says so."""
    fell = record.get("fell") or {}
    if not isinstance(fell, dict) or not set(fell) <= set(record.get("errors", ())):
        raise ValueError("rounds of other candidates than it has errors of")
    if not all(type(number) is int for number in (*fell.values(), record.get("evaluations", 0))):
        raise TypeError("rounds or evaluations are no integers")


def _check_grid(record: dict) -> None:
    """classes int64 [K], t int64 [S]; sums float64 [K,4], terms float32 [K,S,4] or both."""
    k, s = len(record["classes"]), len(record["t"])
    parts = {name: shape for name, shape in (("sums", (k, 4)), ("terms", (k, s, 4))) if name in record}
    if not (parts and k and s):
        raise KeyError("sums")
    for name, shape in parts.items():
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
        found = record["classes"].tolist() if "classes" in record else list(record["errors"])
        wanted = list(self.keys if keys is None else keys)
        if record["label"] != label:
            raise ValueError(f"its label is {record['label']}, the data set's {label}")
        known = set(found) <= set(wanted) if self.partial else found == wanted
        if not known or record["pred"] not in self.class_of:
            raise ValueError("it is about other candidates")
        parts = [(record["t"], record["sums"])] if "classes" in record else _parts(record)
        if any(t.tolist() != self.t[: len(t)].tolist() for t, _ in parts):
            raise ValueError("it is about other timesteps")
        if not all(values.isfinite().all() for _, values in parts):
            raise ValueError("its errors are not finite")


def _parts(record: dict) -> list[tuple]:
    return [(candidate["t"], candidate["pred_errors"]) for candidate in record["errors"].values()]


def check_pairs(record: Any, names: Sequence[str]) -> list:
    """What an example's record holds under these names. Raises TypeError or KeyError for another kind of record."""
    if not isinstance(record, dict):
        raise TypeError(f"holds a {type(record).__name__}, not the record of an example")
    return [record[name] for name in names]


def check_tensor(values: Any, shape: tuple[int, ...] | None = None):
    """The float tensor of a file, float32; of this shape where that is known, and then finite. Raises TypeError or ValueError."""
    import torch

    if not torch.is_tensor(values) or not values.is_floating_point():
        raise TypeError(f"holds {getattr(values, 'dtype', type(values).__name__)}, not errors")
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


def _wrong_types(found: dict, wanted: dict, where: str = "") -> str | None:
    """The first of these keys whose value has another type. Null is what an option has that was not given."""
    for name, kind in wanted.items():
        value = found.get(name)
        fits = (value is None and where) or isinstance(value, kind) or (kind is float and type(value) is int)
        if name in found and (not fits or (type(value) is bool and kind is int)):
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
