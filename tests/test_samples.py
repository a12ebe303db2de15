"""scripts/collect.py --samples: a run's images as rows, against the records and against the classifier's own probabilities."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import load_script, staged_record, write_run

from diffusion.analysis import samples
from diffusion.classify import Result
from diffusion.metrics import calibration
from diffusion.runs import run_folder

T = [100, 300, 500, 700]
IDENTITY = {"weights": "sha256 12ab", "loss": "l1", "to_keep": [2, 1], "n_samples": [2, 4], "n_trials": 1}
CLASS_OF, NAMES = [4, 4, 7, 9], ["cat", "cat", "dog", "crane"]
FIT = calibration.Fit(0.3, 0.5, 100, IDENTITY | {"subset": "others"})


def record(errors, pred, label, **more):
    return staged_record(range(4), {k: np.float32(e) for k, e in errors.items()}, T, pred, label) | more


@pytest.fixture
def run(tmp_path):
    """Two stages: two of four candidates see all; a race that dropped in rounds 1 and 3; a record that is cut."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"identity": IDENTITY, "candidates": {"labels": CLASS_OF, "names": NAMES}}
    (folder / "config.json").write_text(json.dumps(config))
    staged = {0: [1.0, 1.2], 1: [0.5, 0.7, 0.6, 0.6], 2: [0.6, 0.8, 0.9, 0.7], 3: [3.0, 1.0]}
    run_folder.save_record(folder / "3.pt", record(staged, 4, 4))
    race = {0: [1.0, 1.2], 1: [1.5, 0.7, 0.9, 0.9], 2: [0.6, 0.8, 0.9, 0.7], 3: [3.0, 1.0]}
    run_folder.save_record(folder / "11.pt", record(race, 7, 9, fell={0: 1, 3: 1, 1: 3}, evaluations=12))
    (folder / "12.pt").write_bytes(b"")
    return folder


def test_rows_are_the_records(run):
    unreadable = []
    (first, second), about = samples.rows_of(run, unreadable=unreadable)
    assert about == {"labels": CLASS_OF, "names": NAMES} and unreadable[0].startswith("12.pt")
    assert (first["index"], first["label"], first["pred"], first["right"], first["evaluations"]) == (3, 4, 4, True, 12)
    assert first["errors"] == pytest.approx([1.1, 0.6, 0.75, 2.0]) and first["dropped"] == [1, None, None, 1]
    assert (second["pred"], second["right"], second["dropped"]) == (7, False, [1, 3, None, 1])
    assert "probability" not in first


def test_errors_are_those_that_a_run_with_level_weights_compared(run):
    """Weights by hand: exp(u) over its mean, u the level scaled to -1..1."""
    about = {"weights": "a", "loss": "l1", "n_levels": 1000, "error_space": "epsilon", "levels": None, "img_size": 64}
    config = json.loads((run / "config.json").read_text())
    config["level_weights"] = {"coefficients": [1.0, 0.0, 0.0], "n": 9, "about": about}
    (run / "config.json").write_text(json.dumps(config))
    weights = np.exp(np.linspace(-1, 1, 1000))
    weights = (weights / weights.mean())[T]
    first = samples.rows_of(run)[0][0]["errors"]
    assert first[1] == pytest.approx((np.array([0.5, 0.7, 0.6, 0.6]) * weights).mean())
    assert first[0] == pytest.approx((np.array([1.0, 1.2]) * weights[:2]).mean())


def test_three_stages_count_from_one(tmp_path):
    errors = {0: [1.0] * 4, 1: [2.0] * 3, 2: [3.0], 3: [3.0] * 3}
    run_folder.save_record(tmp_path / "0.pt", record(errors, 0, 0))
    assert samples.rows_of(tmp_path)[0][0]["dropped"] == [None, 2, 1, 2]


def test_a_grid_drops_nobody(tmp_path):
    folder = write_run(tmp_path / "run", np.random.default_rng(0).random((3, 5, 4)), T, [0, 1, 2])
    assert all(row["dropped"] == [None] * 5 and row["evaluations"] == 20 for row in samples.rows_of(folder)[0])


def test_probabilities_are_the_classifier_s(run):
    for row in samples.rows_of(run, FIT)[0]:
        saved = run_folder.load_record(run / f"{row['index']}.pt")["errors"]
        errors = {k: candidate["pred_errors"].numpy() for k, candidate in saved.items()}
        winner = 1 if row["pred"] == 4 else 2
        wanted = Result(CLASS_OF, winner, errors, np.array(T)).probabilities(FIT)
        assert row["probability"] == pytest.approx(wanted[row["pred"]]) and 1 / 3 < row["probability"] < 1


def test_sums_have_means_and_probabilities(tmp_path):
    """A DiT's record without single errors: gaps without standard errors."""
    sums = torch.tensor([[4.0], [8.0], [6.0]], dtype=torch.float64).repeat(1, 4)
    saved = {"classes": torch.tensor([0, 1, 2]), "t": torch.tensor(T), "sums": sums, "pred": 0, "label": 2}
    run_folder.save_record(tmp_path / "0.pt", saved)
    [row], _ = samples.rows_of(tmp_path, calibration.Fit(0.5, 1.0, 100, {}))
    weights = np.exp(-np.array([0, 1, 0.5]) / 0.5)
    assert row["errors"] == [1, 2, 1.5] and row["evaluations"] == 12 and row["dropped"] == [None] * 3
    assert row["probability"] == pytest.approx(weights[0] / weights.sum())


def test_a_prediction_that_no_candidate_stands_for(run):
    run_folder.save_record(run / "4.pt", record({k: [1.0] for k in range(4)}, 5, 4))
    unreadable = []
    assert [row["index"] for row in samples.rows_of(run, FIT, unreadable=unreadable)[0]] == [3, 11]
    assert unreadable[0] == "4.pt (its prediction is not that of its errors)"


# ---------------------------------------------------------------- the command


@pytest.fixture
def collect(run_main):
    return lambda *argv: run_main(load_script("collect").main, *argv)


def test_the_file(run, collect):
    FIT.write("fit.json")
    code, out, err = collect(run, "--samples", "deep/s.parquet", "--calibration", "fit.json")
    assert code == 0 and out.endswith("Images: 2, in deep/s.parquet\n") and err.count("\n") == 1, err  # of the cut record
    table = pandas.read_parquet("deep/s.parquet")
    assert list(table) == ["index", "label", "pred", "right", "probability", "evaluations", "errors", "dropped"]
    assert table["index"].tolist() == [3, 11] and table.right.dtype == bool and table.attrs["names"] == NAMES
    assert table.errors[1].tolist() == pytest.approx([1.1, 1.0, 0.75, 2.0])
    assert [None if n is None or np.isnan(n) else int(n) for n in table.dropped[1]] == [1, 3, None, 1]


def test_a_fit_on_these_very_images_is_told(run, collect):
    calibration.Fit(0.3, 0.5, 100, IDENTITY).write("fit.json")
    code, _, err = collect(run, "--samples", "s.parquet", "--calibration", "fit.json")
    assert code == 0 and "Note: the fit was made on these very images" in err


def test_a_fit_of_another_model(run, collect):
    calibration.Fit(0.3, 0.5, 100, IDENTITY | {"weights": "others"}).write("fit.json")
    code, _, err = collect(run, "--samples", "s.parquet", "--calibration", "fit.json")
    assert code == 2 and "--calibration fit.json was fitted on a run of other settings: weights" in err
    assert not Path("s.parquet").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["RUN", "RUN", "--samples", "s.parquet"], "--samples s.parquet is about one run"),
        (["r.json", "--samples", "s.parquet"], "--samples s.parquet is about one run"),
        (["RUN", "--calibration", "fit.json"], "--calibration does nothing without --samples"),
        (["RUN", "--samples", "s.csv"], "s.csv must end in .parquet"),
    ],
)
def test_what_is_refused(argv, told, run, collect):
    Path("r.json").write_text('{"task": "x", "metrics": {}}')
    code, _, err = collect(*(run if word == "RUN" else word for word in argv))
    assert code == 2 and told in err.splitlines()[-1] and not Path("s.parquet").exists()
