"""Level weights: each level's errors are multiplied by a weight before candidates are compared. Needs numpy, reads no run.

`analysis.level_fit` fits them. Records keep errors as they are; a run's config.json holds its weights, for whoever reads it.
"""

import json
import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion import files
from diffusion.elimination import NEVER, append_errors, relay
from diffusion.settings import ABLATIONS

DEGREE = 3  # of the polynomial
MOST = 10.0  # of a coefficient, either way: no weight leaves float32
MOST_LEVELS = 1_000_000
BELONGS_TO = ("weights", "loss", "n_levels", "error_space", "levels", "img_size")  # what a fit is of; weights: the model's
MAY_BELONG_TO = (*BELONGS_TO, *ABLATIONS)


def curve(coefficients, n_levels: int) -> np.ndarray:
    """Weights float64 [n_levels], their mean 1: w(t) = c exp(a1 u + a2 u^2 + a3 u^3), where u is t scaled to -1..1."""
    u = np.linspace(-1, 1, n_levels)
    exponent = sum(a * u**power for power, a in enumerate(coefficients, 1))
    weights = np.exp(exponent - exponent.max())
    return weights / weights.mean()


@dataclass(frozen=True)
class LevelWeights:
    """coefficients: a1, a2, a3 of `curve`; n: images that they were fitted on; about: what they belong to, by BELONGS_TO; path:
    of their file."""

    coefficients: tuple[float, ...]
    n: int
    about: dict
    path: str | None = None

    @classmethod
    def of(cls, content: Mapping, path: str | None = None) -> "LevelWeights":
        """Of what `as_json` gave. Raises ValueError for anything else."""
        if set(content) != {"coefficients", "n", "about"}:
            raise ValueError("it does not hold coefficients, n, about")
        found, n, about = content["coefficients"], content["n"], content["about"]
        if not (isinstance(found, list) and len(found) == DEGREE and all(map(_is_coefficient, found))):
            raise ValueError(f"coefficients must be {DEGREE} numbers from {-MOST:g} to {MOST:g}, not {json.dumps(found)[:60]}")
        if type(n) is not int or n < 1:
            raise ValueError(f"{n!r} is no number of images")
        if not isinstance(about, dict) or not set(BELONGS_TO) <= set(about) <= set(MAY_BELONG_TO):
            raise ValueError(f"about does not hold {', '.join(BELONGS_TO)}")
        if type(about["n_levels"]) is not int or not 1 <= about["n_levels"] <= MOST_LEVELS:
            raise ValueError(f"{about['n_levels']!r} is no number of levels")
        return cls(tuple(map(float, found)), n, about, path)

    @classmethod
    def read(cls, path: str) -> "LevelWeights":
        """Raises ValueError, one line, for a file that holds none."""
        try:
            return cls.of(files.read_json(path), path)
        except (OSError, ValueError) as error:
            told = files.one_line(error)
            raise ValueError(f"--level_weights {path} holds no weights of scripts/fit_weights.py: {told}") from None

    def as_json(self) -> dict:
        return {"coefficients": list(self.coefficients), "n": self.n, "about": self.about}

    def write(self, path) -> None:
        """JSON, whole or absent. Raises OSError where it cannot be written."""
        files.write_text(path, json.dumps(self.as_json(), indent=1) + "\n")

    def check(self, about: Mapping) -> None:
        """Raises ValueError where they belong to something else than this, by MAY_BELONG_TO."""
        there = self.about
        told = [f"{n} ({there.get(n)} there, {about.get(n)} now)" for n in MAY_BELONG_TO if there.get(n) != about.get(n)]
        if told:
            raise ValueError(f"--level_weights {self.path} was fitted on a run of other settings: {', '.join(told)}; fit them on "
                             "one of these (scripts/fit_weights.py), or leave it out")  # fmt: skip

    @property
    def identity(self) -> str:
        """Tells two sets of weights of one model apart."""
        return files.fingerprint(self.coefficients)

    @property
    def name(self) -> str:
        """For run folders."""
        return f"weights{self.identity[:6]}"

    @cached_property
    def table(self) -> np.ndarray:
        """float32 [n_levels]."""
        return curve(self.coefficients, self.about["n_levels"]).astype(np.float32)


def _is_coefficient(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= MOST


def belonging(identity: Mapping, loss: str, n_levels: int, error_space: str) -> dict:
    """What weights belong to, of a run with this identity: a value for each of BELONGS_TO, None where it does not say, and for
    those of the others that it says."""
    known = dict(identity) | {"loss": loss, "n_levels": n_levels, "error_space": error_space}
    return {name: known.get(name) for name in MAY_BELONG_TO if name in BELONGS_TO or name in known}


def of_config(config: Mapping, folder) -> LevelWeights | None:
    """Those that the run in this folder was made with, by its config.json. Raises ValueError for what no run writes."""
    saved = config.get("level_weights")
    try:
        return None if saved is None else LevelWeights.of(saved)
    except ValueError as error:
        raise ValueError(f"{folder}: level_weights in config.json are none of a run: {error}") from None


def weighted(weights: LevelWeights | None, errors, t) -> Any:
    """Errors [..., n] at levels t [n] as they are compared: float32, times the weights; themselves without any."""
    return errors if weights is None else np.asarray(errors, np.float32) * weights.table[t]


def by_weighted_errors(elimination: Generator, weights: LevelWeights, t) -> Generator:
    """An elimination that compares weighted errors; the Outcome holds the errors that it was sent, unweighted. t: int64 [S],
    levels of all pairs in order of evaluation."""
    unweighted: dict[int, np.ndarray] = {}

    def ask(request):
        rows, pairs = request
        errors = np.asarray((yield request), np.float32)
        unweighted.update((row, NEVER) for row in rows if row not in unweighted)
        append_errors(unweighted, rows, errors)
        return weighted(weights, errors, t[pairs])

    outcome = yield from relay(elimination, ask)
    return outcome._replace(errors={row: unweighted.get(row, NEVER) for row in outcome.errors})
