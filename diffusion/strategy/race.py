"""The race, on tables of numbers: candidates are dropped when their error is clearly above the best one's, by two rules."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from diffusion.settings import Identity
from diffusion.strategy.elimination import NEVER, Errors, Floats, Request, append_errors, survivors
from diffusion.strategy.fits import Fitted

Timesteps = npt.NDArray[np.int64]
Variance = TypeVar("Variance", float, Floats)
Rule = Callable[[Floats], npt.NDArray[np.bool_]]  # errors [A,n] of A rows on the first n pairs -> [A], those that are dropped
Enter = Callable[[dict[int, Floats], int], list[int]]  # (errors [n] of all rows that were tried, the row ahead) -> who enters
Racing = Generator[Request, npt.ArrayLike, tuple[dict[int, Errors], int, dict[int, int]]]


def run_race(class_of: list[int], ends: Sequence[int], clearly_worse: Rule) -> Racing:
    """A race, as a generator of requests (`elimination`): candidates are dropped, round by round, until one class remains or no
    pair is left.

    All candidates see the same (timestep, noise) pairs, so their errors are strongly correlated and only paired differences count
    (Clark and Jaini 2023, section 3; Baharav and Tse 2019, arXiv 1906.04356, on shared samples). class_of: label of each row;
    ends: how many pairs have been seen after each round; clearly_worse: from float64 [A,n], the errors of A rows on the first n
    pairs, to those that are dropped, bool [A], never all. A row may be dropped for a better one of its own class, as it can no
    longer decide anything. Returns every candidate's errors {row: float32 [n]} in order of evaluation, the winning row (lowest
    mean, the lower row at a tie), and {row: the round in which it was dropped}.
    Raises FloatingPointError when an error is not finite.
    """
    alive = list(range(len(class_of)))
    errors = dict.fromkeys(alive, NEVER)
    dropped: dict[int, int] = {}
    seen = 0
    for number, end in enumerate(ends, 1):
        if seen and len({class_of[row] for row in alive}) == 1:  # else one class alone would have no error
            break
        append_errors(errors, alive, (yield alive, slice(seen, end)))
        values = np.stack([errors[row] for row in alive]).astype(np.float64)
        worse: Iterable[bool] = clearly_worse(values) if len(alive) > 1 else [False]
        dropped |= {row: number for row, goes in zip(alive, worse, strict=True) if goes}
        alive, seen = [row for row in alive if row not in dropped], end
    return errors, survivors({row: errors[row].mean(dtype=np.float64) for row in alive}, 1)[0], dropped


def run_open_race(class_of: list[int], ends: Sequence[int], clearly_worse: Rule, first: Sequence[int], enter: Enter) -> Racing:
    """A race that begins with the rows `first`, and which others enter as it goes on.

    enter(errors, best) is told the errors of all rows that were tried, {row: float64 [n]}, and which of those still in the race
    is ahead, and returns the rows that enter next; when there are none, nobody will any more. Who enters is first tried on the
    pairs that the others have seen. All else is as of `run_race`; rows that never entered have no errors.
    """
    alive, closed = list(first), False
    errors: dict[int, Errors] = {}
    dropped: dict[int, int] = {}
    for number, end in enumerate(ends, 1):
        if closed and len({class_of[row] for row in alive}) == 1:
            break
        yield from _catch_up(errors, alive, end)
        values = np.stack([errors[row] for row in alive]).astype(np.float64)
        worse: Iterable[bool] = clearly_worse(values) if len(alive) > 1 else [False]
        best = alive[int(values.mean(1).argmin())]
        new = [] if closed else enter({row: values.astype(np.float64) for row, values in errors.items()}, best)
        dropped |= {row: number for row, goes in zip(alive, worse, strict=True) if goes}
        alive, closed = sorted([row for row in alive if row not in dropped] + new), not new
    while not closed:  # all pairs were seen
        yield from _catch_up(errors, alive, ends[-1])
        best = survivors({row: errors[row].mean(dtype=np.float64) for row in alive}, 1)[0]
        new = enter({row: values.astype(np.float64) for row, values in errors.items()}, best)
        alive, closed = sorted(alive + new), not new
    winner = survivors({row: errors[row].mean(dtype=np.float64) for row in alive}, 1)[0]
    return dict(sorted(errors.items())), winner, dropped


def _catch_up(errors: dict[int, Errors], rows: list[int], end: int) -> Generator[Request, npt.ArrayLike, None]:
    """Requests every row's errors up to so many pairs, those together that have seen as many."""
    seen = {row: len(errors.setdefault(row, NEVER)) for row in rows}
    for n in sorted(set(seen.values()) - {end}):
        behind = [row for row in rows if seen[row] == n]
        append_errors(errors, behind, (yield behind, slice(n, end)))


# ---------------------------------------------------------------- means over the whole grid, from a beginning of the order


def cell_weights(t: Timesteps, n: int) -> Floats:
    """What the first n of all pairs stand for, float64 [n], of sum 1: each for the part of the grid that is nearest to its
    timestep, so that a beginning that leans to one side does not.

    t: [S] timesteps of all pairs in order of evaluation, an even grid. With all pairs seen every weight is 1/S.
    """
    levels = np.unique(t)
    half = (levels[-1] - levels[0]) / max(2 * (len(levels) - 1), 1) or 0.5
    order = np.argsort(t[:n], kind="stable")
    seen = np.asarray(t, np.float64)[order]
    edges = np.concatenate([[levels[0] - half], (seen[1:] + seen[:-1]) / 2, [levels[-1] + half]])
    weights = np.empty(n)
    weights[order] = np.diff(edges)
    return weights / weights.sum()


def neighbour_variance(values: Floats, t: Timesteps) -> Floats:
    """Variance of values [..., n] at the timesteps t [n] around a smooth curve, from differences of neighbours in t.

    A beginning of a spread order is a systematic sample of a curve, so what counts is not how far values spread over t (von
    Neumann 1941; Wolter 2007, Introduction to Variance Estimation, section 8.2). Needs two values or more.
    """
    steps = np.diff(values[..., np.argsort(t, kind="stable")], axis=-1)
    return (steps**2).sum(-1) / (2 * (values.shape[-1] - 1))


def neighbour_freedom(n: int) -> float:
    """Degrees of freedom of `neighbour_variance` of n normal values: 2 mean^2 / variance of it, fewer than n - 1 (von Neumann et
    al. 1941, eq. 8)."""
    return 2 * (n - 1) ** 2 / (3 * n - 4)


def drawn(variance: Variance, usual: Variance | float, prior: float, n: int) -> Variance:
    """Variances of n pairs each, drawn towards a usual one that counts as `prior` degrees of freedom (Smyth 2004)."""
    freedom = neighbour_freedom(n)
    return (prior * usual + freedom * variance) / (prior + freedom)


# ---------------------------------------------------------------- what is clearly worse


def check_alpha(alpha: float) -> None:
    """Raises ValueError for what is no level of a race."""
    if not 0 < alpha < 1:
        raise ValueError(f"--alpha {alpha} must lie between 0 and 1")


@dataclass(frozen=True)
class LevelRule:
    """Tests of paired differences from the best, whose levels add up to alpha over the whole race.

    t: [S], timesteps of all pairs in order of evaluation; ends: pairs seen after each round; alpha: the chance that the candidate
    which wins on all pairs is dropped, where nothing is known of the candidates. It is shared evenly by the rounds, and within
    one by the comparisons with the best (Bonferroni, twice). A difference's variance is that of its neighbours in t, drawn
    towards the mean over all rivals by PRIOR degrees of freedom (Smyth 2004, moderated t), as a few pairs alone say little.
    """

    t: np.ndarray
    ends: Sequence[int]
    alpha: float

    PRIOR = 8

    def __call__(self, values: Floats) -> npt.NDArray[np.bool_]:
        n, total = values.shape[1], len(self.t)
        weights = cell_weights(self.t, n)
        means = values @ weights
        best = int(means.argmin())
        if n == total:  # nothing is left to chance
            return means > means[best]
        rivals = np.arange(len(values)) != best
        variance = np.zeros(len(values))
        variance[rivals] = self._moderated(values[rivals] - values[best], n)
        error = np.sqrt((1 - n / total) * variance * (weights**2).sum())
        return means - means[best] > self._quantile(n, rivals.sum()) * error

    def _moderated(self, differences: Floats, n: int) -> Floats:
        variances = neighbour_variance(differences, self.t[:n])
        return drawn(variances, variances.mean(), self.PRIOR, n)

    def _quantile(self, n: int, comparisons: int) -> float:
        from scipy.special import stdtrit

        level = self.alpha / (len(self.ends) - 1 or 1) / comparisons  # the last round tests nothing
        return -stdtrit(self.PRIOR + neighbour_freedom(n), level)


NEAREST = 3  # rivals that say how far an estimate may be off: those far from the best are no danger


def gaps_and_variance(values: Floats, t: Timesteps) -> tuple[Floats, float]:
    """How far each of A rows lies above the best, float64 [A], and the variance of a difference from the best, the mean of
    `neighbour_variance` over the NEAREST rivals. values: [A,n], errors on the first n of the pairs whose timesteps are t [S]."""
    n = values.shape[1]
    means = values @ cell_weights(t, n)
    best, *rivals = np.argsort(means, kind="stable")[: NEAREST + 1]
    return means - means[best], float(neighbour_variance(values[rivals] - values[best], t[:n]).mean())


@dataclass(frozen=True)
class GapRule:
    """Whoever lies further above the best than so many units, which were fitted for every number of pairs.

    A unit is the deviation of a difference between close candidates: that of this image, drawn by PRIOR degrees of freedom
    towards that of the images of the fit. t: [S], timesteps of all pairs in order of evaluation; limits: pairs seen after a round
    -> (units, variance on the images of the fit)
    """

    t: np.ndarray
    limits: dict[int, tuple[float, float]]

    PRIOR = 4

    def __call__(self, values: Floats) -> npt.NDArray[np.bool_]:
        n = values.shape[1]
        gaps, variance = gaps_and_variance(values, self.t)
        units, usual = self.limits[n]
        return gaps > units * self.unit(variance, usual, n)

    @classmethod
    def unit(cls, variance: Variance, usual: Variance | float, n: int) -> Variance:
        """The unit for variances on n pairs of one image and of the images of the fit."""
        return np.sqrt(drawn(variance, usual, cls.PRIOR, n))


# ---------------------------------------------------------------- limits that a run has taught


@dataclass(frozen=True)
class GapFit(Fitted):
    """What scripts/fit_race.py writes.

    max_samples, n_trials: timesteps of the grid and noises of each; ends, units, variances: of every round, as of `GapRule`;
    n_candidates: of the run; target: share of its races that the winner of the whole grid was to survive; n_images: how many it
    had; about: of `Fitted`.
    """

    max_samples: int
    n_trials: int
    ends: tuple[int, ...]
    units: tuple[float, ...]
    variances: tuple[float, ...]
    n_candidates: int
    target: float
    n_images: int
    about: Identity

    FLAG: ClassVar = "--race_fit"
    SCRIPT: ClassVar = "scripts/fit_race.py"

    def __post_init__(self) -> None:
        """Raises ValueError or TypeError for a field that no fit can have; lists become tuples."""
        self.check_content()
        for name in ("ends", "units", "variances"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        whole = (self.max_samples, self.n_trials, self.n_candidates, self.n_images, *self.ends)
        if not all(type(value) is int and 0 < value < 2**31 for value in whole):
            raise ValueError("its counts are not whole numbers above 0")
        if not len(self.ends) == len(self.units) == len(self.variances) > 0 or self.ends[0] < 2:
            raise ValueError("it needs as many units and variances as rounds, and two pairs in the first one")
        if self.ends[-1] != self.max_samples * self.n_trials:
            raise ValueError("its last round does not end with its grid")
        if not (type(self.target) in (int, float) and 0 < self.target <= 1):
            raise ValueError(f"{self.target!r} is no share of races")
        if list(self.ends) != sorted(set(self.ends)) or not all(0 <= x < np.inf for x in (*self.units, *self.variances)):
            raise ValueError("its rounds do not grow, or a limit is no number")

    @property
    def limits(self) -> dict[int, tuple[float, float]]:
        """The limits that `GapRule` takes."""
        return dict(zip(self.ends, zip(self.units, self.variances, strict=True), strict=True))

    def check(self, identity: Mapping[str, Any], n_candidates: int, path: str | Path | None = None) -> None:
        """Raises ValueError as `check_settings`, and for a run with far more or far fewer candidates. path: of its file."""
        self.check_settings(identity, path, more=self.about)  # a later version's fit may say more
        if not self.n_candidates / 2 <= n_candidates <= 2 * self.n_candidates:
            raise ValueError(f"{self.where(path)} is of {self.n_candidates} candidates, this run has {n_candidates}: fit it on a "
                             f"run with about as many ({self.SCRIPT})")  # fmt: skip
