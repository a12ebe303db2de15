"""Effective robustness: the published points of the paper's figure 6, a line or one with a knee through them on logit axes,
distances to it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffusion.metrics import Estimate, Interval

# Percent right on ImageNet and on its shifts, as Li et al. (ICCV 2023, arXiv 2303.16203) publish them for the paper's figure 6
BENCHMARKS = ("imagenetv2", "imagenetA", "objectnet")
DISCRIMINATIVE = {  # name -> ImageNet, ImageNetV2, ImageNet-A, ObjectNet
    "ResNet-18": (70.3, 57.3, 1.1, 27.2),
    "ResNet-34": (73.8, 61.0, 1.9, 31.6),
    "ResNet-50": (76.7, 63.2, 0.0, 36.4),
    "ResNet-101": (77.7, 65.5, 4.7, 39.1),
    "ViT-L/32": (77.9, 64.4, 11.9, 32.1),
    "ViT-L/16": (80.4, 67.5, 16.7, 36.8),
    "ViT-B/16": (81.2, 69.6, 20.8, 39.9),
}
KNEE = "ResNet-50"  # ImageNet-A is what this network got wrong, so that the line bends at its accuracy (paper, figure 6)
DIT = {
    "DiT-XL/2 256 px": (77.5, 64.6, 20.0, 32.1),
    "DiT-XL/2 512 px": (79.1, 66.7, 30.2, 33.9),
    "DiT-XL/2 256 px, l1": (74.9, 60.5, 9.7, 24.7),
    "DiT-XL/2 256 px, bound": (71.6, 57.7, 17.9, 24.7),
}


def published(models: dict, benchmark: str) -> dict[str, tuple[float, float]]:
    """name -> accuracy on ImageNet and on the benchmark, in 0..1."""
    column = 1 + BENCHMARKS.index(benchmark)
    return {name: (values[0] / 100, values[column] / 100) for name, values in models.items()}


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
    bends: ClassVar[tuple[float, ...]] = ()  # accuracies x

    def at(self, x):
        """logit(y) expected at x, accuracies in 0..1, and half the width of its 95 % confidence interval."""
        from scipy.special import logit
        from scipy.stats import t as student

        z = logit(x)
        error = self.residual * np.sqrt(1 / self.n + (z - self.centre) ** 2 / self.squares)
        return self.intercept + self.slope * z, student.isf(0.025, self.n - 2) * error


@dataclass(frozen=True)
class LogitKnee:
    """logit(y) = a + b logit(x) + c max(0, logit(x) - logit(knee)), fitted to n points: two lines that meet at x = knee.

    coefficients: a, b, c; covariance: of these, [3,3]; residual: standard deviation, n - 3 degrees
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    knee: float
    residual: float
    n: int

    @property
    def bends(self) -> tuple[float, ...]:
        return (self.knee,)

    def at(self, x):
        """The accuracy expected at x, as in LogitLine."""
        from scipy.stats import t as student

        terms = _knee_terms(x, self.knee)
        error = np.sqrt(np.einsum("...i,ij,...j->...", terms, self.covariance, terms))
        return terms @ self.coefficients, student.isf(0.025, self.n - 3) * error


def _knee_terms(x, knee: float) -> np.ndarray:
    """What a, b and c of a LogitKnee are multiplied with: [...,3]."""
    from scipy.special import logit

    z = logit(np.asarray(x, np.float64))
    return np.stack([np.ones_like(z), z, np.maximum(0, z - logit(knee))], -1)


def fit_logit_knee(x, y, knee: float) -> LogitKnee:
    """Least squares on logit axes. x, y: [n] accuracies strictly between 0 and 1, n > 3, of which two differ on either side.

    Raises ValueError for others.
    """
    from scipy.special import logit

    terms, v = _knee_terms(x, knee), logit(np.asarray(y, np.float64))
    if len(v) < 4 or not np.isfinite(v).all() or not np.isfinite(terms).all() or np.linalg.matrix_rank(terms) < 3:
        raise ValueError("a line with a knee needs 4 points or more, strictly between 0 and 1, on both sides of the knee")
    coefficients = np.linalg.lstsq(terms, v, rcond=None)[0]
    variance = ((v - terms @ coefficients) ** 2).sum() / (len(v) - 3)
    return LogitKnee(coefficients, variance * np.linalg.inv(terms.T @ terms), knee, math.sqrt(variance), len(v))


def fit_logit_line(x, y) -> LogitLine:
    """Least squares on logit axes (Taori et al. 2020, section 3). x, y: [n] accuracies strictly between 0 and 1, n > 2.

    Raises ValueError for fewer points and others.
    """
    from scipy.special import logit
    from scipy.stats import linregress

    u, v = logit(np.asarray(x, np.float64)), logit(np.asarray(y, np.float64))
    if len(u) < 3 or not np.isfinite([u, v]).all():
        raise ValueError("a line on logit axes needs 3 points or more, strictly between 0 and 1")
    line = linregress(u, v)
    # not from line.stderr, which goes by 1 - r^2 and so loses half of its digits where points lie on a line
    residual = math.sqrt(((v - line.intercept - line.slope * u) ** 2).sum() / (len(u) - 2))
    squares = float(((u - u.mean()) ** 2).sum())
    return LogitLine(float(line.slope), float(line.intercept), residual, len(u), float(u.mean()), squares)


def fit_published(points: dict[str, tuple[float, float]], knee=False) -> tuple[LogitLine | LogitKnee, list[str]]:
    """The line through the points that have a place on logit axes, and the names of those that have none.

    knee: with one at the accuracy of KNEE on ImageNet, which is known also where KNEE itself cannot be shown
    """
    fitted = {name: point for name, point in points.items() if min(point) > 0 and max(point) < 1}
    left_out, (x, y) = [name for name in points if name not in fitted], zip(*fitted.values(), strict=True)
    return (fit_logit_knee(x, y, points[KNEE][0]) if knee else fit_logit_line(x, y)), left_out


def effective_robustness(line: LogitLine | LogitKnee, in_dist: Estimate, out_dist: Estimate) -> Interval:
    """Out-of-distribution accuracy less the one that the line expects (Taori et al. 2020, section 3; paper, figure 6).

    The interval combines those of both accuracies and of the line: squares of half widths add up, on each side its own
    (Zou and Donner 2008). Raises ValueError for an in-distribution accuracy of 0 or 1, which has no logit.
    """
    from scipy.special import expit

    if not 0 < in_dist.value < 1:
        raise ValueError(f"an in-distribution accuracy of {100 * in_dist.value:g} % has no place on a logit axis")
    z, of_line = line.at(in_dist.value)
    within = [x for x in line.bends if in_dist.low < x < in_dist.high]
    expected_at = [line.at(x)[0] for x in (in_dist.low, *within, in_dist.high)]
    ends = min(expected_at), max(expected_at)
    low, high = (expit(z + sign * np.hypot(end - z, of_line)) for sign, end in zip((-1, 1), ends, strict=True))
    expected = expit(z)
    below = np.hypot(out_dist.value - out_dist.low, high - expected)
    above = np.hypot(out_dist.high - out_dist.value, expected - low)
    value = out_dist.value - expected
    return Interval(float(value), float(value - below), float(value + above))
