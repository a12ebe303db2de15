"""A flag that does nothing in the mode chosen is refused by its name, and nothing is written."""

import json
from pathlib import Path

import pytest
import torch
from conftest import load_script, write_run

import eval_prob_dit
import run_winoground
from diffusion.utils import outputs

CONTRASTIVE = ["--model", "openclip", "--version", "tiny", "--dataset", "tiny_pairs"]
OF_A_GRID = [  # beside those of tests/hostile.py
    ["--n_trials", 1],  # as by default
    ["--seed", 0],
    ["--batch_size", 4],
    ["-b", 4],
]
LONG = {"-b": "--batch_size"}


@pytest.mark.parametrize("flag", OF_A_GRID, ids=lambda flag: f"{flag[0]} {flag[-1]}")
def test_flags_of_a_diffusion_model_with_a_contrastive_one(flag, run_main):
    code, _, err = run_main(run_winoground.main, *CONTRASTIVE, *flag, "--dry_run")
    assert (
        code == 2 and err.count("\n") == 1 and f"{LONG.get(flag[0], flag[0])} does nothing" in err and not list(Path().iterdir())
    )


def test_without_them_a_contrastive_model_runs(run_main):
    code, _, err = run_main(run_winoground.main, *CONTRASTIVE, "--randomize_noise", "--dry_run")  # which names its folder
    assert code == 0, err


@pytest.mark.parametrize("cls", [["--cls", "7"], ["--cls", "1,2", "--save_per_class"]])
def test_a_loss_of_class_folders_which_predict_nothing(cls, run_main):
    argv = ["--model", "tiny", "--dataset", "fashion_mnist", *cls]
    code, _, err = run_main(eval_prob_dit.main, *argv, "--loss", "l1")
    assert code == 2 and "--loss does nothing" in err and not list(Path().iterdir())


@pytest.mark.parametrize("cls", [["--cls", "7"], ["--cls", "1,2", "--save_per_class"]])
def test_level_weights_of_class_folders_which_predict_nothing(cls, run_main):
    argv = ["--model", "tiny", "--dataset", "fashion_mnist", *cls]
    code, _, err = run_main(eval_prob_dit.main, *argv, "--level_weights", "weights.json")
    assert code == 2 and "--level_weights does nothing" in err and not list(Path().iterdir())


@pytest.mark.parametrize("grid", [["--cls", "1,2", "--save_per_class"], ["--t_interval", 100]])
def test_images_in_flight_of_a_grid_whose_calls_are_full(grid, run_main):
    argv = ["--model", "tiny", "--dataset", "fashion_mnist", *grid, "--images_in_flight", 1]  # as by default
    code, _, err = run_main(eval_prob_dit.main, *argv)
    assert code == 2 and err.count("\n") == 1 and "--images_in_flight does nothing" in err and not list(Path().iterdir())


@pytest.fixture
def run(tmp_path):
    """A run of two timesteps and three candidates that it names."""
    torch.manual_seed(0)
    errors = torch.rand(30, 3, 2).numpy()
    labels = [int(image.mean(1).argmin()) if i % 3 else i % 2 for i, image in enumerate(errors)]
    return write_run(tmp_path / "run", errors, [250, 750], labels, names=["a", "b", "c"])


CSV = "prompt,classname,classidx\nx,X,0\ny,Y,1\nz,Z,2\n"
READERS = {
    "replay": [],
    "calibrate": [],
    "report": ["-o", "out"],
    "plot_image": ["--image", 1, "-o", "out/x.png"],
    "plot_timesteps": ["-o", "out"],
}


def refused(script, run_main, told, *argv):
    before = sorted(Path().rglob("*"))
    code, _, err = run_main(load_script(script).main, *argv)
    assert code == 2 and err.count("\n") == 1 and told in err, (argv, err)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("script", READERS)
def test_prompts_of_a_run_that_names_its_candidates(script, run, run_main):
    Path("prompts.csv").write_text(CSV)
    refused(script, run_main, "--prompt_path", run, *READERS[script], "--prompt_path", "prompts.csv")
    (run / "config.json").unlink()
    code, _, err = run_main(load_script(script).main, run, *READERS[script], "--prompt_path", "prompts.csv")
    assert code == 0, err


@pytest.mark.parametrize("loss", ["l2", "kl"])
@pytest.mark.parametrize("script", ["replay", "plot_image", "plot_timesteps"])
def test_a_loss_of_a_run_that_kept_one(script, loss, run, run_main):
    refused(script, run_main, f"--loss {loss}", run, *READERS[script], "--loss", loss)


def test_flags_of_maps_that_are_not_drawn(run, run_main):
    refused("plot_image", run_main, "--device does nothing", run, "--image", 1, "-o", "x.png", "--device", "cpu")


@pytest.mark.parametrize("flag", [["--data_dir", "x"], ["--download"], ["--image_column", "x"]])
def test_flags_of_class_folders_with_records_of_all_classes(flag, run, run_main):
    refused("print_dit_acc", run_main, f"{flag[0]} does nothing", run, *flag)


def test_another_dataset_than_the_runs(run, run_main):
    """It would map classes to the labels of another set."""
    config = json.loads((run / outputs.CONFIG).read_text())
    (run / outputs.CONFIG).write_text(json.dumps(config | {"identity": {"dataset": "imagenet"}}))
    refused("print_dit_acc", run_main, "--dataset objectnet", run, "--dataset", "objectnet")
