"""--strategy race in both commands, on tiny real models: its records, its folder, what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_SD20, load_script

import eval_prob_adaptive
import eval_prob_dit
from diffusion.metrics.calibration import Fit
from diffusion.predict import predictions
from diffusion.runs import run_folder
from diffusion.strategy import CalibratedRace, Race, schedule

SD = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 3]
RACE = ["--strategy", "race", "--alpha", 0.1, "--min_samples", 3, "--round_size", 2, "--max_samples", 20]
NAME = "1trials_race_0.1alpha_3min_2round_20max"


@pytest.fixture
def dit(tiny_dit):
    return ["--dataset", "fashion_mnist", *tiny_dit, "--imgs_to_eval", 3]


def check_records(folder):
    """Every candidate saw the beginning of one order of pairs; the one that fell last saw more than the one that fell first."""
    order = schedule.race_plan(20, 1, 1000).t
    files = sorted(Path(folder).glob("*.pt"))
    assert len(files) == 3
    for file in files:
        record = torch.load(file, weights_only=True)
        assert list(record) == ["errors", "pred", "label", "evaluations", "fell", "seconds"]
        lengths = {row: len(c["t"]) for row, c in record["errors"].items()}
        assert record["evaluations"] == sum(lengths.values()) <= 200
        assert all(c["t"].tolist() == order[: lengths[row]].tolist() for row, c in record["errors"].items())
        assert record["pred"] not in record["fell"]
        rounds = [lengths[row] for row in sorted(record["fell"], key=record["fell"].get)]
        assert rounds == sorted(rounds)
        left = [row for row in lengths if row not in record["fell"]]
        assert {lengths[row] for row in left} == {max(lengths.values())}
        assert len(left) == 1 or max(lengths.values()) == 20


def test_text_to_image(run_main, monkeypatch):
    code, out, err = run_main(eval_prob_adaptive.main, *SD, *RACE)
    assert code == 0, err
    assert "Price: at most 200 network evaluations per image" in out
    folder = Path(f"data/fashion_mnist/v2-0_{NAME}_l1_64")
    check_records(folder)
    monkeypatch.setenv("LOG_DIR", "other")
    assert run_main(eval_prob_adaptive.main, *SD, *RACE, "--batch_size", 7)[0] == 0
    for file in folder.glob("*.pt"):
        one, other = (torch.load(path, weights_only=True) for path in (file, Path("other") / file.relative_to("data")))
        assert one["fell"] == other["fell"] and one["pred"] == other["pred"]
        for row in one["errors"]:
            np.testing.assert_allclose(one["errors"][row]["pred_errors"], other["errors"][row]["pred_errors"], rtol=1e-5)


@pytest.mark.parametrize("name", ["race", "surrogate", "tree"])
@pytest.mark.parametrize("prompts", [["a bag"], ["a bag", "a photo of a bag"]])
def test_one_class_alone_wins_with_errors_of_its_own(prompts, name, run_main):
    rows = "".join(f"{prompt},bag,8\n" for prompt in prompts)
    Path("one.csv").write_text("prompt,classname,classidx\n" + rows)
    images = ("--version", "tiny", "--dataset", "fashion_mnist", "--imgs_to_eval", 2)
    words = (*images, "--prompt_path", "one.csv", "--strategy", name)
    code, _, err = run_main(eval_prob_adaptive.main, *words)
    assert code == 0, err
    [place] = Path("data/fashion_mnist").iterdir()
    for path in place.glob("*.pt"):
        record = torch.load(path, weights_only=True)
        assert record["pred"] == 8 and all(len(one["pred_errors"]) >= 2 for one in record["errors"].values())
    again = run_main(eval_prob_adaptive.main, *words)[1]
    assert "0 to do here, 2 of 2 done before" in again and "redone" not in again


def test_class_conditional(run_main, dit):
    code, out, err = run_main(eval_prob_dit.main, *dit, *RACE, "--loss", "kl")
    assert code == 0 and "at most 200" in out, err
    check_records(f"data/fashion_mnist/DiT64x64_10classes_{NAME}_kl")


def test_other_settings_of_a_race_are_another_folder_or_refused(run_main):
    run_main(eval_prob_adaptive.main, *SD, *RACE)
    code, _, err = run_main(eval_prob_adaptive.main, *SD, *RACE, "--seed", 1)
    assert code == 2 and "seed (0 there, 1 now)" in err
    assert run_main(eval_prob_adaptive.main, *SD, *RACE, "--alpha", 0.2, "--dry_run")[0] == 0


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--alpha", 0.1], ["--alpha", "--strategy race"]),
        (["--strategy", "race", "--to_keep", 1, "--n_samples", 5], ["--to_keep", "--strategy"]),
        (["--strategy", "race", "--alpha", 1.5], ["--alpha 1.5", "between 0 and 1"]),
        (["--strategy", "race", "--min_samples", 30, "--max_samples", 20], ["--min_samples 30", "--max_samples 20"]),
        (["--strategy", "race", "--max_samples", 1001], ["--max_samples 1001", "1000"]),
        (["--strategy", "race", "--min_samples", 1], ["--min_samples", "2 or more"]),
    ],
)
def test_bad_input(argv, told, run_main, dit):
    for main, base in ((eval_prob_adaptive.main, SD), (eval_prob_dit.main, dit)):
        code, _, err = run_main(main, *base, *argv)
        assert code == 2 and err.count("\n") == 1 and all(words in err for words in told), err
    assert not Path("data").exists()


def test_a_grid_is_no_race(run_main, dit):
    for argv, told in ((["--t_interval", 100], "--t_interval"), (["--save_errors"], "--save_errors"), (["--cls", 3], "--cls")):
        code, _, err = run_main(eval_prob_dit.main, *dit, "--strategy", "race", *argv)
        assert code == 2 and err.count("\n") == 1 and told in err and "--strategy race" in err


# ---------------------------------------------------------------- limits that a run has taught


@pytest.fixture
def fit(run_main):
    """race.json, of a run with all errors of 12 timesteps."""
    code, _, err = run_main(eval_prob_adaptive.main, *SD[:-1], 6, "--to_keep", 1, "--n_samples", 12)
    assert code == 0, err
    folder = Path("data/fashion_mnist/v2-0_1trials_1keep_12samples_64")
    code, out, err = run_main(load_script("fit_race").main, folder, "--target", 0.95, "-o", "race.json")
    assert code == 0 and "6 images, 10 candidates, 12 pairs each" in out and "one or none" in out, err
    return folder


CALIBRATED = ["--strategy", "race_calibrated", "--race_fit", "race.json", "--loss", "l2"]


def test_a_fit_races_and_the_run_is_its_replay(fit, run_main):
    code, out, err = run_main(eval_prob_adaptive.main, *SD[:-1], 6, *CALIBRATED)
    assert code == 0 and "Price: at most 120 network evaluations per image" in out, err
    folder = next(Path("data/fashion_mnist").glob("v2-0_1trials_race_calibrated_*_64"))
    real = run_folder.load_outcomes(run_folder.list_records(folder))
    code, out, err = run_main(load_script("replay").main, fit, "--race_calibrated", "race.json", "--csv", "t.csv")
    row = list(csv.DictReader(Path("t.csv").read_text().splitlines()))[1]
    assert code == 0 and float(row["evaluations"]) == np.mean([o.evaluations for o in real.values()]) < 120, err
    assert float(row["accuracy"]) == np.mean([o.right for o in real.values()])
    Path("race.json").unlink()  # what the folder says is enough to read it
    assert run_main(load_script("report").main, folder, "-o", "report")[0] == 0


def test_a_fit_of_another_run_is_refused(fit, run_main, dit):
    for main, argv, told in (
        (
            eval_prob_adaptive.main,
            [*SD, *CALIBRATED[:-1], "l1"],
            "--race_fit race.json was fitted on a run of other settings: loss (l2 there,",
        ),
        (eval_prob_adaptive.main, [*SD[:5], 96, *SD[6:], *CALIBRATED], "img_size (64 there, 96 now)"),
        (eval_prob_dit.main, [*dit, *CALIBRATED], "other settings: weights ("),
        (eval_prob_adaptive.main, [*SD, *CALIBRATED[:2]], "needs --race_fit FILE"),
        (eval_prob_adaptive.main, [*SD, *RACE, "--race_fit", "race.json"], "--race_fit is for --strategy race_calibrated"),
    ):
        code, _, err = run_main(main, *argv)
        assert code == 2 and err.count("\n") == 1 and told in err, err


def test_the_fits_that_ship_are_of_the_models_that_ship(run_main):
    races, tiny = ROOT / "shipped" / "races", ["--dataset", "fashion_mnist", "--strategy", "race_calibrated", "--dry_run"]
    for main, argv in (
        (eval_prob_adaptive.main, ["--version", "tiny", "--race_fit", races / "tiny-sd_l1.json"]),
        (eval_prob_dit.main, ["--model", "tiny", "--race_fit", races / "tiny-dit_l2.json"]),
    ):
        code, out, err = run_main(main, *tiny, *argv)
        assert code == 0 and "Price: at most" in out, err


def test_probabilities_of_another_race_are_refused(fit):
    """A fit of scripts/calibrate.py belongs to one rule: its edition, and its limits."""
    race, limits = Race().identity(), CalibratedRace("race.json").identity()
    other = json.loads(json.dumps(limits)) | {"fit": limits["fit"] | {"target": 0.9}}
    predictions.check_fit(Fit(1.0, 0.0, 1, limits), limits, "fit.json")
    for about, identity in ((race | {"edition": None}, race), (limits, other)):
        with pytest.raises(ValueError, match=r"--fit fit.json was fitted on a run of other settings: (edition|fit) "):
            predictions.check_fit(Fit(1.0, 0.0, 1, about), identity, "fit.json")
