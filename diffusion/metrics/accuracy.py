"""Accuracies with their intervals, paired tests, scores of caption pairs: what runs and analyses share. Needs numpy, scipy."""

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


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    as_dict = asdict


# ---------------------------------------------------------------- one accuracy


def wilson(p: float, n: float) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927).

    Args:
        p: the proportion observed.
        n: of draws. It may be an effective, non-integer number, which scipy's binomtest does not take; for integers the two agree
            to rounding, as does statsmodels' proportion_confint.

    Returns:
        low and high.
    """
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def clopper_pearson(p: float, n: int, confidence: float = 0.995) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934).

    Args:
        p: the proportion observed. p n need not be whole, as an accuracy may be known rounded; where it is, scipy's binomtest has
            the same.
        n: of draws.
        confidence: by default of the paper's figure 6.

    Returns:
        low and high.
    """
    from scipy.special import betaincinv

    tail, right, wrong = (1 - confidence) / 2, p * n, (1 - p) * n
    low = float(betaincinv(right, wrong + 1, tail)) if right > 0 else 0.0
    return low, float(betaincinv(right + 1, wrong, 1 - tail)) if wrong > 0 else 1.0


def wald(p: float, n: int) -> float:
    """Half the width of the published 95 % interval, 1.96 sqrt(p(1-p)/n): zero at p = 0 and p = 1, where Wilson's is not.

    Args:
        p: the proportion observed.
        n: of draws.
    """
    return 1.96 * math.sqrt(p * (1 - p) / n)


def proportion(right) -> Estimate:
    """Share of the true, with Wilson's interval.

    Args:
        right: booleans [n], n > 0.
    """
    right = np.asarray(right, dtype=bool)
    p = float(right.mean())
    return Estimate(p, *wilson(p, len(right)), len(right))


def top1(preds, labels) -> Estimate:
    """Share of images whose prediction is the label, with Wilson's interval.

    Args:
        preds, labels: ints [n], n > 0.
    """
    return proportion(np.asarray(preds) == np.asarray(labels))


def mean_per_class(preds, labels) -> Estimate:
    """Mean over the classes that occur of the accuracy inside each (scikit-learn's balanced_accuracy_score).

    The interval is Wilson's at the effective n = p(1-p) / variance, where the variance of the mean sums the classes' own
    (their proportions smoothed by one success and one failure, so that a class of one image is not taken for certain).

    Args:
        preds, labels: ints [n], n > 0.
    """
    preds, labels = np.asarray(preds), np.asarray(labels)
    counts = [(int((preds[labels == c] == c).sum()), int((labels == c).sum())) for c in np.unique(labels)]
    value = float(np.mean([right / n for right, n in counts]))
    smooth = [((right + 1) / (n + 2), n) for right, n in counts]
    variance = sum(p * (1 - p) / n for p, n in smooth) / len(counts) ** 2
    centre = float(np.mean([p for p, _ in smooth]))
    return Estimate(value, *wilson(value, centre * (1 - centre) / variance), len(labels))


# ---------------------------------------------------------------- two results on the same images


@dataclass(frozen=True)
class McNemar:
    """How often only the first and only the second of two paired results is right, and the exact two-sided p value."""

    only_first: int
    only_second: int
    p_value: float

    as_dict = asdict


def mean_of_groups(values) -> Interval | None:
    """Mean with Student's t interval: of a claim about classes, of which some were drawn, and not about pictures of them.

    Args:
        values: accuracies of the groups, or their differences between two models, [n].

    Returns:
        None of fewer than two groups.
    """
    from scipy.stats import t

    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    mean, half = values.mean(), t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(mean), float(mean - half), float(mean + half))


def mcnemar(first, second) -> McNemar:
    """McNemar's exact test: are the discordant pairs split like a fair coin's throws? p is 1 without any.

    Args:
        first, second: whether each was right, booleans [n].
    """
    from scipy.stats import binomtest

    first, second = _paired(first, second)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    return McNemar(only_first, only_second, float(binomtest(only_first, n).pvalue) if n else 1.0)


def paired_difference(first, second) -> Estimate:
    """Accuracy of the first less that of the second of two paired results, in -1..1.

    The interval is Newcombe's hybrid of the two Wilson intervals with the correlation of the results (Newcombe 1998, Improved
    confidence intervals for the difference between binomial proportions based on paired data, method 10).

    Args:
        first, second: whether each was right, booleans [n], n > 0.
    """
    first, second = _paired(first, second)
    a, b = proportion(first), proportion(second)
    both, none = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    phi = _phi(both, only_first, only_second, none)
    below = _hybrid(a.value - a.low, b.high - b.value, phi)
    above = _hybrid(a.high - a.value, b.value - b.low, phi)
    value = (only_first - only_second) / a.n
    return Estimate(value, value - below, value + above, a.n)


def _paired(first, second) -> tuple[np.ndarray, np.ndarray]:
    """Both as booleans [n]. Raises ValueError for two lengths."""
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"paired results must have one length, not {first.size} and {second.size}")
    return first, second


def _hybrid(one: float, other: float, phi: float) -> float:
    """Length of the difference of two deviations with correlation phi."""
    return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))


def _phi(both: int, only_first: int, only_second: int, none: int) -> float:
    """Correlation of paired results, with Newcombe's correction when it is positive; 0 where a margin is empty."""
    n = both + only_first + only_second + none
    margins = (both + only_first) * (only_second + none) * (both + only_second) * (only_first + none)
    excess = both * none - only_first * only_second
    return (max(excess - n / 2, 0) if excess > 0 else excess) / math.sqrt(margins) if margins else 0.0


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

    Args:
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

    Args:
        scores: the four of PairScores, in that order.
    """
    c0_i0, c0_i1, c1_i0, c1_i1 = map(np.asarray, scores)
    half_0, half_1 = (c0_i0 - c1_i0) / 2, (c0_i1 - c1_i1) / 2
    return PairScores(half_0, half_1, -half_0, -half_1)
