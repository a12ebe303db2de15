"""scripts/plot_image.py: curves against the records, the map against the run's own errors, and bad input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SD20, load_script, write_run
from PIL import Image

import eval_prob_adaptive
import eval_prob_dit
from diffusion.analysis import reload
from diffusion.utils import drawing

CLASSES = ["a $5 or $^_6$ bag", "boot", "coat", "dress"]


@pytest.fixture
def script():
    return load_script("plot_image")


@pytest.fixture
def plot(run_main, script):
    return lambda *argv: run_main(script.main, *argv)


@pytest.fixture
def sd(run_main):
    """Two images of a tiny pipeline, four timesteps of two noises, squared errors."""
    argv = ["--dataset", "fashion_mnist", "--model_path", TINY_SD20, "--img_size", 64, "--imgs_to_eval", 2, "--n_trials", 2]
    code, _, err = run_main(eval_prob_adaptive.main, *argv, "--to_keep", 1, "--n_samples", 4, "--device", "cpu")
    assert code == 0, err
    return Path("data/fashion_mnist/v2-0_2trials_1keep_4samples_64")


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------- curves


@pytest.fixture
def errors():
    return np.random.default_rng(1).random((3, 4, 6)).astype(np.float32) + np.arange(4, dtype=np.float32)[:, None]


def test_curves_are_the_records_less_the_winner(plot, errors):
    """Classes rank 0, 1, 2, 3; two are asked for, and image 1 is of class 3, which comes along."""
    write_run(Path("run"), errors, [500, 500, 100, 100, 900, 900], [0, 3, 1], CLASSES)
    code, out, err = plot("run", "--image", 1, "--top", 2, "-o", "new/one.png")
    assert code == 0 and "image 1, dress: a $5 or $^_6$ bag wins" in out
    assert "Note: drawn without the image" in err and "config.json" in err and err.count("\n") == 1
    rows = table("new/one.csv")
    assert [(row["class"], int(row["t"])) for row in rows] == [(CLASSES[k], t) for k in (0, 1, 3) for t in (100, 500, 900)]
    place = {500: 0, 100: 2, 900: 4}
    for row in rows:
        k, at = CLASSES.index(row["class"]), place[int(row["t"])]
        error, winner = (errors[1, i, at : at + 2].astype(float).mean() for i in (k, 0))
        assert float(row["error"]) == pytest.approx(error) and float(row["difference"]) == pytest.approx(error - winner)
    assert Image.open("new/one.png").size[0] > 700


def test_several_prompts_of_a_class_are_one_curve(script):
    errors = np.array([[3.0, 3], [1, 1], [2, 2], [4, 4]])
    assert script.choose_rows(errors, [0, 0, 1, 2], label=2, top=2) == [1, 2, 3]
    assert script.choose_rows(errors, [0, 0, 1, 2], label=9, top=2) == [1, 2]


def test_running_mean_by_hand():
    assert drawing.running_mean([1, 2, 6, 3], 1).tolist() == [1.5, 3, 11 / 3, 4.5]
    assert drawing.running_mean([1, 2, 6, 3], 0).tolist() == [1, 2, 6, 3]


# ---------------------------------------------------------------- image and map


def advantage_of(record, grid_errors):
    """The mean difference of runner-up and winner in a record."""
    means = sorted(float(np.mean(e)) for e in grid_errors(record))
    return means[1] - means[0]


def test_the_map_of_a_text_to_image_run_is_its_errors(plot, sd):
    path = sorted(sd.glob("*.pt"))[1]
    code, out, err = plot(sd, "--image", int(path.stem), "-o", "m.png", "--map", "--device", "cpu")
    assert code == 0 and "Map: the winner's squared error is lower by" in out and err == "", err
    rows = table("m_map.csv")
    assert [(int(row["y"]), int(row["x"])) for row in rows] == [(y, x) for y in range(8) for x in range(8)]
    record = torch.load(path, weights_only=True)
    expected = advantage_of(record, lambda r: [c["pred_errors"].numpy() for c in r["errors"].values()])
    assert np.mean([float(row["advantage"]) for row in rows]) == pytest.approx(expected, rel=1e-2, abs=1e-7)
    assert Image.open("m.png").size[0] > 1200


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (["--t_interval", 250, "--save_errors"], "t250_1trials"),
        (["--to_keep", 1, "--n_samples", 4], "1trials_1keep_4samples"),
        (["--t_interval", 250, "--save_errors", "--noise_path", "bank.pt"], "t250_1trials"),
    ],
)
def test_the_map_of_a_dit_run_is_its_errors(method, name, plot, tiny_dit, run_main):
    torch.save(torch.randn(32, 4, 8, 8), "bank.pt")
    argv = [*tiny_dit, "--dataset", "fashion_mnist", "--imgs_to_eval", 1, *method, "--device", "cpu"]
    code, _, err = run_main(eval_prob_dit.main, *argv)
    assert code == 0, err
    folder = Path(f"data/fashion_mnist/DiT64x64_10classes_{name}")
    code, _, err = plot(folder, "--image", 0, "-o", "m.png", "--map", "--device", "cpu")
    assert code == 0, err
    record = torch.load(folder / "0.pt", weights_only=True)
    if "terms" in record:
        expected = advantage_of(record, lambda r: r["terms"][..., 0].numpy())
    else:
        expected = advantage_of(record, lambda r: [c["pred_errors"].numpy() for c in r["errors"].values()])
    found = np.mean([float(row["advantage"]) for row in table("m_map.csv")])
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-7)


def test_without_a_map_no_model_is_loaded(plot, sd, monkeypatch):
    monkeypatch.setattr(reload, "open_source", lambda *_: pytest.fail("the model was loaded"))
    index = int(sorted(sd.glob("*.pt"))[0].stem)
    code, out, err = plot(sd, "--image", index, "-o", "i.png")
    assert code == 0 and err == "" and "Map" not in out
    assert not Path("i_map.csv").exists()


# ---------------------------------------------------------------- bad input


def test_a_map_needs_what_the_run_had(plot, sd):
    saved = (sd / "config.json").read_text()
    index = int(sorted(sd.glob("*.pt"))[0].stem)
    for part, name, value, told in [
        ("identity", "weights", "0", "other weights"),
        ("identity", "prompts", "0", "other prompts"),
        ("identity", "images", "0", "other images"),
        ("options", "noise_path", "gone.pt", "gone.pt"),
        ("options", "model_path", "gone", "gone"),
        ("options", "dataset", "pets", "pets"),
    ]:
        config = json.loads(saved)
        config[part][name] = value
        (sd / "config.json").write_text(json.dumps(config))
        code, _, err = plot(sd, "--image", index, "-o", "m.png", "--map", "--device", "cpu")
        assert code == 2 and err.count("\n") == 1 and told in err, err
        assert not list(Path().glob("m*"))


def test_bad_input_is_one_line(plot, errors):
    Path("empty").mkdir()
    write_run(Path("run"), errors, [1, 2, 3, 4, 5, 6], [0, 1, 2], CLASSES)
    write_run(Path("single"), errors[:, :1], [1, 2, 3, 4, 5, 6], [0, 1, 2], CLASSES[:1])
    for argv, told in [
        (("empty", "--image", 0), "no readable record"),
        (("run", "--image", 3), "--image 3"),
        (("run", "--image", 0, "--map"), "config.json"),
        (("run", "--image", 0, "--top", 1), "--top"),
        (("single", "--image", 0), "one class"),
        (("run",), "--image"),
    ]:
        code, _, err = plot(*argv, "-o", "m.png")
        assert code == 2 and err.count("\n") == 1 and told in err, (argv, err)
    code, _, err = plot("run", "--image", 0, "-o", "m.pdf")
    assert code == 2 and ".png or .svg" in err
