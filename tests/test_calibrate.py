"""scripts/calibrate.py on small runs written here: what it prints, its CSV and the points of its picture, checked by hand."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script, staged_record
from PIL import Image
from scipy.optimize import minimize
from scipy.stats import binomtest

from diffusion.analysis import confidence, tables
from diffusion.metrics.calibration import Fit
from diffusion.runs import run_folder

N, N_PAIRS = 60, 20  # images, pairs of (timestep, noise)


@pytest.fixture
def calibrate(run_main):
    return lambda *argv: run_main(load_script("calibrate").main, *argv)


def staged(errors, pred, label):
    """A record whose candidate k saw the first len(errors[k]) pairs."""
    t = torch.arange(5, 1000, 50)
    return staged_record(range(len(errors)), dict(enumerate(errors)), t, pred, label)


def write_run(folder, records, labels=(0, 1, 2), **identity):
    folder = Path(folder)
    folder.mkdir()
    names = [f"class {label}" for label in labels]
    config = {"identity": identity, "candidates": {"labels": list(labels), "names": names}}
    (folder / "config.json").write_text(json.dumps(config))
    for index, record in records.items():
        run_folder.save_record(run_folder.record_path(folder, index, 1000), record)
    return folder


def image_errors(rng, label):
    """What all candidates share, plus 0.02 for wrong classes, plus an offset that makes some predictions wrong: [3,N_PAIRS]."""
    means = 0.02 * (np.arange(3) != label) + rng.normal(0, 0.01, 3)
    shared = rng.normal(1, 0.3, N_PAIRS)
    noise = rng.normal(0, 0.01, (3, N_PAIRS))
    return (means[:, None] + shared + noise).astype(np.float32)


def full_records():
    rng, records = np.random.default_rng(0), {}
    for index in range(N):
        label = index % 3
        errors = image_errors(rng, label)
        records[index] = staged(errors, int(np.argmin([e.mean(dtype=np.float64) for e in errors])), label)
    return records


def race_records():
    """The less clear an image, the more pairs it took; the loser of each fell after 8."""
    rng, records = np.random.default_rng(0), {}
    for index in range(N):
        label = index % 3
        errors = image_errors(rng, label)
        first, second, third = np.argsort([e.mean() for e in errors])
        gap = errors[second].mean() - errors[first].mean()
        seen = int(np.clip(0.25 / gap, 10, N_PAIRS))
        errors = {first: errors[first][:seen], second: errors[second][:seen], third: errors[third][:8]}
        records[index] = staged([errors[k] for k in range(3)], int(first), label)
    return records


def read_csv(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def printed(out, name):
    """The cells of a confidence's line in the table."""
    lines = out[out.index("confidence  ") :].splitlines()
    assert lines[0].split() == ["confidence", "mean", "ECE", "by", "chance", "p", "Brier", "NLL", "AUROC"]
    cells = next(line for line in lines if line.startswith(f"{name} ")).split()[1:]
    return dict(zip(("mean", "ECE", "by chance", "p", "Brier", "NLL", "AUROC"), map(float, cells), strict=True))


# ---------------------------------------------------------------- oracles: the definitions, image by image


def softmax_of(record, temperature, weight):
    """Probabilities of the classes of a record of three candidates with all errors, and the second smallest gap."""
    errors = np.stack([c["pred_errors"].numpy() for c in record["errors"].values()]).astype(float)
    differences = errors - errors[record["pred"]]
    gaps, deviations = differences.mean(1), differences.std(1, ddof=1) / np.sqrt(N_PAIRS)
    odds = np.exp(-gaps / np.sqrt(temperature**2 + np.pi / 8 * (weight * deviations) ** 2))
    return odds / odds.sum(), np.sort(gaps)[1]


def binned_error(p, right):
    """Expected calibration error of 15 bins."""
    total = 0.0
    for k in range(15):
        members = [(a, b) for a, b in zip(p, right, strict=True) if min(int(a * 15), 14) == k]
        total += abs(sum(a - b for a, b in members))
    return total / len(p)


def chance_and_p(p, right, draws=2000):
    """Mean ECE and share of ECEs at least as large as the one found, of right or wrong by throws of these probabilities."""
    rng, found = np.random.default_rng(99), binned_error(p, right)
    errors = [binned_error(p, rng.random(len(p)) < p) for _ in range(draws)]
    return np.mean(errors), np.mean(np.array(errors) >= found)


def share_of_pairs(p, right):
    """AUROC: of all pairs of a right and a wrong image, in which the right one has more, a tie counting half."""
    pairs = [(a > b) + (a == b) / 2 for a in p[right] for b in p[~right]]
    return sum(pairs) / len(pairs)


def logistic(x, right):
    """Log-odds' intercept and slope with Platt's targets, by Newton's method."""
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))
    design, w = np.stack([np.ones_like(x), x - x.mean()], 1), np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ w))
        w += np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design, design.T @ (target - p))
    return w[0] - w[1] * x.mean(), w[1]


def second_half(folder):
    """Which images are in the second half, as the script splits them; whether it splits well is tested elsewhere."""
    return confidence.read_images(tables.read_run(folder)).second


# ---------------------------------------------------------------- the command


def test_the_csv_is_the_cross_fitted_softmax(calibrate):
    records = full_records()
    folder = write_run("run", records)
    code, out, err = calibrate(folder, "--csv", "p.csv")
    assert code == 0, err
    rows = read_csv("p.csv")
    assert list(rows[0]) == ["index", "label", "pred", "probability", "margin", "evaluations"]
    fits = re.search(r"temperature (\S+) with (\S+) standard errors and (\S+) with (\S+) standard errors", out).groups()
    fits = [[float(x) for x in fits[:2]], [float(x) for x in fits[2:]]]
    second = second_half(folder)
    assert 28 <= second.sum() <= 32 and set(second[::2]) == set(second[1::2]) == {True, False}
    for row, in_second, (index, record) in zip(rows, second, records.items(), strict=True):
        p, margin = softmax_of(record, *fits[int(in_second)])  # the first fit is of the second half, for the first
        assert float(row["probability"]) == pytest.approx(p[record["pred"]], abs=0.01)  # fits are printed to 3 and 2 digits
        assert float(row["margin"]) == pytest.approx(margin)
        counts = [int(row[name]) for name in ("index", "label", "pred", "evaluations")]
        assert counts == [index, record["label"], record["pred"], 60]


def test_the_table_is_of_the_csv(calibrate):
    code, out, err = calibrate(write_run("run", full_records()), "--csv", "p.csv")
    assert code == 0, err
    rows = read_csv("p.csv")
    p, right = np.array([float(r["probability"]) for r in rows]), np.array([r["label"] == r["pred"] for r in rows])
    interval = binomtest(int(right.sum()), 60).proportion_ci(method="wilson")
    top1 = f"{100 * right.mean():.2f}% (95% interval {100 * interval.low:.1f} to {100 * interval.high:.1f}, n = 60)"
    assert f"Top-1 accuracy: {top1}" in out
    found = printed(out, "errors")
    expected = {
        "mean": p.mean(),
        "ECE": binned_error(p, right),
        "Brier": sum((a - b) ** 2 for a, b in zip(p, right, strict=True)) / 60,
        "NLL": -sum(np.log(a if b else 1 - a) for a, b in zip(p, right, strict=True)) / 60,
        "AUROC": share_of_pairs(p, right),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=6e-4)
    chance, p_value = chance_and_p(p, right)
    assert found["by chance"] == pytest.approx(chance, rel=0.05) and found["p"] == pytest.approx(p_value, abs=0.05)
    unscaled = printed(out, "unscaled")
    assert unscaled["mean"] == pytest.approx(1 / 3, abs=0.01) and unscaled["ECE"] > 2 * expected["ECE"]
    assert unscaled["p"] == 0.001  # none of the 1,000
    assert "evaluations " not in out.split("confidence ")[1] and "dropped early" not in out


def test_a_race_is_compared_on_shared_pairs_and_offers_its_evaluations(calibrate):
    records = race_records()
    folder = write_run("race", records, strategy="race")
    code, out, err = calibrate(folder, "--csv", "errors.csv")
    assert code == 0, err
    assert "33% of all candidates were dropped early" in out
    right = np.array([r["pred"] == r["label"] for r in records.values()])
    code, out, err = calibrate(folder, "--confidence", "evaluations", "--csv", "evaluations.csv")
    assert code == 0, err
    rows = read_csv("evaluations.csv")
    x = np.log([float(r["evaluations"]) for r in rows])
    assert [int(r["evaluations"]) for r in rows] == [sum(len(c["t"]) for c in r["errors"].values()) for r in records.values()]
    p, second = np.array([float(r["probability"]) for r in rows]), second_half(folder)
    for half in (second, ~second):
        intercept, slope = logistic(x[~half], right[~half])
        assert p[half] == pytest.approx(1 / (1 + np.exp(-(intercept + slope * x[half]))), abs=1e-3)
    assert printed(out, "evaluations")["AUROC"] == pytest.approx(share_of_pairs(p, right), abs=1e-4)
    assert printed(out, "errors")["mean"] == pytest.approx(
        np.mean([float(r["probability"]) for r in read_csv("errors.csv")]), abs=6e-4
    )


# ---------------------------------------------------------------- a fit for new images


def test_the_fit_is_of_all_images(calibrate):
    """Against the lowest mean of -log p(label) over all of them, found by another search."""
    records = full_records()
    code, _, err = calibrate(write_run("run", records, dataset="fashion_mnist"), "--write_fit", "new/fit.json")
    assert code == 0, err
    fit = Fit.read("new/fit.json")
    assert (fit.n, fit.about) == (N, {"dataset": "fashion_mnist"})

    def loss(temperature, weight):
        return -np.mean([np.log(softmax_of(r, temperature, weight)[0][r["label"]]) for r in records.values()])

    best = minimize(lambda x: loss(np.exp(x[0]), np.clip(x[1], 0, 1)), [np.log(0.01), 0.5], method="Nelder-Mead")
    assert loss(fit.temperature, fit.weight) == pytest.approx(best.fun, abs=1e-4)
    assert min(loss(2 * fit.temperature, fit.weight), loss(fit.temperature / 2, fit.weight)) > best.fun + 0.01


def test_fitted_on_another_run(calibrate):
    """Probabilities are the softmax under the other run's own fit, evaluations its own regression; no half is fitted."""
    others = {i: r for i, r in zip(range(100, 100 + N), race_records().values(), strict=True)}
    other, run = write_run("other", others), write_run("run", race_records())
    assert calibrate(other, "--write_fit", "fit.json")[0] == 0
    code, out, err = calibrate(run, "--fitted_on", other, "--csv", "p.csv")
    assert code == 0 and "Fitted on the 60 images of other." in out and "half" not in out, (out, err)
    fit, images = Fit.read("fit.json"), confidence.read_images(tables.read_run(run))
    odds = np.exp(-images.gaps / np.sqrt(fit.temperature**2 + np.pi / 8 * (fit.weight * images.deviations) ** 2))
    wanted = odds[np.arange(N), images.preds] / odds.sum(1)
    assert [float(r["probability"]) for r in read_csv("p.csv")] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert calibrate(run, "--fitted_on", other, "--confidence", "evaluations", "--csv", "p.csv")[0] == 0
    intercept, slope = logistic(np.log(images.evaluations), images.right)
    wanted = 1 / (1 + np.exp(-(intercept + slope * np.log(images.evaluations))))
    assert [float(r["probability"]) for r in read_csv("p.csv")] == pytest.approx(wanted.tolist(), abs=1e-3)


# ---------------------------------------------------------------- kinds of runs


def test_a_candidate_that_fell_has_the_gap_of_its_own_pairs():
    """The winner's later pairs cost much more; compared by plain means, the fallen one would win."""
    winner = np.r_[np.full(5, 1.0), np.full(15, 9.0)]
    errors = [winner.astype(np.float32), np.array([1.1, 1.3, 1.1, 1.3, 1.2], np.float32), (winner + 0.4).astype(np.float32)]
    run = tables.read_run(write_run("run", {3: staged(errors, 0, 0)}))
    gaps, deviations = confidence.gaps_of(run.images[0], run.class_of)
    assert gaps == pytest.approx([0, 0.2, 0.4], abs=1e-6)
    assert deviations == pytest.approx([0, 0.1 / np.sqrt(5), 0], abs=1e-6)
    images = confidence.read_images(run)
    assert images.margins.tolist() == pytest.approx([0.2], abs=1e-6) and images.evaluations.tolist() == [45]


def test_several_prompts_a_class(calibrate):
    """Rows 0 and 3 are one class; its better row counts, and the other is no rival of the prediction."""
    records = {}
    for index, record in full_records().items():
        errors = [c["pred_errors"].numpy() for c in record["errors"].values()]
        records[index] = staged([*errors, errors[0] + np.float32(1e-4)], record["pred"], record["label"])
    single = write_run("single", full_records())
    double = write_run("double", records, labels=(0, 1, 2, 0))
    for folder, name in ((single, "single.csv"), (double, "double.csv")):
        code, out, err = calibrate(folder, "--csv", name)
        assert code == 0, err
    assert "4 candidates of 3 classes" in out
    for a, b in zip(read_csv("single.csv"), read_csv("double.csv"), strict=True):
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=1e-3)
        assert float(a["margin"]) == pytest.approx(float(b["margin"])) and a["pred"] == b["pred"]


def test_sums_are_enough(calibrate):
    """A DiT's record of sums gives the posterior of its means."""
    records = full_records()
    sums = {}
    for index, record in records.items():
        values = torch.stack([c["pred_errors"].double().sum() for c in record["errors"].values()])
        kept = torch.zeros(3, 4, dtype=torch.float64)
        kept[:, 0] = values
        t = torch.arange(5, 1000, 50)
        sums[index] = {"classes": torch.arange(3), "t": t, "sums": kept, "pred": record["pred"], "label": record["label"]}
    folder = write_run("sums", sums, loss="l2")
    code, out, err = calibrate(folder, "--csv", "p.csv")
    assert code == 0, err
    temperatures = [float(x) for x in re.findall(r"(\S+) with 0.00 standard errors", out)]
    assert len(temperatures) == 2
    for row, in_second, record in zip(read_csv("p.csv"), second_half(folder), sums.values(), strict=True):
        gaps = (record["sums"][:, 0] - record["sums"][record["pred"], 0]).numpy() / N_PAIRS
        expected = 1 / np.exp(-gaps / temperatures[int(in_second)]).sum()
        assert float(row["probability"]) == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_the_picture_shows_the_bins(calibrate):
    script = load_script("calibrate")
    drawn = confidence.Confidence("errors", np.array([0.31, 0.32, 0.95, 0.97, 0.99]), "")
    bins, whiskers = script.points_of(drawn, np.array([True, False, True, True, True]))
    assert bins.counts.tolist() == [2, 3] and bins.confidence == pytest.approx([0.315, 0.97])
    ends = [binomtest(right, n).proportion_ci(method="wilson") for right, n in ((1, 2), (3, 3))]
    assert whiskers == pytest.approx(np.array([[0.5 - ends[0].low, 1 - ends[1].low], [ends[0].high - 0.5, 0]]))
    folder = write_run("race", race_records())
    for name in ("r.png", "r.svg"):
        code, _, err = calibrate(folder, "--out", name)
        assert code == 0, err
    assert Image.open("r.png").size[0] > 1000 and "<svg" in Path("r.svg").read_text()[:1000]


def test_half_written_records_are_skipped_and_named(calibrate):
    folder = write_run("run", full_records())
    whole = (folder / "007.pt").read_bytes()
    (folder / "007.pt").write_bytes(whole[: len(whole) // 2])
    code, out, err = calibrate(folder, "--csv", "p.csv")
    assert code == 0 and "n = 59" in out and "1 unreadable record, not counted: 007.pt" in out, err
    assert len(read_csv("p.csv")) == 59 and "7" not in [row["index"] for row in read_csv("p.csv")]


def test_bad_input(calibrate):
    records = full_records()
    Path("empty").mkdir()
    write_run("few", {i: records[i] for i in range(10)})
    right = {i: r for i, r in records.items() if r["pred"] == r["label"]}
    write_run("right", right)
    write_run("wrong", {i: r | {"label": (r["pred"] + 1) % 3} for i, r in records.items()})
    write_run("one", {i: r | {"pred": 0, "label": 0} for i, r in records.items()}, labels=(0, 0, 0))
    write_run("strange", records | {5: records[5] | {"label": 8}})
    write_run("run", records)
    write_run("l2", records, loss="l2")
    write_run("l1", records, loss="l1")
    errors = [[*image_errors(np.random.default_rng(i), 0), np.full(N_PAIRS, 9.0, np.float32)] for i in range(40)]
    preds = [int(np.mean(rows, axis=1).argmin()) for rows in errors]
    write_run("four", {i + 100: staged(rows, preds[i], (preds[i] + i % 2) % 3) for i, rows in enumerate(errors)},
              labels=(0, 1, 2, 3))  # fmt: skip
    Path("file").write_text("mine")
    for argv, told in [
        (("nowhere",), "no readable record"),
        (("empty",), "no readable record"),
        (("few",), "10 readable images"),
        (("right",), r"a half of right has (\d+) images and \1 right"),
        (("wrong",), "has 30 images and 0 right"),
        (("one",), "one class only"),
        (("strange",), "class 8 of image 5"),
        (("run", "--confidence", "evaluations"), "cost 60 evaluations"),
        (("run", "--fitted_on", "nowhere"), "nowhere holds no readable record"),
        (("run", "--fitted_on", "few"), "few holds 10 readable images"),
        (("run", "--fitted_on", "run"), "--fitted_on: run and run share 60 images"),
        (("l1", "--fitted_on", "l2"), "--fitted_on: l1 and l2 differ in loss"),
        (("run", "--fitted_on", "four"), "--fitted_on: four has other candidates than run"),
        (("run", "--out", "r.jpeg"), "must end in .png or .svg"),
        (("run", "--out", "file/r.png"), "file"),
        (("run", "--csv", "file/p.csv"), "file"),
        (("run", "--write_fit", "file/f.json"), "file"),
    ]:
        code, _, err = calibrate(*argv)
        assert code == 2 and err.count("\n") == 1 and re.search(told, err), (argv, err)
    assert Path("file").read_text() == "mine"


@pytest.mark.slow
def test_halves_of_few_wrong_images_have_both_kinds(calibrate):
    """Two wrong images of different classes: half of all shuffles leave them together, which fits nothing."""
    for first in range(0, N, 10):
        records = {i: r | {"label": r["pred"]} for i, r in full_records().items()}
        for index in (first, first + 1):
            records[index] = records[index] | {"label": (records[index]["pred"] + 1) % 3}
        code, _, err = calibrate(write_run(f"run{first}", records))
        assert code == 0, err
