"""Level weights: each level's errors are multiplied by a weight before candidates are compared. Needs numpy, reads no run.

`analysis.level_fit` fits them. Records keep errors as they are; a run's config.json holds its weights, for whoever reads it.
"""

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from diffusion.settings import ABLATIONS, Identity
from diffusion.strategy.base import Elimination
from diffusion.strategy.elimination import NEVER, Errors, Floats, Request, append_errors, relay
from diffusion.strategy.fits import LATER, SETTINGS, Fitted
from diffusion.utils import files

DEGREE = 3  # of the polynomial
MOST = 10.0  # of a coefficient, either way: no weight leaves float32
MOST_LEVELS = 1_000_000


def curve(coefficients: Sequence[float], n_levels: int) -> Floats:
    """Weights float64 [n_levels], their mean 1: w(t) = c exp(a1 u + a2 u^2 + a3 u^3), where u is t scaled to -1..1."""
    u = np.linspace(-1, 1, n_levels)
    exponent = sum((a * u**power for power, a in enumerate(coefficients, 1)), np.zeros(n_levels))
    weights = np.exp(exponent - exponent.max())
    return weights / weights.mean()


@dataclass(frozen=True)
class LevelWeights(Fitted):
    """coefficients: a1, a2, a3 of `curve`; n: images that they were fitted on; about: of `Fitted`, where error_space is also said
    if it is the model's own; path: of their file."""

    coefficients: tuple[float, ...]
    n: int
    about: Identity
    path: str | Path | None = field(default=None, compare=False)

    FLAG: ClassVar = "--level_weights"
    SCRIPT: ClassVar = "scripts/fit_weights.py"
    BELONGS_TO: ClassVar = ("n_levels", *(name for name in SETTINGS if name != "level_weights"))  # they are of unweighted errors
    ALWAYS_SAID: ClassVar = tuple(name for name in BELONGS_TO if name not in (*LATER, *ABLATIONS))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "LevelWeights":
        weights = super().of(content)
        return replace(weights, coefficients=tuple(map(float, weights.coefficients)))

    @classmethod
    def read(cls, path: str | Path, flag: str | None = None) -> "LevelWeights":
        return replace(super().read(path, flag), path=path)

    def check_content(self) -> None:
        super().check_content()
        values = self.coefficients
        if not (isinstance(values, list | tuple) and len(values) == DEGREE and all(map(_is_coefficient, values))):
            raise ValueError(f"coefficients must be {DEGREE} numbers from {-MOST:g} to {MOST:g}, not {json.dumps(values)[:60]}")
        if type(self.n) is not int or self.n < 1:
            raise ValueError(f"{self.n!r} is no number of images")
        if not set(self.ALWAYS_SAID) <= set(self.about) <= set(self.BELONGS_TO):
            raise ValueError(f"about does not hold {', '.join(self.ALWAYS_SAID)}")
        n_levels = self.about["n_levels"]
        if type(n_levels) is not int or not 1 <= n_levels <= MOST_LEVELS:
            raise ValueError(f"{n_levels!r} is no number of levels")

    def check(self, about: Mapping[str, Any]) -> None:
        """Raises ValueError as `check_settings`. about: `belonging` of the run."""
        self.check_settings(about, self.path)

    @property
    def identity(self) -> str:
        """Tells two sets of weights of one model apart."""
        return files.fingerprint(self.coefficients)

    @property
    def name(self) -> str:
        """For run folders."""
        return f"weights{self.identity[:6]}"

    @cached_property
    def table(self) -> Errors:
        """float32 [n_levels]."""
        return curve(self.coefficients, self.about["n_levels"]).astype(np.float32)


def _is_coefficient(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MOST


def belonging(identity: Mapping[str, Any], loss: str, n_levels: int, error_space: str) -> Identity:
    """What weights of a run with this identity belong to. error_space: that of its errors, also where it is the model's own."""
    known = {"loss": loss, "n_levels": n_levels, "error_space": error_space}
    return LevelWeights.belonging({**identity, **known})


def of_config(config: Mapping[str, Any], folder: str | Path) -> LevelWeights | None:
    """Those that the run in this folder was made with, by its config.json. Raises ValueError for what no run writes."""
    saved = config.get("level_weights")
    try:
        return None if saved is None else LevelWeights.of(saved)
    except ValueError as error:
        raise ValueError(f"{folder}: level_weights in config.json are none of a run: {error}") from None


def weighted(weights: LevelWeights | None, errors: Errors, t: npt.NDArray[np.int64]) -> Errors:
    """Errors [..., n] at levels t [n] as they are compared: float32, times the weights; themselves without any."""
    return errors if weights is None else np.asarray(errors, np.float32) * weights.table[t]


def by_weighted_errors(elimination: Elimination, weights: LevelWeights, t: npt.NDArray[np.int64]) -> Elimination:
    """An elimination that compares weighted errors; the Outcome holds the errors that it was sent, unweighted. t: int64 [S],
    levels of all pairs in order of evaluation."""
    unweighted: dict[int, Errors] = {}

    def ask(request: Request) -> Generator[Request, npt.ArrayLike, npt.ArrayLike]:
        rows, pairs = request
        errors = np.asarray((yield request), np.float32)
        unweighted.update((row, NEVER) for row in rows if row not in unweighted)
        append_errors(unweighted, rows, errors)
        return weighted(weights, errors, t[pairs])

    outcome = yield from relay(elimination, ask)
    return outcome._replace(errors={row: unweighted.get(row, NEVER) for row in outcome.errors})
