"""Limits beyond which a race may drop a candidate, learned from a run that kept all errors. Labels play no part."""

from typing import NamedTuple

import numpy as np

from diffusion.analysis.replay import columns_of
from diffusion.analysis.tables import Grid
from diffusion.strategy import Race, race, schedule
from diffusion.strategy.race import NEAREST, GapFit, GapRule

SHIFTS = (schedule.CENTRED, 0.0, 0.35, 0.6, 0.85)  # orders of timesteps that every image is raced in; the first is that of a run


def fit_limits(grid: Grid, target: float, about: dict) -> GapFit:
    """Limits after every round: a multiple of how far the gap of a close rival is off by then, as a root mean square over images.

    target: share of races that the winner of the whole grid survives, over images and SHIFTS; the smallest multiple that does
    this. Raises ValueError for fewer than two candidates, errors that do not differ, and levels that are no race's grid.
    """
    n, candidates = len(set(grid.t.tolist())), len(grid.class_of)
    if candidates < 2:
        raise ValueError("one candidate is no race: give a run with two or more")
    ends = schedule.growing_rounds(len(grid.t), Race.min_samples, Race.round_size)
    orders = [schedule.race_plan(n, grid.plan.n_trials, grid.n_levels, shift).t for shift in SHIFTS]
    seen = [_seen(image, t, ends) for t in orders for image in grid.errors[:, :, columns_of(grid, t)]]
    rounds = [_Seen(*map(np.array, zip(*of_round, strict=True))) for of_round in zip(*seen, strict=True)]
    variances = [float(r.variance.mean()) for r in rounds]
    units = [GapRule.unit(r.variance, usual, end) for r, usual, end in zip(rounds, variances, ends, strict=True)]
    if not all(variances):
        raise ValueError("the errors of its candidates do not differ: there is nothing to fit")
    off = [np.sqrt(((r.off / unit[:, None]) ** 2).mean()) for r, unit in zip(rounds, units, strict=True)][:-1]
    lag = [r.lag / (unit * o) for r, unit, o in zip(rounds[:-1], units[:-1], off, strict=True)]
    multiple = np.quantile(np.max(lag, axis=0), target, method="higher") if lag else 0
    multiple *= 1 + 1e-4  # the race that it is taken from would lie on the limit, and the last bits of its errors decide
    limits = [float(multiple * o) for o in off] + [0.0]  # of all pairs nothing is left to chance
    return GapFit(
        n, grid.plan.n_trials, tuple(ends), tuple(limits), tuple(variances), candidates, target, len(grid.labels), about
    )


class _Seen(NamedTuple):
    """What is seen after a round, of images times orders [N]. lag: how far the winner of the whole grid lies above the best, [N];
    off: by how much the gaps of its nearest rivals are wrong, [N,R]; variance: of `race.gaps_and_variance`, [N]."""

    lag: np.ndarray
    off: np.ndarray
    variance: np.ndarray


def _seen(image, t, ends) -> list[tuple]:
    """Lag, off and spread of one image [K,S] in one order after every round."""
    image, rounds = image.astype(np.float64), []
    means = image.mean(1)
    winner, *rivals = np.argsort(means, kind="stable")[: NEAREST + 1]
    for end in ends:
        gaps, variance = race.gaps_and_variance(image[:, :end], t)
        off = (gaps[rivals] - gaps[winner]) - (means[rivals] - means[winner])
        rounds.append((gaps[winner], off, variance))
    return rounds
