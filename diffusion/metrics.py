"""Accuracies, scores of caption-image pairs, their intervals and paired tests. numpy only."""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal


@dataclass(frozen=True)
class Estimate:
    """A proportion in 0..1 with its 95 % interval and the number of images behind it."""

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
