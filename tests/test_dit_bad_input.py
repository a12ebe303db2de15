"""What eval_prob_dit.py refuses, in one line and before any work, and how it reads its own options."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_dit_model import TINY

import eval_prob_dit
from diffusion.models.families.dit import DiTSource
from diffusion.strategy import schedule

CLOTHES = ["--dataset", "fashion_mnist"]
GRID = ["--t_interval", "200"]  # five timesteps


@pytest.fixture
def run(run_main, tiny_dit):
    return lambda *argv: run_main(eval_prob_dit.main, *tiny_dit, *argv)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--t_interval", 3], ["--t_interval 3", "1000", "take 2"]),
        (["--cls", "10"], ["--cls 10", "0 to 9"]),
        (["--cls", "a"], ["--cls", "0-999"]),
        (["--cls", "4", "--spatial", "--save_vb"], ["--spatial and --save_vb", "one of them"]),
        (["--cls", "4", "--to_keep", 1, "--n_samples", 5], ["--to_keep", "--cls"]),
        (["--to_keep", 1], ["--to_keep", "--n_samples"]),
        (["--n_samples", 1], ["--to_keep", "--n_samples"]),
        (["--to_keep", 11, 1, "--n_samples", 5, 10], ["--to_keep", "10 candidates"]),
        (["--to_keep", 1, "--n_samples", 10, "--t_interval", 5], ["--t_interval", "--to_keep"]),
        (["--noise_path", "short.pt", "--randomize_noise"], ["short.pt", "[5, 4, 8, 8]", "save_noise.py --img_size 64"]),
        (["--noise_path", "shape.pt"], ["shape.pt", "[500, 4, 16, 16]"]),
        (["--image-size", 65], ["65"]),
        (["--model", "DiT-M/3", "--model_path", "bare.pt", "--image-size", 64], ["DiT-M/3", "DiT-XL/2"]),
        (["--model_path", "cut/dit.pt"], ["cut/dit.pt", "truncated"]),
        (["--dataset", "cifar10"], ["cifar-10-batches-py"]),
    ],
)
def test_bad_input_is_one_line_before_any_work(argv, told, run, tiny_dit, monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded before the input was checked")

    if "cut/dit.pt" not in argv:  # whose bytes have to be read
        monkeypatch.setattr(DiTSource, "load", refuse)
    torch.save(torch.randn(5, 4, 8, 8), "short.pt")
    torch.save(torch.randn(500, 4, 16, 16), "shape.pt")
    Path("bare.pt").touch()
    checkpoint = tiny_dit[1]
    Path("cut").mkdir()
    shutil.copy(checkpoint.parent / "config.json", "cut")
    Path("cut/dit.pt").write_bytes(checkpoint.read_bytes()[:20_000])
    before = sorted(Path().iterdir())
    code, _, err = run(*CLOTHES, *argv)
    assert code == 2 and err.count("\n") == 1 and all(words in err for words in told), err
    assert sorted(Path().iterdir()) == before


def test_a_set_of_other_classes_than_the_model_is_refused(run, golden_root):
    code, _, err = run("--dataset", "objectnet")
    assert code == 2 and "1000 classes and the model about 10" in err
    Path("pictures/a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save("pictures/a/0.png")
    code, _, err = run("--dataset", "folder", "--data_dir", "pictures")
    assert code == 2 and "1 classes and the model about 10" in err and "--model_path" in err


@pytest.mark.parametrize("t_interval", [0, -5, 3, 1001, 999])
def test_intervals_that_do_not_divide(t_interval):
    with pytest.raises(ValueError, match="--t_interval"):
        schedule.interval_plan(t_interval, 1, 1000)


def test_interval_plan():
    plan = schedule.interval_plan(250, 2, 1000)
    assert plan.t.tolist() == [125, 125, 375, 375, 625, 625, 875, 875] and plan.stages == (slice(0, 8),)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("6,11,13", [6, 11, 13]),
        ("5,1-2,2", [1, 2, 5]),
        ("all", None),
        ("3-3", [3]),
        ("1, 4", [1, 4]),
    ],
)
def test_class_ranges(text, classes):
    assert eval_prob_dit.parsing.class_ranges(text) == classes


@pytest.mark.parametrize("text", ["3-1", "1 -3", "1  2", "1_0", "٣", "1-2-3", "-1", ",1", "1,", "9" * 5000])
def test_what_is_no_list_of_classes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a list of classes"):
        eval_prob_dit.parsing.class_ranges(text)


def test_another_number_of_heads_is_another_model(run, tiny_dit):
    """It shows in no tensor's shape, only in config.json."""
    checkpoint = tiny_dit[1]
    run(*CLOTHES, *GRID, "--imgs_to_eval", 1)
    (checkpoint.parent / "config.json").write_text(json.dumps(TINY | {"num_classes": 10, "num_heads": 2}))
    code, _, err = run(*CLOTHES, *GRID, "--imgs_to_eval", 2)
    assert code == 2 and "weights (" in err


def test_images_of_other_classes_than_the_chosen_are_told(run):
    assert "count as wrong" in run(*CLOTHES, *GRID, "--cls", "3,5", "--dry_run")[1]
    assert "count as wrong" not in run(*CLOTHES, *GRID, "--dry_run")[1]
