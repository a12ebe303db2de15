"""Probabilities and their calibration against hand tables, a grid search and synthetic data with known answers."""

import math

import numpy as np
import pytest

from diffusion import metrics

CLASSES = [0, 1, 2]


def synthetic(n=4000, temperature=0.02, noise=0.0, seed=0):
    """Gaps [n,3] and labels drawn from the softmax of the true gaps at a temperature; the gaps seen carry normal noise."""
    rng = np.random.default_rng(seed)
    truth = rng.exponential(0.04, (n, 3))
    truth[np.arange(n), rng.integers(0, 3, n)] = 0
    p = np.exp(-truth / temperature)
    p /= p.sum(1, keepdims=True)
    labels = (rng.random((n, 1)) > p.cumsum(1)).sum(1)
    deviations = np.where(truth > 0, noise, 0.0)
    return truth + rng.normal(size=truth.shape) * deviations, deviations, labels


# ---------------------------------------------------------------- gaps


def test_gaps_by_hand():
    errors = (np.array([1.0, 2, 3, 4], np.float32), np.array([2.0, 5], np.float32), np.array([1.0], np.float32))
    means, deviations = metrics.paired_gaps(errors, 0)
    assert means == pytest.approx([0, 2, 0])  # differences 1 and 3; 0
    assert deviations == pytest.approx([0, math.sqrt(2) / math.sqrt(2), 0])


def test_what_a_pair_adds_to_all_candidates_cancels():
    rng = np.random.default_rng(0)
    errors, of_the_pair = rng.random((4, 30)), rng.normal(size=30)
    lengths = (30, 12, 30, 7)
    plain = metrics.paired_gaps([e[:m] for e, m in zip(errors, lengths, strict=True)], 2)
    moved = metrics.paired_gaps([(e + of_the_pair)[:m] for e, m in zip(errors, lengths, strict=True)], 2)
    for a, b in zip(plain, moved, strict=True):
        assert a == pytest.approx(b, abs=1e-12)
    posterior = [metrics.class_log_posterior(g[None], d[None], [0, 1, 2, 3], 0.1, 0.5) for g, d in (plain, moved)]
    assert posterior[0] == pytest.approx(posterior[1], abs=1e-9)


# ---------------------------------------------------------------- posterior


def test_posterior_by_hand():
    gaps, temperature = np.array([[0.0, 0.2, 0.4]]), 0.1
    weights = np.exp([0, -2, -4])
    log_posterior = metrics.class_log_posterior(gaps, np.zeros((1, 3)), CLASSES, temperature, 1.0)
    assert np.exp(log_posterior[0]) == pytest.approx(weights / weights.sum())


def test_a_class_has_the_best_of_its_rows_and_classes_ascend():
    gaps = np.array([[0.3, 0.0, 0.1, 0.2]])
    log_posterior = metrics.class_log_posterior(gaps, np.zeros((1, 4)), [7, 5, 7, 2], 0.1, 0.0)
    weights = np.exp([-2, 0, -1])  # of 2, 5 and 7
    assert np.exp(log_posterior[0]) == pytest.approx(weights / weights.sum())


def test_posteriors_sum_to_one_and_the_winner_is_never_below():
    rng = np.random.default_rng(1)
    gaps, deviations = rng.normal(0.1, 0.1, (50, 6)), rng.random((50, 6))
    gaps[:, 2] = deviations[:, 2] = 0
    p = np.exp(metrics.class_log_posterior(gaps, deviations, [4, 4, 1, 9, 9, 9], 0.01, 0.7))
    assert p.sum(1) == pytest.approx(1) and p.shape == (50, 3)
    assert (gaps < 0).any() and (p[:, 0] == p.max(1)).all()


def test_a_standard_error_flattens_as_the_expected_sigmoid_does():
    """Against the integral of the sigmoid over the normal that the logit approximates."""
    temperature, gap, deviation = 0.1, 0.25, 0.15
    draws = np.linspace(-8, 8, 20001)
    density = np.exp(-(draws**2) / 2) / np.exp(-(draws**2) / 2).sum()
    expected = (density / (1 + np.exp(-(gap + deviation * draws) / temperature))).sum()
    two = metrics.class_log_posterior(np.array([[0, gap]]), np.array([[0, deviation]]), [0, 1], temperature, 1.0)
    assert np.exp(two[0, 0]) == pytest.approx(expected, abs=0.02)
    assert np.exp(two[0, 0]) < 1 / (1 + math.exp(-gap / temperature)) - 0.02


def test_scores_of_a_posterior_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
    nll, brier = metrics.posterior_scores(np.log(p), [0, 2])
    assert nll == pytest.approx(-(math.log(0.7) + math.log(0.25)) / 2)
    assert brier == pytest.approx(((0.09 + 0.04 + 0.01) + (0.25 + 0.0625 + 0.5625)) / 2)


# ---------------------------------------------------------------- fits


def test_the_temperature_is_recovered_in_any_unit():
    gaps, deviations, labels = synthetic(temperature=0.02)
    temperature, weight = metrics.fit_temperature(gaps, deviations, CLASSES, labels)
    assert temperature == pytest.approx(0.02, rel=0.1) and weight == 0
    assert metrics.fit_temperature(1e4 * gaps, deviations, CLASSES, labels)[0] == pytest.approx(1e4 * temperature, rel=1e-3)


def test_the_fit_is_the_best_of_a_grid():
    gaps, deviations, labels = synthetic(n=1500, temperature=0.01, noise=0.02)

    def loss(temperature, weight):
        log_posterior = metrics.class_log_posterior(gaps, deviations, CLASSES, temperature, weight)
        return -log_posterior[np.arange(len(labels)), labels].mean()

    grid = [(t, w) for t in np.geomspace(1e-3, 1, 60) for w in np.linspace(0, 1, 11)]
    fitted = metrics.fit_temperature(gaps, deviations, CLASSES, labels)
    assert loss(*fitted) <= min(loss(*x) for x in grid) + 1e-5


def test_a_noisy_gap_counts_less():
    """Half of the images measured with a large standard error: the fit uses it, and beats one temperature for all."""
    gaps, deviations, labels = synthetic(n=3000, temperature=0.01, noise=0.03, seed=3)
    exact, nothing, truth = synthetic(n=3000, temperature=0.01, seed=4)
    gaps, deviations, labels = (np.concatenate(x) for x in ((gaps, exact), (deviations, nothing), (labels, truth)))
    gaps = np.maximum(gaps, 0)
    temperature, weight = metrics.fit_temperature(gaps, deviations, CLASSES, labels)
    single = metrics.fit_temperature(gaps, 0 * deviations, CLASSES, labels)
    nll = [
        metrics.posterior_scores(metrics.class_log_posterior(gaps, deviations, CLASSES, *x), labels)[0]
        for x in ((temperature, weight), single)
    ]
    assert weight > 0.3 and nll[0] < nll[1] - 0.01


def newton_platt(x, target):
    """The same regression by Newton's method."""
    design, w = np.stack([np.ones_like(x), x], 1), np.zeros(2)
    for _ in range(30):
        p = 1 / (1 + np.exp(-design @ w))
        w += np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, design.T @ (target - p))
    return w


def test_platt_against_newton():
    rng = np.random.default_rng(0)
    x = rng.uniform(4, 7, 600)
    right = rng.random(600) < 1 / (1 + np.exp(-(12 - 2 * x)))
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    fitted = metrics.fit_platt(x, right)
    assert fitted == pytest.approx(newton_platt(x, target), rel=1e-2)
    assert fitted == pytest.approx((12, -2), rel=0.3)


def test_platt_stays_finite_when_separated_or_constant():
    assert np.isfinite(metrics.fit_platt(np.arange(10.0), np.arange(10) < 5)).all()
    intercept, slope = metrics.fit_platt(np.ones(8), [True] * 6 + [False] * 2)
    assert 1 / (1 + math.exp(-(intercept + slope))) == pytest.approx((6 * 7 / 8 + 2 / 4) / 8, abs=1e-3)


def test_no_image_meets_its_own_half():
    seen = []

    def apply(fitted, part):
        seen.append((set(fitted), set(np.flatnonzero(part))))
        return np.flatnonzero(part) * 10.0

    values, fits = metrics.cross_fit(7, lambda part: tuple(np.flatnonzero(part)), apply)
    assert values.tolist() == [0, 10, 20, 30, 40, 50, 60] and fits == [(1, 3, 5), (0, 2, 4, 6)]
    assert all(not fitted & applied and len(fitted | applied) == 7 for fitted, applied in seen)


# ---------------------------------------------------------------- calibration


def test_reliability_and_ece_by_hand():
    confidence = [0.1, 0.3, 0.5, 0.9, 1.0]
    right = [False, True, True, True, False]
    bins = metrics.reliability(confidence, right, n_bins=2)
    assert bins.counts.tolist() == [2, 3]
    assert bins.confidence == pytest.approx([0.2, 0.8]) and bins.accuracy == pytest.approx([0.5, 2 / 3])
    assert metrics.expected_calibration_error(confidence, right, 2) == pytest.approx((2 * 0.3 + 3 * (0.8 - 2 / 3)) / 5)
    assert metrics.brier(confidence, right) == pytest.approx((0.01 + 0.49 + 0.25 + 0.01 + 1) / 5)
    assert metrics.log_loss([0.8, 0.4], [True, False]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert metrics.log_loss([1.0], [False]) == pytest.approx(12 * math.log(10), rel=1e-3)


def test_empty_bins_do_not_count():
    assert metrics.reliability([0.95, 0.97], [True, False]).counts.tolist() == [2]


def test_calibrated_data_has_a_small_error_and_overconfident_data_a_large_one():
    rng = np.random.default_rng(0)
    p = rng.beta(5, 1, 2000)
    right = rng.random(2000) < p
    sharp = p**3 / (p**3 + (1 - p) ** 3)  # three times the log-odds
    small, large = (metrics.expected_calibration_error(x, right) for x in (p, sharp))
    assert small < 0.03 and large > 0.08
    assert small < 2 * metrics.ece_by_chance(p, draws=200) < large
    low, high = metrics.ece_interval(sharp, right, draws=200)
    assert low < large < high and high - low < 0.06
    assert metrics.ece_interval(sharp, right, draws=200) == (low, high)  # seeded


def test_the_interval_covers_a_known_error():
    """One bin, 0.9 against a share of 0.8: the error is a proportion's distance, so about 95 of 100 intervals hold 0.1."""
    rng = np.random.default_rng(2)
    runs = [rng.random(300) < 0.8 for _ in range(200)]
    covered = [low <= 0.1 <= high for low, high in (metrics.ece_interval(np.full(300, 0.9), r, draws=60) for r in runs)]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_auroc_counts_pairs():
    confidence, right = np.array([0.9, 0.8, 0.8, 0.3, 0.6]), np.array([True, True, False, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in confidence[right] for b in confidence[~right]]
    assert metrics.auroc(confidence, right) == pytest.approx(np.mean(pairs))
