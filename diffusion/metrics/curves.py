"""Predictions from some of an image's pairs, ranks of classes, margins and spreads: what figures and reports are made of."""

import math
from typing import NamedTuple

import numpy as np


def subset_preds(errors, class_of, columns):
    """Predictions [n] from some columns of errors [n,K,S] alone: lowest mean error, the lower row at a tie (paper, algorithm 1).

    class_of: label of each of the K rows.
    """
    means = np.asarray(errors)[:, :, columns].mean(2, dtype=np.float64)
    return np.asarray(class_of)[means.argmin(1)]


def running_predictions(errors, class_of, points) -> tuple[np.ndarray, np.ndarray]:
    """What an image would be taken for, had it stopped after n pairs, and what it had cost by then, for every n of `points`.

    errors: K arrays in order of evaluation, the first pairs being common to all that are not empty; the longest decide
    which candidates are still alive after n. class_of: [K] labels; points: [P] ints from 1. Returns labels [P] and evaluations
    [P].
    """
    counts, points = np.array([len(e) for e in errors]), np.asarray(points)
    padded = np.full((len(errors), counts.max()), np.nan)
    for row, e in zip(padded, errors, strict=True):
        row[: len(e)] = e
    reached = np.minimum(points, counts.max())
    rows = np.nanargmin(padded.cumsum(1)[:, reached - 1], axis=0)  # sums over one number of pairs rank as means do
    return np.asarray(class_of)[rows], np.minimum(counts[:, None], points).sum(0)


def rank_classes(means, class_of) -> list[int]:
    """The best row of every class, best class first. means: [K] errors; class_of: label of each row."""
    best: dict[int, int] = {}
    for row in np.argsort(means, kind="stable").tolist():
        best.setdefault(class_of[row], row)
    return list(best.values())


def class_rank(means, class_of, label: int) -> int:
    """How many classes come before this one, each by the lowest error among its rows; the lower row wins a tie.

    means: [K] of errors on the same pairs; class_of: [K] labels. A label that no row stands for comes after all classes.
    """
    ranked = [class_of[row] for row in rank_classes(means, class_of)]
    return ranked.index(label) if label in ranked else len(ranked)


def paired_margin(errors, best) -> float | None:
    """Mean of errors - best in its standard errors, the statistic of scipy's ttest_rel; [n] each, on the same pairs.

    None when fewer than two pairs, or differences that are all the same, say nothing of the spread.
    """
    difference = np.asarray(errors, dtype=np.float64) - np.asarray(best, dtype=np.float64)
    deviation = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return float(difference.mean() / deviation * math.sqrt(len(difference))) if deviation else None


def difference_by_t(errors, best, t) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps, ascending, and the mean of errors - best at each, on the pairs that both saw.

    errors, best: beginnings of one order of pairs, whose timesteps are t [S].
    """
    n = min(len(errors), len(best))
    steps, place = np.unique(np.asarray(t)[:n], return_inverse=True)
    differences = np.asarray(errors[:n], np.float64) - np.asarray(best[:n], np.float64)
    return steps, np.bincount(place, differences) / np.bincount(place)


class Spread(NamedTuple):
    """Standard deviations of an error: across timesteps of its mean over noises, and across noises at one timestep."""

    by_t: float
    by_noise: float  # nan with one noise per timestep


def error_spread(errors) -> Spread:
    """Figure 2 in two numbers. errors: [T,n_trials], T > 1; by_noise is the root mean square over timesteps."""
    errors = np.asarray(errors, np.float64)
    by_noise = math.sqrt(errors.var(1, ddof=1).mean()) if errors.shape[1] > 1 else math.nan
    return Spread(float(errors.mean(1).std(ddof=1)), by_noise)


def quantile_groups(values, n: int) -> list[np.ndarray]:
    """Positions of values [m] in at most n groups of about one size, ascending by value; equal values stay together."""
    edges = np.unique(np.quantile(values, np.arange(1, n + 1) / n, method="inverted_cdf"))
    group = np.searchsorted(edges, values)
    return [np.flatnonzero(group == g) for g in np.unique(group)]
