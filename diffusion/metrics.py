"""Accuracies, scores of caption-image pairs, their intervals and paired tests. numpy, and scipy inside functions."""

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


# ---------------------------------------------------------------- the paper's figures


def subset_preds(errors, class_of, columns):
    """Predictions [n] from some columns of errors [n,K,S] alone: lowest mean error, the lower row at a tie (paper, algorithm 1).

    class_of: label of each of the K rows.
    """
    means = np.asarray(errors)[:, :, columns].mean(2, dtype=np.float64)
    return np.asarray(class_of)[means.argmin(1)]


def rank_classes(means, class_of) -> list[int]:
    """The best row of every class, best class first. means: [K] errors; class_of: label of each row."""
    best: dict[int, int] = {}
    for row in np.argsort(means, kind="stable").tolist():
        best.setdefault(class_of[row], row)
    return list(best.values())


class Spread(NamedTuple):
    """Standard deviations of an error: across timesteps of its mean over noises, and across noises at one timestep."""

    by_t: float
    by_noise: float  # nan with one noise a timestep


def error_spread(errors) -> Spread:
    """Figure 2 in two numbers. errors: [T,n_trials], T > 1; by_noise is the root mean square over timesteps."""
    errors = np.asarray(errors, np.float64)
    by_noise = math.sqrt(errors.var(1, ddof=1).mean()) if errors.shape[1] > 1 else math.nan
    return Spread(float(errors.mean(1).std(ddof=1)), by_noise)


@dataclass(frozen=True)
class LogitLine:
    """logit(y) = intercept + slope logit(x), fitted to n points: the expected accuracy y of a model whose other accuracy is x.

    centre, squares: mean of the points' logit(x) and sum of squares around it; residual: standard deviation, n - 2 degrees.
    """

    slope: float
    intercept: float
    residual: float
    n: int
    centre: float
    squares: float

    def at(self, x):
        """logit(y) expected at x, accuracies in 0..1, and half the width of its 95 % confidence interval."""
        from scipy.special import logit
        from scipy.stats import t as student

        z = logit(x)
        error = self.residual * np.sqrt(1 / self.n + (z - self.centre) ** 2 / self.squares)
        return self.intercept + self.slope * z, student.isf(0.025, self.n - 2) * error


def fit_logit_line(x, y) -> LogitLine:
    """Least squares on logit axes (Taori et al. 2020, section 3). x, y: [n] accuracies strictly between 0 and 1, n > 2."""
    from scipy.special import logit

    u, v = logit(np.asarray(x, np.float64)), logit(np.asarray(y, np.float64))
    if len(u) < 3 or not np.isfinite([u, v]).all():
        raise ValueError("a line on logit axes needs 3 points or more, strictly between 0 and 1")
    squares = float(((u - u.mean()) ** 2).sum())
    slope = float(((u - u.mean()) * (v - v.mean())).sum() / squares)
    intercept = float(v.mean() - slope * u.mean())
    residual = math.sqrt(((v - intercept - slope * u) ** 2).sum() / (len(u) - 2))
    return LogitLine(slope, intercept, residual, len(u), float(u.mean()), squares)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    as_dict = asdict


def effective_robustness(line: LogitLine, in_dist: Estimate, out_dist: Estimate) -> Interval:
    """Out-of-distribution accuracy less the one that the line expects (Taori et al. 2020, section 3; paper, figure 6).

    The interval combines those of both accuracies and of the line: squares of half widths add up, on each side its own
    (Zou and Donner 2008). Raises ValueError for an in-distribution accuracy of 0 or 1, which has no logit.
    """
    from scipy.special import expit

    if not 0 < in_dist.value < 1:
        raise ValueError(f"an in-distribution accuracy of {100 * in_dist.value:g} % has no place on a logit axis")
    z, of_line = line.at(in_dist.value)
    ends = (line.at(in_dist.low)[0], line.at(in_dist.high)[0])
    low, high = (expit(z + sign * np.hypot(end - z, of_line)) for sign, end in zip((-1, 1), sorted(ends), strict=True))
    expected = expit(z)
    below = np.hypot(out_dist.value - out_dist.low, high - expected)
    above = np.hypot(out_dist.high - out_dist.value, expected - low)
    value = out_dist.value - expected
    return Interval(float(value), float(value - below), float(value + above))


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
