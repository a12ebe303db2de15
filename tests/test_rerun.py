"""A run read back: nothing is downloaded, nothing is taken that is not what the run saw."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_SD20

import eval_prob_adaptive
from diffusion.analysis import reload
from diffusion.datasets import transforms
from diffusion.runs import run_folder

RUN = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--to_keep", 1, "--n_samples", 4]
FOLDER = Path("data/fashion_mnist/v2-0_1trials_1keep_4samples_64")


@pytest.fixture
def past(run_main):
    code, _, err = run_main(eval_prob_adaptive.main, *RUN, "--imgs_to_eval", 1)
    assert code == 0, err
    return reload.Past(FOLDER, run_folder.read_config(FOLDER))


def test_a_run_that_downloaded_is_not_downloaded_again(tmp_path):
    options = {"dataset": "cifar10", "split": "test", "data_dir": str(tmp_path), "download": True}
    with pytest.raises(FileNotFoundError, match="expected cifar-10-batches-py"):  # a download would say that it failed
        reload.open_images(reload.Past(tmp_path, {"identity": {"images": "x"}, "options": options}))


def test_the_mean_of_a_map_is_the_error_in_the_record(past):
    index = int(next(FOLDER.glob("*.pt")).stem)
    dataset = reload.open_images(past)
    assert dataset.transform == transforms.sd_transform(64)
    maps = reload.error_maps(past, dataset[index][0], reload.candidates_of(past, dataset), [7, 2], index, "cpu")
    saved = torch.load(next(FOLDER.glob("*.pt")), weights_only=True)
    assert maps.shape == (2, 8, 8)
    for found, row in zip(maps, (7, 2), strict=True):
        torch.testing.assert_close(found.mean(), saved["errors"][row]["pred_errors"].mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changed", "open_", "told"),
    [
        ("images", reload.open_images, "other images than fashion_mnist in .* --data_dir"),
        ("weights", reload.open_source, "other weights than .*tiny-sd20"),
        ("prompts", lambda past: reload.candidates_of(past, reload.open_images(past)), "other prompts than fashion_mnist"),
        ("noise", lambda past: reload.open_noise(past, 4, (4, 8, 8)), "other noise"),
    ],
)
def test_what_has_changed_since_is_refused(changed, open_, told, past):
    other = reload.Past(past.folder, past.config | {"identity": past.identity | {changed: "0"}})
    with pytest.raises(ValueError, match=told):
        open_(other)


def test_a_folder_without_a_config_is_refused(past):
    with pytest.raises(ValueError, match=r"no config\.json"):
        reload.open_images(reload.Past(FOLDER, {"identity": {}}))


def test_configs_of_before_say_their_command_and_kind(past):
    """What older folders do not say is filled in by one function, from what only one command wrote."""
    config = json.loads((FOLDER / "config.json").read_text())
    del config["command"], config["kind"]
    for identity, options, command, kind in (
        ({}, {}, "eval_prob_adaptive", "classification"),
        ({"model": "sd"}, {}, "run_winoground", "pairs"),
        ({"saved": "sums", "cls": None}, {}, "eval_prob_dit", "classification"),
        ({"saved": "sums", "cls": 3}, {"randomize_noise": False, "batch_size": 32}, "eval_prob_dit", "one class"),
    ):
        old = config | {"identity": config["identity"] | identity, "options": config["options"] | options}
        (FOLDER / "config.json").write_text(json.dumps(old))
        found = run_folder.read_config(FOLDER)
        assert (found["command"], found["kind"]) == (command, kind)
        assert found["options"].get("noise_rows") == options.get("batch_size")  # rows went by any batch size then
