"""scripts/plot_winoground.py: the maps are the run's own errors, place by place, and a picture of them comes out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, TINY_SD20, load_script
from PIL import Image

import run_winoground

PAIRS = GOLDEN / "data" / "winoground"
FOLDER = Path("data/winoground/sd_v2-0_t250_2trials")


@pytest.fixture(scope="module")
def script():
    return load_script("plot_winoground")


@pytest.fixture
def folder(run_main):
    argv = ["--model_path", TINY_SD20, "--img_size", 64, "--t_interval", 250, "--n_trials", 2, "--data_dir", PAIRS]
    code, _, err = run_main(run_winoground.main, *argv)
    assert code == 0, err
    return FOLDER


def test_the_mean_of_a_map_is_the_error_in_the_record(script, folder):
    past = script.read_run(folder)
    images, example = script.find_example(past, 3)
    maps = script.error_maps(past, images, example.captions, "cpu")
    saved = torch.load(folder / "3.pt", weights_only=True)
    assert maps.shape == (2, 2, 8, 8) and maps.std() > 0
    for c in (0, 1):
        for i in (0, 1):
            torch.testing.assert_close(maps[c, i].mean(), saved[f"c{c}_i{i}"].mean(), rtol=1e-5, atol=1e-6)


def test_a_picture_is_drawn_with_the_advantage_where_it_is(script):
    """One corner of image 0 speaks for caption 0; everything else is a tie and shows the plain picture."""
    maps = torch.ones(2, 2, 8, 8)
    maps[0, 0, :2, :2] = 0.5
    grey = torch.zeros(3, 64, 64)
    script.draw(Path("corner.png"), (grey, grey), ("a", "b"), maps)
    pixels = np.asarray(Image.open("corner.png").convert("RGB"), int)
    height, width = pixels.shape[:2]
    coloured = pixels.max(2) - pixels.min(2) > 40
    rows, columns = np.nonzero(coloured[:, : int(0.8 * width)])  # without the colour scales
    assert len(rows) > 1000 and (columns < 0.25 * width).all()  # image 0 alone, its left part
    for upper, sign in ((True, 1), (False, -1)):  # green for caption 0, pink for caption 1
        of_row = rows < height / 2 if upper else rows > height / 2
        green_over_red = (pixels[rows[of_row], columns[of_row], 1] - pixels[rows[of_row], columns[of_row], 0]).mean()
        assert sign * green_over_red > 20
        assert (rows[of_row] % (height // 2) < 0.3 * height).all()  # the upper part of the cell


def test_the_command(script, folder, run_main):
    code, out, err = run_main(script.main, folder, "--example", 0)
    assert code == 0 and Image.open("winoground_0.png").size[0] > 500 and "image 1: its own caption's error is" in out, err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"example": 99}, "--example 99"),
        ({"folder": "nowhere"}, "nowhere does not exist"),
        ({"identity": {"model": "openclip"}}, "--model sd"),
        ({"identity": {"images": "0"}}, "other images"),
        ({"identity": {"weights": "0"}}, "other weights"),
    ],
)
def test_bad_input_is_one_line(change, told, script, folder, run_main):
    config = json.loads((folder / "config.json").read_text())
    config["identity"] |= change.get("identity", {})
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = run_main(script.main, change.get("folder", folder), "--example", change.get("example", 0))
    assert code == 2 and err.count("\n") == 1 and told in err
    assert not list(Path().glob("*.png"))
