"""Accuracies, scores of caption-image pairs, their intervals and paired tests. numpy only."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal


@dataclass(frozen=True)
class Estimate:
    """A proportion in 0..1, or a difference of two, with its 95 % interval and the number of images behind it."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.2f}% (95% interval {100 * self.low:.1f} to {100 * self.high:.1f}, n = {self.n})"

    as_dict = asdict


def wilson(p: float, n: float) -> tuple[float, float]:
    """95 % score interval of a proportion p observed on n draws (Wilson 1927). n may be an effective, non-integer number."""
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def wald(p: float, n: int) -> float:
    """Half the width of the published 95 % interval, 1.96 sqrt(p(1-p)/n): zero at p = 0 and p = 1, where Wilson's is not."""
    return 1.96 * math.sqrt(p * (1 - p) / n)


def proportion(right) -> Estimate:
    """Share of the true among booleans [n], n > 0, with Wilson's interval."""
    right = np.asarray(right, dtype=bool)
    p = float(right.mean())
    return Estimate(p, *wilson(p, len(right)), len(right))


def top1(preds, labels) -> Estimate:
    """Share of images whose prediction is the label. preds, labels: [n] ints, n > 0."""
    return proportion(np.asarray(preds) == np.asarray(labels))


def mean_per_class(preds, labels) -> Estimate:
    """Mean over the classes that occur of the accuracy inside each.

    The interval is Wilson's at the effective n = p(1-p) / variance, where the variance of the mean sums the classes' own
    (their proportions smoothed by one success and one failure, so that a class of one image is not taken for certain).
    """
    preds, labels = np.asarray(preds), np.asarray(labels)
    counts = [(int((preds[labels == c] == c).sum()), int((labels == c).sum())) for c in np.unique(labels)]
    value = float(np.mean([right / n for right, n in counts]))
    smooth = [((right + 1) / (n + 2), n) for right, n in counts]
    variance = sum(p * (1 - p) / n for p, n in smooth) / len(counts) ** 2
    centre = float(np.mean([p for p, _ in smooth]))
    return Estimate(value, *wilson(value, centre * (1 - centre) / variance), len(labels))


# ---------------------------------------------------------------- reports


def per_class(preds, labels) -> dict[int, Estimate]:
    """Label -> accuracy among the images of that label, for the labels that occur, ascending. preds, labels: [n] ints."""
    preds, labels = np.asarray(preds), np.asarray(labels)
    return {int(c): proportion(preds[labels == c] == c) for c in np.unique(labels)}


def confusion(preds, labels) -> list[tuple[int, int, int]]:
    """(label, prediction, images) of every pair that occurs, ascending. preds, labels: [n] ints."""
    pairs, counts = np.unique(np.stack([labels, preds], 1), axis=0, return_counts=True)
    return [(int(label), int(pred), int(n)) for (label, pred), n in zip(pairs, counts, strict=True)]


def class_rank(means, class_of, label: int) -> int:
    """How many classes come before this one, each by the lowest error among its rows; the lower row wins a tie.

    means: [K] of errors on the same pairs; class_of: [K] labels. A label that no row stands for comes after all classes.
    """
    ranked = np.asarray(class_of)[np.argsort(means, kind="stable")]
    before = ranked[: np.argmax(ranked == label)] if label in ranked else ranked
    return len(np.unique(before))


def paired_difference(first, second) -> Estimate:
    """Accuracy of the first less that of the second of two paired results, booleans [n], n > 0, in -1..1.

    The interval is Newcombe's hybrid of the two Wilson intervals with the correlation of the results (Newcombe 1998, Improved
    confidence intervals for the difference between binomial proportions based on paired data, method 10).
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"paired results must have one length, not {first.size} and {second.size}")
    a, b = proportion(first), proportion(second)
    both, none = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    phi = _phi(both, only_first, only_second, none)
    below = _hybrid(a.value - a.low, b.high - b.value, phi)
    above = _hybrid(a.high - a.value, b.value - b.low, phi)
    value = (only_first - only_second) / a.n
    return Estimate(value, value - below, value + above, a.n)


def _hybrid(one: float, other: float, phi: float) -> float:
    """Length of the difference of two deviations with correlation phi."""
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def _phi(both: int, only_first: int, only_second: int, none: int) -> float:
    """Correlation of paired results, with Newcombe's correction when it is positive; 0 where a margin is empty."""
    n = both + only_first + only_second + none
    margins = (both + only_first) * (only_second + none) * (both + only_second) * (only_first + none)
    excess = both * none - only_first * only_second
    return (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(margins) if margins else 0.0


def paired_margin(errors, best) -> float | None:
    """Mean of errors - best in its standard errors; [n] each, on the same pairs.

    None when fewer than two pairs, or differences that are all the same, say nothing of the spread.
    """
    difference = np.asarray(errors, dtype=np.float64) - np.asarray(best, dtype=np.float64)
    deviation = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return float(difference.mean() / deviation * math.sqrt(len(difference))) if deviation else None


def running_predictions(errors, class_of, points) -> tuple[np.ndarray, np.ndarray]:
    """What an image would be taken for, had it stopped after n pairs, and what it had cost by then, for every n of `points`.

    errors: K arrays in order of evaluation, the first pairs being common to all; the longest decide which candidates are
    still alive after n. class_of: [K] labels; points: [P] ints from 1. Returns labels [P] and evaluations [P].
    """
    counts, points = np.array([len(e) for e in errors]), np.asarray(points)
    padded = np.full((len(errors), counts.max()), np.nan)
    for row, e in zip(padded, errors, strict=True):
        row[: len(e)] = e
    reached = np.minimum(points, counts.max())
    rows = np.nanargmin(padded.cumsum(1)[:, reached - 1], axis=0)  # sums over one number of pairs rank as means do
    return np.asarray(class_of)[rows], np.minimum(counts[:, None], points).sum(0)


def quantile_groups(values, n: int) -> list[np.ndarray]:
    """Positions of values [m] in at most n groups of about one size, ascending by value; equal values stay together."""
    edges = np.unique(np.quantile(values, np.arange(1, n + 1) / n, method="inverted_cdf"))
    group = np.searchsorted(edges, values)
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def cost(values) -> dict[str, float]:
    """Median, mean, 95th percentile and total of what images cost, [n] numbers, n > 0."""
    found = {"median": np.median(values), "mean": np.mean(values), "p95": np.percentile(values, 95), "total": np.sum(values)}
    return {name: float(value) for name, value in found.items()}


# ---------------------------------------------------------------- two captions, two images (Winoground)


class PairScores(NamedTuple):
    """How well each caption fits each image of an example, higher is better: floats, or arrays [n] of n examples."""

    c0_i0: Any
    c0_i1: Any
    c1_i0: Any
    c1_i1: Any


class PairCorrect(NamedTuple):
    """What of an example is right: booleans, or arrays [n]. Chance is 1/4, 1/4 and 1/6 when the four scores are independent."""

    text: Any
    image: Any
    group: Any


def pair_correct(scores) -> PairCorrect:
    """Text: each image scores higher with its own caption. Image: each caption with its own image. Group: both.

    scores: the four of PairScores, in that order. A tie is wrong (Thrush et al. 2022, equations 1 to 3).
    """
    c0_i0, c0_i1, c1_i0, c1_i1 = map(np.asarray, scores)
    text = (c0_i0 > c1_i0) & (c1_i1 > c0_i1)
    image = (c0_i0 > c0_i1) & (c1_i1 > c1_i0)
    return PairCorrect(text, image, text & image)


def normalise_pairs(scores) -> PairScores:
    """Each score less the mean of its image over the two captions, which removes how likely the image is by itself.

    What is left of an image is plus and minus half the difference of its captions. So the text score stays, and the image
    score becomes one comparison of two differences: chance is 1/2, and whatever has the text right has it right too.
    """
    c0_i0, c0_i1, c1_i0, c1_i1 = map(np.asarray, scores)
    half_0, half_1 = (c0_i0 - c1_i0) / 2, (c0_i1 - c1_i1) / 2
    return PairScores(half_0, half_1, -half_0, -half_1)


@dataclass(frozen=True)
class McNemar:
    """How often only the first and only the second of two paired results is right, and the exact two-sided p value."""

    only_first: int
    only_second: int
    p_value: float

    as_dict = asdict


def mcnemar(first, second) -> McNemar:
    """McNemar's exact test on paired booleans [n]: are the discordant pairs split like a fair coin's throws? 1.0 without any."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"paired results must have one length, not {first.size} and {second.size}")
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))  # integers: exact, whatever n is
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**n))
