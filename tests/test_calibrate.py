"""scripts/calibrate.py on small runs written here: what it prints, its CSV and the points of its picture, checked by hand."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image

from diffusion import metrics, runlog
from diffusion.analysis import tables

N, N_PAIRS = 60, 20  # images, pairs of (timestep, noise)


@pytest.fixture
def calibrate(run_main):
    return lambda *argv: run_main(load_script("calibrate").main, *argv)


def staged(errors, pred, label):
    """A record whose candidate k saw the first len(errors[k]) pairs."""
    t = torch.arange(5, 1000, 50)
    return runlog.staged_record(range(len(errors)), dict(enumerate(errors)), t, pred, label)


def write_run(folder, records, labels=(0, 1, 2), **identity):
    folder = Path(folder)
    folder.mkdir()
    names = [f"class {label}" for label in labels]
    config = {"identity": identity, "candidates": {"labels": list(labels), "names": names}}
    (folder / "config.json").write_text(json.dumps(config))
    for index, record in records.items():
        runlog.save_record(runlog.record_path(folder, index, 1000), record)
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
    """The numbers of a confidence's line in the table."""
    line = next(line for line in out.splitlines() if line.startswith(f"{name} ") and re.search(r"\(\d.*to", line))
    return [float(x) for x in re.findall(r"\d+\.\d+", line)]


def test_the_csv_is_the_cross_fitted_softmax(calibrate):
    records = full_records()
    folder = write_run("run", records)
    code, out, err = calibrate(folder, "--csv", "p.csv")
    assert code == 0, err
    rows = read_csv("p.csv")
    assert list(rows[0]) == ["index", "label", "pred", "probability", "margin", "evaluations"]
    fits = re.search(r"temperature (\S+) with (\S+) standard errors and (\S+) with (\S+) standard errors", out).groups()
    fits = [[float(x) for x in fits[:2]], [float(x) for x in fits[2:]]]
    for row, (index, record) in zip(rows, records.items(), strict=True):
        errors = np.stack([c["pred_errors"].numpy() for c in record["errors"].values()]).astype(float)
        differences = errors - errors[record["pred"]]
        gaps, deviations = differences.mean(1), differences.std(1, ddof=1) / np.sqrt(N_PAIRS)
        temperature, weight = fits[index % 2]  # the first fit is of the odd half, for the even images
        odds = np.exp(-gaps / np.sqrt(temperature**2 + np.pi / 8 * (weight * deviations) ** 2))
        assert float(row["probability"]) == pytest.approx(1 / odds.sum(), abs=0.01)  # fits are printed to 3 and 2 digits
        assert float(row["margin"]) == pytest.approx(np.sort(gaps)[1])
        counts = [int(row[name]) for name in ("index", "label", "pred", "evaluations")]
        assert counts == [index, record["label"], record["pred"], 60]


def test_the_table_is_of_the_csv(calibrate):
    code, out, err = calibrate(write_run("run", full_records()), "--csv", "p.csv")
    assert code == 0, err
    rows = read_csv("p.csv")
    p, right = np.array([float(r["probability"]) for r in rows]), np.array([r["label"] == r["pred"] for r in rows])
    assert str(metrics.proportion(right)) in out and "n = 60" in out
    low, high = metrics.ece_interval(p, right)
    expected = [p.mean(), metrics.expected_calibration_error(p, right), low, high, metrics.ece_by_chance(p),
                ((p - right) ** 2).mean(), -np.log(np.where(right, p, 1 - p)).mean(), metrics.auroc(p, right)]  # fmt: skip
    assert printed(out, "errors") == pytest.approx(expected, abs=6e-4)
    unscaled = printed(out, "unscaled")
    assert unscaled[0] == pytest.approx(1 / 3, abs=0.01) and unscaled[1] > 2 * expected[1]
    assert "evaluations " not in out.split("confidence ")[1] and "fell early" not in out


def test_a_race_is_compared_on_shared_pairs_and_offers_its_evaluations(calibrate):
    records = race_records()
    folder = write_run("race", records, strategy="race")
    code, out, err = calibrate(folder, "--csv", "errors.csv")
    assert code == 0, err
    assert "33% of all candidates fell early" in out
    right = np.array([r["pred"] == r["label"] for r in records.values()])
    code, out, err = calibrate(folder, "--confidence", "evaluations", "--csv", "evaluations.csv")
    assert code == 0, err
    rows = read_csv("evaluations.csv")
    x = np.log([float(r["evaluations"]) for r in rows])
    assert [int(r["evaluations"]) for r in rows] == [sum(len(c["t"]) for c in r["errors"].values()) for r in records.values()]
    for half in (0, 1):
        intercept, slope = metrics.fit_platt(x[1 - half :: 2], right[1 - half :: 2])
        expected = 1 / (1 + np.exp(-(intercept + slope * x[half::2])))
        assert [float(r["probability"]) for r in rows[half::2]] == pytest.approx(expected.tolist())
    p = np.array([float(r["probability"]) for r in rows])
    assert printed(out, "evaluations")[-1] == pytest.approx(metrics.auroc(p, right), abs=1e-4)
    assert printed(out, "errors")[0] == pytest.approx(
        np.mean([float(r["probability"]) for r in read_csv("errors.csv")]), abs=6e-4
    )


def test_a_candidate_that_fell_has_the_gap_of_its_own_pairs():
    """The winner's later pairs cost much more; compared by plain means, the fallen one would win."""
    winner = np.r_[np.full(5, 1.0), np.full(15, 9.0)]
    errors = [winner.astype(np.float32), np.array([1.1, 1.3, 1.1, 1.3, 1.2], np.float32), (winner + 0.4).astype(np.float32)]
    run = tables.read_run(write_run("run", {3: staged(errors, 0, 0)}))
    gaps, deviations = load_script("calibrate").gaps_of(run.images[0], run.class_of)
    assert gaps == pytest.approx([0, 0.2, 0.4], abs=1e-6)
    assert deviations == pytest.approx([0, 0.1 / np.sqrt(5), 0], abs=1e-6)
    images = load_script("calibrate").read_images(run)
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
    code, out, err = calibrate(write_run("sums", sums, loss="l2"), "--csv", "p.csv")
    assert code == 0, err
    temperatures = [float(x) for x in re.findall(r"(\S+) with 0.00 standard errors", out)]
    assert len(temperatures) == 2
    for row, record in zip(read_csv("p.csv"), sums.values(), strict=True):
        gaps = (record["sums"][:, 0] - record["sums"][record["pred"], 0]).numpy() / N_PAIRS
        expected = 1 / np.exp(-gaps / temperatures[int(row["index"]) % 2]).sum()
        assert float(row["probability"]) == pytest.approx(expected, abs=0.01)


def test_the_picture_shows_the_bins(calibrate):
    script = load_script("calibrate")
    confidence = script.Confidence("errors", np.array([0.31, 0.32, 0.95, 0.97, 0.99]), "")
    bins, whiskers = script.points_of(confidence, np.array([True, False, True, True, True]))
    assert bins.counts.tolist() == [2, 3] and bins.confidence == pytest.approx([0.315, 0.97])
    ends = [metrics.wilson(0.5, 2), metrics.wilson(1.0, 3)]
    assert whiskers == pytest.approx(np.array([[0.5 - ends[0][0], 1 - ends[1][0]], [ends[0][1] - 0.5, 0]]))
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
    assert code == 0 and "n = 59" in out and "Skipped: 1 unreadable records: 007.pt" in out, err
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
    for argv, told in [
        (("nowhere",), "no readable record"),
        (("empty",), "no readable record"),
        (("few",), "10 readable images"),
        (("right",), f"has {(len(right) + 1) // 2} images and {(len(right) + 1) // 2} right"),
        (("wrong",), "has 30 images and 0 right"),
        (("one",), "one class only"),
        (("strange",), "class 8 of image 5"),
        (("run", "--confidence", "evaluations"), "cost 60 evaluations"),
        (("run", "--out", "r.jpeg"), "must end in .png or .svg"),
        (("run", "--out", "nowhere/r.png"), "nowhere/r.png"),
        (("run", "--csv", "nowhere/p.csv"), "nowhere/p.csv"),
    ]:
        code, _, err = calibrate(*argv)
        assert code == 2 and err.count("\n") == 1 and told in err, (argv, err)
