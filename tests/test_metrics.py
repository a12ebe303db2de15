"""Accuracies and intervals against scipy and hand counts."""

import numpy as np
import pytest
from scipy.stats import binomtest

from diffusion import metrics


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (91, 100), (1, 1000), (500, 1000)])
def test_wilson_against_scipy(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_top1_counts():
    estimate = metrics.top1([1, 2, 3, 4], [1, 2, 0, 4])
    assert (estimate.value, estimate.n) == (0.75, 4)
    assert estimate.low < 0.75 < estimate.high
    assert str(estimate).startswith("75.00% (95% interval 30.1 to 95.4, n = 4)")


def test_mean_per_class_weighs_classes_equally():
    labels = [0] * 8 + [1] * 2
    preds = [0] * 8 + [0, 1]
    assert metrics.mean_per_class(preds, labels).value == pytest.approx((1 + 0.5) / 2)


def test_mean_per_class_of_equal_classes_is_top1_with_a_similar_interval():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    preds = np.where(rng.random(1000) < 0.9, labels, (labels + 1) % 10)
    a, b = metrics.top1(preds, labels), metrics.mean_per_class(preds, labels)
    assert b.value == pytest.approx(a.value)
    assert (b.high - b.low) == pytest.approx(a.high - a.low, rel=0.1)


def test_mean_per_class_interval_covers_its_target():
    """Classes of unequal size and difficulty: about 95 of 100 intervals hold the true mean."""
    rng = np.random.default_rng(1)
    sizes, truth = np.array([200, 50, 20, 10]), np.array([0.9, 0.7, 0.5, 0.95])
    labels = np.repeat(np.arange(4), sizes)
    estimates = [
        metrics.mean_per_class(np.where(rng.random(len(labels)) < truth[labels], labels, -1), labels) for _ in range(400)
    ]
    covered = np.mean([e.low <= truth.mean() <= e.high for e in estimates])
    assert 0.92 <= covered <= 0.99
