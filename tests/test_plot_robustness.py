"""scripts/plot_robustness.py: line and effective robustness against scipy and simulation, and what is said of odd points."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script, staged_record, write_run
from PIL import Image
from scipy.optimize import curve_fit
from scipy.special import expit, logit
from scipy.stats import binomtest, linregress
from scipy.stats import t as student

from diffusion import metrics
from diffusion.metrics import robustness
from diffusion.runs import run_folder


@pytest.fixture
def script():
    return load_script("plot_robustness")


@pytest.fixture
def plot(run_main, script):
    return lambda *argv: run_main(script.main, *argv)


def estimate(p, n):
    return metrics.Estimate(p, *metrics.wilson(p, n), n)


@pytest.mark.parametrize(("benchmark", "n"), [("imagenetv2", 7), ("imagenetA", 6), ("objectnet", 7)])
def test_the_line_is_least_squares_on_logits(benchmark, n):
    points = robustness.published(robustness.DISCRIMINATIVE, benchmark)
    line, left_out = robustness.fit_published(points)
    used = [points[name] for name in points if name not in left_out]
    u, v = logit(np.array(used).T)
    slope, intercept = np.polyfit(u, v, 1)
    assert line.n == n and left_out == (["ResNet-50"] if benchmark == "imagenetA" else [])
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    at_zero = line.at(0.5)  # logit 0: the intercept with scipy's own standard error
    assert at_zero[0] == pytest.approx(intercept)
    assert at_zero[1] == pytest.approx(student.isf(0.025, n - 2) * linregress(u, v).intercept_stderr)


@pytest.mark.parametrize("benchmark", robustness.BENCHMARKS)
def test_the_knee_is_least_squares_of_two_lines_that_meet(benchmark):
    """Against scipy's curve_fit of the line left of ResNet-50 and another slope right of it."""
    points = robustness.published(robustness.DISCRIMINATIVE, benchmark)
    line, left_out = robustness.fit_published(points, knee=True)
    u, v = logit(np.array([points[name] for name in points if name not in left_out]).T)
    corner = logit(0.767)

    def two_lines(z, height, left, right):
        return height + np.where(z < corner, left, right) * (z - corner)

    found, covariance = curve_fit(two_lines, u, v, p0=(v.mean(), 1, 1))
    assert line.n == len(u) and line.knee == pytest.approx(0.767) and line.bends == (line.knee,)
    x = np.array([0.7, 0.767, 0.79, 0.82])
    expected, half = line.at(x)
    np.testing.assert_allclose(expected, two_lines(logit(x), *found), rtol=1e-5)
    for z, width in zip(logit(x), half, strict=True):  # of a linear function of what was fitted
        of = np.array([1, (z - corner) * (z < corner), (z - corner) * (z >= corner)])
        assert width == pytest.approx(student.isf(0.025, len(u) - 3) * np.sqrt(of @ covariance @ of), rel=1e-3)


def test_points_on_two_lines_are_fitted_exactly():
    u = np.array([-1, -0.5, 0.5, 1, 2])
    line = robustness.fit_logit_knee(expit(u), expit(1 + 0.5 * u + 2 * np.maximum(0, u)), 0.5)
    assert line.coefficients == pytest.approx([1, 0.5, 2]) and line.residual == pytest.approx(0, abs=1e-9)
    on_it = estimate(0.4, 1000)
    above = robustness.effective_robustness(line, on_it, estimate(float(expit(line.at(0.4)[0])), 500))
    assert above.value == pytest.approx(0) and above.low < 0 < above.high


def test_a_valley_within_an_interval_counts():
    """A line that falls and rises again: at the knee less is expected than at both ends of the interval."""
    u = np.array([-2, -1, -0.5, 0.5, 1, 2])
    line = robustness.fit_logit_knee(expit(u), expit(np.abs(u)), 0.5)
    side = metrics.Estimate(0.5, float(expit(-0.4)), float(expit(0.3)), 100)
    above = robustness.effective_robustness(line, side, metrics.Estimate(0.5, 0.5, 0.5, 1))
    assert (above.value, above.high) == pytest.approx((0, 0)) and above.low == pytest.approx(0.5 - expit(0.4))


@pytest.mark.parametrize("x", [[0.6, 0.7, 0.8], [0.6, 0.65, 0.7, 0.75], [0.6, 0.7, 0.8, 1.0]])
def test_too_few_points_for_a_knee(x):
    with pytest.raises(ValueError, match="4 points"):
        robustness.fit_logit_knee(x, np.linspace(0.3, 0.5, len(x)), 0.767)


@pytest.mark.parametrize(("right", "n"), [(0, 20), (9, 20), (20, 20), (1500, 7500), (1, 1)])
def test_clopper_pearson_is_scipys(right, n):
    expected = binomtest(right, n).proportion_ci(0.995, method="exact")
    assert metrics.clopper_pearson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_as_the_paper_draws_it(plot):
    argv = ("--benchmark", "imagenetA", "--in_dist", "77.5/50000", "--out_dist", "20/7500", "-o", "r.png")
    code, out, err = plot(*argv, "--curve", "knee", "--clopper_pearson")
    assert code == 0 and "max(0, logit(x) - logit(0.767))" in out and "exact, 99.5 %" in out, err
    with open("r.csv") as file:
        mine = next(csv.DictReader(file))
    exact = binomtest(1500, 7500).proportion_ci(0.995, method="exact")
    assert (float(mine["out_dist_exact_low"]), float(mine["out_dist_exact_high"])) == pytest.approx((exact.low, exact.high))
    assert float(mine["out_dist_exact_low"]) < float(mine["out_dist_low"])
    line, _ = robustness.fit_published(robustness.published(robustness.DISCRIMINATIVE, "imagenetA"), knee=True)
    assert float(mine["expected"]) == pytest.approx(expit(line.at(0.775)[0]))
    assert plot(*argv)[0] == 0 and "exact" not in Path("r.csv").read_text()


def test_published_points_are_copied_right():
    assert robustness.published(robustness.DIT, "imagenetA")["DiT-XL/2 256 px"] == pytest.approx((0.775, 0.2))
    assert robustness.published(robustness.DISCRIMINATIVE, "objectnet")["ViT-B/16"] == pytest.approx((0.812, 0.399))
    assert robustness.published(robustness.DISCRIMINATIVE, "imagenetv2")["ResNet-18"] == pytest.approx((0.703, 0.573))


def test_too_few_points_and_points_without_a_logit():
    for x, y in [([0.5, 0.6], [0.4, 0.5]), ([0.5, 0.6, 0.7], [0.0, 0.5, 0.6]), ([0.5, 0.6, 1.0], [0.1, 0.5, 0.6])]:
        with pytest.raises(ValueError, match="3 points"):
            robustness.fit_logit_line(x, y)


def test_a_model_on_the_line_has_no_effective_robustness():
    x = np.array([0.6, 0.7, 0.8, 0.9])
    line = robustness.fit_logit_line(x, expit(0.5 * logit(x) - 1))
    assert (line.slope, line.intercept, line.residual) == pytest.approx((0.5, -1, 0), abs=1e-9)
    above = robustness.effective_robustness(line, estimate(0.75, 1000), estimate(float(expit(0.5 * logit(0.75) - 1)), 500))
    assert above.value == pytest.approx(0) and above.low < 0 < above.high


def test_an_exact_line_and_side_leave_the_interval_of_the_other():
    x = np.array([0.6, 0.7, 0.8, 0.9])
    line = robustness.fit_logit_line(x, x)
    out = estimate(0.5, 200)
    above = robustness.effective_robustness(line, metrics.Estimate(0.7, 0.7, 0.7, 1), out)
    assert (above.value, above.low, above.high) == pytest.approx((-0.2, out.low - 0.7, out.high - 0.7))
    falling = robustness.fit_logit_line(x, 1 - x)
    below = robustness.effective_robustness(falling, estimate(0.7, 200), metrics.Estimate(0.3, 0.3, 0.3, 1))
    assert below.value == pytest.approx(0) and below.low < 0 < below.high
    with pytest.raises(ValueError, match="logit"):
        robustness.effective_robustness(line, estimate(1.0, 200), out)


def test_the_interval_covers_its_target():
    """Models scattered around a true line, accuracies counted: about 95 of 100 intervals hold the true distance."""
    rng = np.random.default_rng(0)
    true = {"slope": 0.9, "intercept": -0.7, "x": 0.75, "y": 0.55}
    target = true["y"] - expit(true["intercept"] + true["slope"] * logit(true["x"]))
    u = logit(np.linspace(0.68, 0.82, 7))
    held = []
    for _ in range(400):
        line = robustness.fit_logit_line(expit(u), expit(true["intercept"] + true["slope"] * u + rng.normal(0, 0.05, 7)))
        sides = [estimate(rng.binomial(n, true[key]) / n, n) for key, n in (("x", 1000), ("y", 500))]
        above = robustness.effective_robustness(line, *sides)
        held.append(above.low <= target <= above.high)
    assert 0.92 <= np.mean(held) <= 0.98


# ---------------------------------------------------------------- the command


def run_of(name, right, n=20):
    """A run of n images of which `right` are right."""
    errors = np.tile(np.array([[0.1, 0.2], [0.2, 0.3]]), (n, 1, 1))  # class 0 wins
    return write_run(Path(name), errors, [250, 750], [0] * right + [1] * (n - right), ["a", "b"])


def test_runs_and_numbers_beside_the_published(plot):
    argv = ("--in_dist", run_of("in", 15), "77.5/50000", "--out_dist", run_of("out", 9), "20/7500")
    code, out, err = plot("--benchmark", "imagenetA", *argv, "-o", "new/r.png")
    assert code == 0, err
    assert "ResNet-50 has 0.0 % there" in out and "n = 20 and 20" in out and "n = 50000 and 7500" in out
    assert Image.open("new/r.png").size[0] > 800
    with open("new/r.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["yours"] * 2 + ["dit"] * 4 + ["discriminative"] * 7
    line, _ = robustness.fit_published(robustness.published(robustness.DISCRIMINATIVE, "imagenetA"))
    for row in rows:
        expected = expit(line.intercept + line.slope * logit(float(row["in_dist"])))
        assert float(row["expected"]) == pytest.approx(expected)
        assert float(row["above"]) == pytest.approx(float(row["out_dist"]) - expected)
    mine = rows[0]
    assert (float(mine["in_dist"]), float(mine["out_dist"]), mine["out_dist_n"]) == (0.75, 0.45, "20")
    assert (float(mine["out_dist_low"]), float(mine["out_dist_high"])) == pytest.approx(metrics.wilson(0.45, 20))
    assert rows[1]["out_dist_n"] == "7500" and rows[2]["out_dist_low"] == "" and float(rows[1]["above"]) > 0.1


@pytest.mark.parametrize("right", [0, 20])
def test_all_wrong_and_all_right_are_drawn(right, plot):
    code, out, err = plot("--benchmark", "objectnet", "--in_dist", "70/100", "--out_dist", run_of("out", right), "-o", "r.svg")
    assert code == 0 and "<svg" in Path("r.svg").read_text(), err
    assert f"{5 * right:.2f} %" in out


def test_a_run_that_eliminated_counts_too_and_another_dataset_is_told(plot):
    folder = run_of("out", 9)
    rows = {0: np.float32([1, 1]), 1: np.float32([2])}
    run_folder.save_record(folder / "20.pt", staged_record([0, 1], rows, torch.tensor([250, 750]), 0, 0))
    (folder / "21.pt").write_bytes(b"half")
    (folder / "config.json").write_text('{"identity": {"dataset": "pets"}}')
    code, out, err = plot("--benchmark", "objectnet", "--in_dist", "70/100", "--out_dist", folder, "-o", "r.png")
    assert code == 0 and "n = 100 and 21" in out
    assert "1 unreadable record" in err and "21.pt" in err and "a run on pets" in err


def test_bad_input_is_one_line(plot):
    Path("empty").mkdir()
    ok = run_of("ok", 9)
    for sides, told in [
        ((ok, "empty"), "no readable record"),
        (("77.5", ok), "77.5/50000"),
        (("177/50", ok), "more than 100"),
        (("100/50", ok), "logit axis"),
        (("0/50", ok), "logit axis"),
        (("77.5/0", ok), "77.5/0"),
        (("nowhere", ok), "nowhere"),
    ]:
        code, _, err = plot("--benchmark", "objectnet", "--in_dist", sides[0], "--out_dist", sides[1], "-o", "r.png")
        assert code == 2 and err.count("\n") == 1 and told in err, (sides, err)
    for argv, told in [
        (("--benchmark", "objectnet", "--in_dist", "70/9", "--out_dist", ok, ok, "-o", "r.png"), "one of each"),
        (("--benchmark", "imagenet", "--in_dist", "70/9", "--out_dist", ok, "-o", "r.png"), "--benchmark"),
        (("--benchmark", "objectnet", "--in_dist", "70/9", "--out_dist", ok, "-o", "r.jpg"), ".png or .svg"),
    ]:
        code, _, err = plot(*argv)
        assert code == 2 and err.count("\n") == 1 and told in err, err
    assert not list(Path().glob("r.*"))
