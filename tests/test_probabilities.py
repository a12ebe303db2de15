"""Probabilities and their calibration against hand tables, a grid search and synthetic data with known answers."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy.stats import kstest

from diffusion.metrics import calibration
from diffusion.metrics.calibration import Fit

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
    means, deviations = calibration.paired_gaps(errors, 0)
    assert means == pytest.approx([0, 2, 0])  # differences 1 and 3; 0
    assert deviations == pytest.approx([0, math.sqrt(2) / math.sqrt(2), 0])


def test_what_a_pair_adds_to_all_candidates_cancels():
    rng = np.random.default_rng(0)
    errors, of_the_pair = rng.random((4, 30)), rng.normal(size=30)
    lengths = (30, 12, 30, 7)
    plain = calibration.paired_gaps([e[:m] for e, m in zip(errors, lengths, strict=True)], 2)
    moved = calibration.paired_gaps([(e + of_the_pair)[:m] for e, m in zip(errors, lengths, strict=True)], 2)
    for a, b in zip(plain, moved, strict=True):
        assert a == pytest.approx(b, abs=1e-12)
    posterior = [calibration.class_log_posterior(g[None], d[None], [0, 1, 2, 3], 0.1, 0.5) for g, d in (plain, moved)]
    assert posterior[0] == pytest.approx(posterior[1], abs=1e-9)


# ---------------------------------------------------------------- posterior


def test_posterior_by_hand():
    gaps, temperature = np.array([[0.0, 0.2, 0.4]]), 0.1
    weights = np.exp([0, -2, -4])
    log_posterior = calibration.class_log_posterior(gaps, np.zeros((1, 3)), CLASSES, temperature, 1.0)
    assert np.exp(log_posterior[0]) == pytest.approx(weights / weights.sum())


def test_a_class_has_the_best_of_its_rows_and_classes_ascend():
    gaps = np.array([[0.3, 0.0, 0.1, 0.2]])
    log_posterior = calibration.class_log_posterior(gaps, np.zeros((1, 4)), [7, 5, 7, 2], 0.1, 0.0)
    weights = np.exp([-2, 0, -1])  # of 2, 5 and 7
    assert np.exp(log_posterior[0]) == pytest.approx(weights / weights.sum())


def test_posteriors_sum_to_one_and_the_winner_is_never_below():
    rng = np.random.default_rng(1)
    gaps, deviations = rng.normal(0.1, 0.1, (50, 6)), rng.random((50, 6))
    gaps[:, 2] = deviations[:, 2] = 0
    p = np.exp(calibration.class_log_posterior(gaps, deviations, [4, 4, 1, 9, 9, 9], 0.01, 0.7))
    assert p.sum(1) == pytest.approx(1) and p.shape == (50, 3)
    assert (gaps < 0).any() and (p[:, 0] == p.max(1)).all()


def test_a_standard_error_flattens_as_the_expected_sigmoid_does():
    """Against the integral of the sigmoid over the normal that the logit approximates."""
    temperature, gap, deviation = 0.1, 0.25, 0.15
    draws = np.linspace(-8, 8, 20001)
    density = np.exp(-(draws**2) / 2) / np.exp(-(draws**2) / 2).sum()
    expected = (density / (1 + np.exp(-(gap + deviation * draws) / temperature))).sum()
    two = calibration.class_log_posterior(np.array([[0, gap]]), np.array([[0, deviation]]), [0, 1], temperature, 1.0)
    assert np.exp(two[0, 0]) == pytest.approx(expected, abs=0.02)
    assert np.exp(two[0, 0]) < 1 / (1 + math.exp(-gap / temperature)) - 0.02


def test_scores_of_a_posterior_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])
    nll, brier = calibration.posterior_scores(np.log(p), [0, 2])
    assert nll == pytest.approx(-(math.log(0.7) + math.log(0.25)) / 2)
    assert brier == pytest.approx(((0.09 + 0.04 + 0.01) + (0.25 + 0.0625 + 0.5625)) / 2)


# ---------------------------------------------------------------- fits


def test_the_temperature_is_recovered_in_any_unit():
    gaps, deviations, labels = synthetic(temperature=0.02)
    temperature, weight = calibration.fit_temperature(gaps, deviations, CLASSES, labels)
    assert temperature == pytest.approx(0.02, rel=0.1) and weight == 0
    assert calibration.fit_temperature(1e4 * gaps, deviations, CLASSES, labels)[0] == pytest.approx(1e4 * temperature, rel=1e-3)


def test_the_fit_is_the_best_of_a_grid():
    gaps, deviations, labels = synthetic(n=1500, temperature=0.01, noise=0.02)

    def loss(temperature, weight):
        log_posterior = calibration.class_log_posterior(gaps, deviations, CLASSES, temperature, weight)
        return -log_posterior[np.arange(len(labels)), labels].mean()

    grid = [(t, w) for t in np.geomspace(1e-3, 1, 60) for w in np.linspace(0, 1, 11)]
    fitted = calibration.fit_temperature(gaps, deviations, CLASSES, labels)
    assert loss(*fitted) <= min(loss(*x) for x in grid) + 1e-5


def test_a_noisy_gap_counts_less():
    """Half of the images measured with a large standard error: the fit uses it, and beats one temperature for all."""
    gaps, deviations, labels = synthetic(n=3000, temperature=0.01, noise=0.03, seed=3)
    exact, nothing, truth = synthetic(n=3000, temperature=0.01, seed=4)
    gaps, deviations, labels = (np.concatenate(x) for x in ((gaps, exact), (deviations, nothing), (labels, truth)))
    gaps = np.maximum(gaps, 0)
    temperature, weight = calibration.fit_temperature(gaps, deviations, CLASSES, labels)
    single = calibration.fit_temperature(gaps, 0 * deviations, CLASSES, labels)
    nll = [
        calibration.posterior_scores(calibration.class_log_posterior(gaps, deviations, CLASSES, *x), labels)[0]
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
    fitted = calibration.fit_platt(x, right)
    assert fitted == pytest.approx(newton_platt(x, target), rel=1e-2)
    assert fitted == pytest.approx((12, -2), rel=0.3)


def test_platt_stays_finite_when_separated_or_constant():
    assert np.isfinite(calibration.fit_platt(np.arange(10.0), np.arange(10) < 5)).all()
    intercept, slope = calibration.fit_platt(np.ones(8), [True] * 6 + [False] * 2)
    assert 1 / (1 + math.exp(-(intercept + slope))) == pytest.approx((6 * 7 / 8 + 2 / 4) / 8, abs=1e-3)


def test_no_image_meets_its_own_half():
    seen, second = [], np.array([True, False, False, True, False, True, False])

    def apply(fitted, part):
        seen.append((set(fitted), set(np.flatnonzero(part))))
        return np.flatnonzero(part) * 10.0

    values, fits = calibration.cross_fit(second, lambda part: tuple(np.flatnonzero(part)), apply)
    assert values.tolist() == [0, 10, 20, 30, 40, 50, 60] and fits == [(0, 3, 5), (1, 2, 4, 6)]
    assert all(not fitted & applied and len(fitted | applied) == 7 for fitted, applied in seen)


def test_halves_have_the_same_share_of_every_class():
    """Also where classes alternate by index, of which halves by parity would hold one each."""
    rng = np.random.default_rng(0)
    for labels in (np.arange(1000) % 2, np.arange(90) % 10, np.arange(30) // 10, rng.integers(0, 7, 101), np.arange(9)):
        second = calibration.second_half(labels)
        assert abs(int(second.sum()) - int((~second).sum())) <= 1
        for label in np.unique(labels):
            mine = second[labels == label]
            assert abs(int(mine.sum()) - int((~mine).sum())) <= 1


def test_halves_are_random_and_seeded():
    labels = np.zeros(400, int)
    first, again, other = (calibration.second_half(labels, seed) for seed in (0, 0, 1))
    assert (first == again).all() and 150 < (first != other).sum() < 250
    parity = np.arange(400) % 2 == 1
    assert 150 < (first != parity).sum() < 250


# ---------------------------------------------------------------- one image, and a fit in a file

FIT = Fit(0.05, 0.6, 100, {"dataset": "fashion_mnist", "to_keep": [5, 1]})


@pytest.mark.parametrize("class_of", [[0, 1, 2, 3], [7, 3, 7, 5]])
def test_probabilities_of_an_image_are_its_row_of_the_posterior(class_of):
    rng = np.random.default_rng(0)
    images = [[rng.random(n).astype(np.float32) for n in lengths] for lengths in ((30, 30, 12, 5), (9, 30, 30, 9))]
    for errors in images:
        errors[1] -= 0.4  # the winner
    gaps, deviations = map(np.stack, zip(*(calibration.paired_gaps(errors, 1) for errors in images), strict=True))
    rows = np.exp(calibration.class_log_posterior(gaps, deviations, class_of, FIT.temperature, FIT.weight))
    for errors, row in zip(images, rows, strict=True):
        found = calibration.probabilities(errors, 1, class_of, FIT)
        assert list(found) == sorted(set(class_of)) and list(found.values()) == pytest.approx(row.tolist(), rel=1e-12)
        assert sum(found.values()) == pytest.approx(1) and max(found, key=found.get) == class_of[1]
        assert {type(label) for label in found} == {int} and {type(p) for p in found.values()} == {float}


def test_probabilities_by_hand():
    errors = [np.float32([1.0, 1.2, 1.4]), np.float32([1.0, 1.4]), np.float32([1.1])]  # gaps 0, 0.1 and 0.1 to the first
    found = calibration.probabilities(errors, 0, [4, 2, 9], Fit(0.1, 1.0, 20, {}))
    flattened = math.exp(-0.1 / math.sqrt(0.01 + math.pi / 8 * 0.1**2))  # deviation 0.2 / sqrt(2) / sqrt(2); none of one pair
    weights = {2: flattened, 4: 1.0, 9: math.exp(-1)}
    assert found == pytest.approx({label: w / sum(weights.values()) for label, w in weights.items()}, abs=1e-6)
    with pytest.raises(ValueError, match="3 candidates and labels of 2"):
        calibration.probabilities(errors, 0, [4, 2], FIT)


def test_a_written_fit_reads_back(tmp_path):
    FIT.write(tmp_path / "new" / "fit.json")
    assert Fit.read(tmp_path / "new" / "fit.json") == FIT == Fit.read(str(tmp_path / "new" / "fit.json"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["fit.json"]


GOOD = {"temperature": 0.05, "weight": 0.6, "n": 100, "about": {}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("", "Expecting value"),
        ("[1, 2]", "holds no JSON object"),
        (json.dumps(GOOD | {"more": 1}), "temperature, weight, n, about"),
        (json.dumps({"temperature": 0.05}), "temperature, weight, n, about"),
        (json.dumps(GOOD | {"temperature": 0}), "a temperature of 0"),
        (json.dumps(GOOD | {"temperature": -0.1}), "a temperature of -0.1"),
        (json.dumps(GOOD | {"temperature": math.nan}), "nan is no number"),
        (json.dumps(GOOD | {"temperature": math.inf}), "inf is no number"),
        (json.dumps(GOOD | {"temperature": "0.1"}), "a temperature of '0.1'"),
        (json.dumps(GOOD | {"weight": 1.5}), "a weight of 1.5"),
        (json.dumps(GOOD | {"weight": None}), "a weight of None"),
        (json.dumps(GOOD | {"n": 0}), "0 is no number"),
        (json.dumps(GOOD | {"n": True}), "True is no number"),
        (json.dumps(GOOD | {"about": "x"}), "'x' is no identity"),
    ],
)
def test_what_is_no_fit_is_refused_in_one_line(text, told, tmp_path):
    path = tmp_path / "fit.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Fit.read(path)
    message = str(caught.value)
    assert told in message and "fit.json" in message and "--fit" in message and "\n" not in message


def test_probabilities_need_neither_torch_nor_runs():
    code = "import sys; from diffusion.analysis import calibration; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "diffusion.metrics.calibration" in loaded
    assert not loaded & {"torch", "scipy", "diffusion.runs.run_folder", "diffusion.analysis.tables"}


# ---------------------------------------------------------------- calibration


def test_reliability_and_ece_by_hand():
    confidence = [0.1, 0.3, 0.5, 0.9, 1.0]
    right = [False, True, True, True, False]
    bins = calibration.reliability(confidence, right, n_bins=2)
    assert bins.counts.tolist() == [2, 3]
    assert bins.confidence == pytest.approx([0.2, 0.8]) and bins.accuracy == pytest.approx([0.5, 2 / 3])
    assert calibration.expected_calibration_error(confidence, right, 2) == pytest.approx((2 * 0.3 + 3 * (0.8 - 2 / 3)) / 5)
    assert calibration.brier(confidence, right) == pytest.approx((0.01 + 0.49 + 0.25 + 0.01 + 1) / 5)
    assert calibration.log_loss([0.8, 0.4], [True, False]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert calibration.log_loss([1.0], [False]) == pytest.approx(12 * math.log(10), rel=1e-3)


def test_empty_bins_do_not_count():
    assert calibration.reliability([0.95, 0.97], [True, False]).counts.tolist() == [2]


def test_calibrated_data_has_a_small_error_and_overconfident_data_a_large_one():
    rng = np.random.default_rng(0)
    p = rng.beta(5, 1, 2000)
    right = rng.random(2000) < p
    sharp = p**3 / (p**3 + (1 - p) ** 3)  # three times the log-odds
    small, large = (calibration.expected_calibration_error(x, right) for x in (p, sharp))
    assert small < 0.03 and large > 0.08
    for x, ece, calibrated in ((p, small, True), (sharp, large, False)):
        chance = calibration.chance_ece(x, right, draws=200)
        assert (chance.p_value > 0.05) == calibrated and (ece < 2 * chance.mean) == calibrated
    assert calibration.chance_ece(sharp, right, draws=200) == chance  # seeded
    assert chance.p_value == 1 / 201  # none of the draws was as far off


def test_chance_by_a_binomial():
    """One bin: the error by chance is the mean distance of a share from 0.9, the p value the chance of a share so far off."""
    n, confidence = 50, np.full(50, 0.9)
    shares = np.arange(n + 1) / n
    weights = np.array([math.comb(n, k) * 0.9**k * 0.1 ** (n - k) for k in range(n + 1)])
    chance = calibration.chance_ece(confidence, np.arange(n) < 42, draws=4000)  # a share of 0.84
    assert chance.mean == pytest.approx((weights * np.abs(shares - 0.9)).sum(), rel=0.05)
    assert chance.p_value == pytest.approx(weights[np.abs(shares - 0.9) > 0.06 - 1e-9].sum(), abs=0.03)


@pytest.mark.slow
def test_the_p_value_is_uniform_under_calibration_and_small_without():
    """The fault of an interval around the biased ECE: at a true error of 0 it hardly ever held it."""
    rng = np.random.default_rng(3)
    p_values, off = [], []
    for _ in range(300):
        p = rng.beta(4, 1, 200)
        right = rng.random(200) < p
        p_values.append(calibration.chance_ece(p, right, seed=rng.integers(2**31), draws=99).p_value)
        off.append(calibration.chance_ece(np.clip(p + 0.15, 0, 1), right, seed=rng.integers(2**31), draws=99).p_value)
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) < 0.1 < 0.9 < np.mean(np.array(off) <= 0.05)


def test_auroc_counts_pairs():
    confidence, right = np.array([0.9, 0.8, 0.8, 0.3, 0.6]), np.array([True, True, False, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in confidence[right] for b in confidence[~right]]
    assert calibration.auroc(confidence, right) == pytest.approx(np.mean(pairs))
