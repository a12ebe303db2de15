"""scripts/replay.py: what it says of a setting is what a run with that setting does, as every timestep has its own noise."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script
from PIL import Image

import eval_prob_adaptive
from diffusion.runs import run_folder

SD = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 6]
FULL = Path("data/fashion_mnist/v2-0_1trials_1keep_20samples_64")


@pytest.fixture
def full(run_main):
    """A run that kept all errors."""
    code, _, err = run_main(eval_prob_adaptive.main, *SD, "--to_keep", 1, "--n_samples", 20)
    assert code == 0, err
    return FULL


@pytest.fixture
def replay(run_main):
    return lambda *argv: run_main(load_script("replay").main, *argv)


@pytest.mark.parametrize(
    ("argv", "name", "setting"),
    [
        (["--to_keep", 3, 1, "--n_samples", 2, 20], "3_1keep_2_20samples_64", ["--stages", "3 1 / 2 20"]),
        (["--to_keep", 4, 2, 1, "--n_samples", 2, 5, 20], "4_2_1keep_2_5_20samples_64", ["--stages", "4 2 1 / 2 5 20"]),
        (
            ["--strategy", "race", "--alpha", 0.2, "--min_samples", 3, "--round_size", 2, "--max_samples", 20, "--loss", "l2"],
            "race_0.2alpha_3min_2round_20max_64",
            ["--race", "0.2 3 2"],
        ),
    ],
)
def test_a_replay_is_the_run(argv, name, setting, full, replay, run_main):
    code, _, err = run_main(eval_prob_adaptive.main, *SD, *argv)
    assert code == 0, err
    real = run_folder.load_outcomes(run_folder.list_records(Path(f"data/fashion_mnist/v2-0_1trials_{name}")))
    all_errors = run_folder.load_outcomes(run_folder.list_records(full))
    code, _, err = replay(full, *setting, "--csv", "table.csv")
    assert code == 0, err
    row = list(csv.DictReader(Path("table.csv").read_text().splitlines()))[1]
    assert float(row["evaluations"]) == np.mean([o.evaluations for o in real.values()]) < 200
    assert float(row["accuracy"]) == np.mean([o.right for o in real.values()])
    assert float(row["agreement"]) == np.mean([o.pred == all_errors[i].pred for i, o in real.items()])
    assert int(row["n"]) == 6


def test_the_defaults_print_a_table_and_draw_it(full, replay):
    code, out, err = replay(full, "--out", "r.png")
    assert code == 0 and "6 images, 10 candidates, 20 pairs each" in out, err
    assert len(re.findall("^stages", out, re.M)) == 6 and len(re.findall("^race", out, re.M)) == 15
    first = out.splitlines()[2]
    assert "1 / 20" in first and "200.0" in first and "100.0%" in first and "100.00 %" in first
    assert Image.open("r.png").size[0] > 800


def test_halves_share_the_images(full, replay):
    counts = [int(replay(full, "--part", part)[1].split()[0]) for part in ("even", "odd")]
    assert sum(counts) == 6


def test_a_dit_run_is_replayed_by_any_of_its_losses(replay):
    folder = Path("data/fashion_mnist/dit")
    folder.mkdir(parents=True)
    terms = torch.zeros(3, 4, 4)
    terms[:, :, 0] = torch.tensor([1.0, 2, 3])[:, None]  # l2 says class 0
    terms[:, :, 2] = torch.tensor([3.0, 2, 1])[:, None]  # kl says class 2
    t = torch.tensor([125, 375, 625, 875])
    run_folder.save_record(folder / "0.pt", {"classes": torch.arange(3), "t": t, "terms": terms, "pred": 0, "label": 2})
    for loss, right in (("l2", "0.00 %"), ("kl", "100.00 %")):
        code, out, err = replay(folder, "--loss", loss, "--stages", "2 1 / 2 4")
        assert code == 0 and out.splitlines()[-1].split("%")[1].strip().startswith(right.split(" ")[0]), (out, err)


def test_bad_input(full, replay, run_main):
    run_main(eval_prob_adaptive.main, *SD, "--to_keep", 3, 1, "--n_samples", 2, 20)
    Path("empty").mkdir()
    for argv, told in [
        ((Path("data/fashion_mnist/v2-0_1trials_3_1keep_2_20samples_64"),), "--to_keep 1 --n_samples N"),
        (("empty",), "no readable record"),
        ((full, "--stages", "3 1 / 2 7"), "no timestep"),
        ((full, "--stages", "3 1 2 20"), "--stages"),
        ((full, "--stages", "11 1 / 2 20"), "--to_keep"),
        ((full, "--race", "0.05 10"), "--race"),
        ((full, "--race", "0.05 0 5"), "--race"),
        ((full, "--race", "7 2 5"), "--alpha 7"),
    ]:
        code, _, err = replay(*argv)
        assert code == 2 and err.count("\n") == 1 and told in err, err
