"""Accuracies and their intervals. numpy only."""

from dataclasses import asdict, dataclass

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


def top1(preds, labels) -> Estimate:
    """Share of images whose prediction is the label. preds, labels: [n] ints, n > 0."""
    right = np.asarray(preds) == np.asarray(labels)
    p = float(right.mean())
    return Estimate(p, *wilson(p, len(right)), len(right))


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
