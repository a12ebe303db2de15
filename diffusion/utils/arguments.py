"""Checks of what the Python functions are given; each raises ValueError with the argument's name."""

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")

LEAST_AND_MOST = {"seed": (0, 2**64 - 1), "batch_size": (1, 2**31), "img_size": (1, 2**16)}


def check_choices(**choices: tuple[object, Iterable[str]]) -> None:
    """Each argument as (value, all that it may be)."""
    for name, (value, known) in choices.items():
        if value not in list(known):
            raise ValueError(f"{name} {value!r} is none of {', '.join(known)}")


def check_numbers(**numbers: int | None) -> None:
    """Integers within their limits; None is the model's own size."""
    for name, value in numbers.items():
        low, high = LEAST_AND_MOST[name]
        if (value is not None or name != "img_size") and (type(value) is not int or not low <= value <= high):
            raise ValueError(f"{name} {value!r} is no integer from {low} to {high}")


def list_of(name: str, given: Iterable[Any] | None, kind: type[Value]) -> list[Value]:
    """A list of one or more, each of this type, numpy's scalars as Python's; no blank text."""
    values = None if given is None or isinstance(given, str | bytes) else list(given)
    if not values:
        raise ValueError(f"{name} {given!r}: give a list of them")
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    wrong = [value for value in values if type(value) is not kind or (isinstance(value, str) and not value.strip())]
    if wrong:
        raise ValueError(f"{name} has {wrong[0]!r}: give a list of {'texts' if kind is str else 'integers'}")
    return values


def labels_of(given: Iterable[Any] | None) -> list[int] | None:
    """Integers from 0, or None."""
    labels = None if given is None else list_of("labels", given, int)
    if labels and min(labels) < 0:
        raise ValueError(f"labels has {min(labels)}: they count from 0")
    return labels
