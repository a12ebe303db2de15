"""scripts/synthetic_data.py: what is drawn does not depend on who draws it, and a network learns from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image

from diffusion import models
from diffusion.analysis import tables
from diffusion.baselines import synthetic_images
from diffusion.runs import run_folder

BASE = ["--dataset", "fashion_mnist", "--device", "cpu", "--per_class", 3, "--steps", 2, "--draw_batch", 2]
DRAWN = Path("data/fashion_mnist/drawn_vtiny_2steps_7.5guidance_64")


@pytest.fixture(scope="module")
def script():
    return load_script("synthetic_data")


@pytest.fixture
def run(script, run_main):
    return lambda *argv: run_main(script.main, "--version", "tiny", *BASE, *argv)


def drawn(folder=DRAWN):
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in sorted(folder.glob("*/*.png"))}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_whoever_draws_draws_the_same(run):
    assert run("--draw_only")[0] == 0
    alone = drawn()
    assert len(alone) == 30 and {p.shape for p in alone.values()} == {(64, 64, 3)}
    assert min(alone) == "0 T-shirt_top/000000.png" and max(alone) == "9 Ankle_boot/000002.png"
    shutil.rmtree("data")
    for index in (1, 0):
        code, out, err = run("--draw_only", "--n_workers", 2, "--worker_idx", index)
        assert code == 0, err
        assert len(drawn()) == (10 if index else 30) and ("sheet.png" in out) == (index == 0)
    assert same(drawn(), alone)
    for path in list(DRAWN.glob("*/*.png"))[::3]:  # as if it had been killed
        path.unlink()
    code, out, _ = run("--draw_only")
    assert code == 0 and "10 images are to be drawn first, at 4 network evaluations each 40 in all" in out
    assert same(drawn(), alone)
    code, out, _ = run("--draw_only", "--per_class", 4)  # more of them are added to those that are there
    more = drawn()
    assert code == 0 and len(more) == 40 and same({name: more[name] for name in alone}, alone)
    assert run("--draw_only", "--seed", 1, "--out", "other", "--extra", "other")[0] == 0
    assert not same(drawn(Path("other")), alone)


def test_the_pictures_are_the_pipelines(run):
    """With the text and the noise of each, by diffusers alone."""
    from diffusers import StableDiffusionPipeline

    source = models.text_to_image("tiny")
    what = synthetic_images.Drawing(
        ["bag", "boot"], [["a bag.", "a photo of a bag."], ["a boot.", "a photo of a boot."]], 2, 2, 7
    )
    batch = [(1, 0), (1, 1)]
    texts, seeds = zip(*map(what.chance, batch), strict=True)
    assert set(texts) <= {"a boot.", "a photo of a boot."} and len(set(seeds)) == 2
    found = synthetic_images.drawer(source, "cpu", "float32", 64, 3, 7.5)(texts, seeds)
    pipeline = StableDiffusionPipeline.from_pretrained(source.source, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for text, seed, picture in zip(texts, seeds, found, strict=True):
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            [alone] = pipeline(text, num_inference_steps=3, guidance_scale=7.5, generator=noise, height=64, width=64).images
        assert np.abs(np.asarray(alone, int) - np.asarray(picture, int)).max() <= 1


def test_texts_are_drawn_evenly_and_by_number():
    what = synthetic_images.Drawing(["a", "b"], [["x", "y", "z"], ["u"]], 300, 4, 0)
    texts = [what.chance((0, n))[0] for n in range(300)]
    assert all(70 < texts.count(text) < 130 for text in "xyz") and {what.chance((1, n))[0] for n in range(9)} == {"u"}
    assert len({what.chance((row, n))[1] for row in range(2) for n in range(300)}) == 600
    assert what.chance((0, 5)) == synthetic_images.Drawing(["a"], [["x", "y", "z"]], 6, 2, 0).chance((0, 5))


def test_batches_are_of_a_class_and_of_one_size():
    what = synthetic_images.Drawing(["a", "b"], [["x"], ["y"]], 3, 2, 0)
    assert what.images == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert what.batch_of((1, 1)) == [(1, 0), (1, 1)] and what.batch_of((1, 2)) == [(1, 2), (1, 3)]


def test_folders_sort_as_classes_do():
    names = [f"{'zyx'[i % 3]}/{i}" for i in range(12)]
    what = synthetic_images.Drawing(names, [["x"]] * 12, 1, 1, 0)
    folders = [what.key((row, 0))[0] for row in range(12)]
    assert folders == sorted(folders) and folders[11] == "11 x_11" and not any("/" in name for name in folders)


@pytest.mark.slow
def test_a_network_learns_from_them_and_is_tested(run, script, run_main, monkeypatch):
    """Pictures of one grey a class stand in for what is drawn: a network tells them apart, and its own files are all it needs."""
    rng = np.random.default_rng(0)
    Path("test/dark").mkdir(parents=True)
    Path("test/bright").mkdir()
    for name, grey in (("dark", 30), ("bright", 200)):
        for i in range(3):
            Image.fromarray(rng.integers(grey, grey + 40, (40, 40, 3), np.uint8)).save(f"test/{name}/{i}.png")

    def drawer(*_):
        greys = {"dark": 30, "bright": 200}

        def draw(texts, seeds):
            each = zip(texts, seeds, strict=True)
            return [
                Image.fromarray(
                    np.random.default_rng(seed).integers(greys[text[13:-1]], greys[text[13:-1]] + 40, (40, 40, 3), np.uint8)
                )
                for text, seed in each
            ]

        return draw

    monkeypatch.setattr(synthetic_images, "drawer", drawer)
    words = ["--version", "tiny", "--dataset", "folder", "--data_dir", "test", "--device", "cpu", "--per_class", 12, "--steps", 1]
    words += ["--network", "resnet18", "--size", 32, "--batch_size", 5, "--epochs", 8, "--patience", 8]
    code, out, err = run_main(script.main, *words)
    assert code == 0 and "22 images, 2 to choose by" in out, err
    [folder] = {path.parent for path in Path("data").rglob("*.pt")}
    assert folder.name == "drawn_vtiny_1steps_7.5guidance_64_12each_resnet18_32"
    assert {"network.safetensors", "training.csv", "sheet.png"} <= {path.name for path in folder.iterdir()}
    assert Image.open(folder / "sheet.png").size == (400, 80)
    found = tables.read_run(folder)
    assert found.names == {0: "bright", 1: "dark"} and [image.label for image in found.images] == [0, 0, 0, 1, 1, 1]
    assert [image.pred for image in found.images] == [0, 0, 0, 1, 1, 1]
    code, out, err = run_main(load_script("print_acc").main, folder)
    assert code == 0 and "100.00%" in out, err
    code, out, _ = run_main(script.main, *words)
    assert code == 0 and "the network is trained already" in out and "0 to do here, 6 of 6 done before" in out
    (folder / "network.safetensors").write_bytes(b"x")
    code, _, err = run_main(script.main, *words)
    assert code == 2 and "network.safetensors cannot be read" in err


@pytest.mark.parametrize("change", [["--guidance", 2], ["--seed", 1], ["--draw_batch", 3], ["--templates", "t.txt"]])
def test_other_images_are_not_mixed_in(change, run):
    Path("t.txt").write_text("a {}.\na photo of a {}.\n")
    place = Path("kept")
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"identity": {}, "kind": run_folder.STORE, "command": "x"}))
    code, _, err = run("--out", "kept")
    assert code == 2 and "kept holds another run" in err and "name another place with --out" in err
    (place / "config.json").unlink()
    assert run("--per_class", 2, "--steps", 1, "--out", "kept", "--draw_only")[0] == 0
    code, _, err = run("--per_class", 2, "--steps", 1, "--out", "kept", *change)
    assert code == 2 and err.count("\n") == 1 and "name another place with --out" in err


def test_a_folder_of_pictures_that_nobody_knows(run):
    Path("kept/0 bag").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("kept/0 bag/000000.png")
    code, _, err = run("--out", "kept")
    assert code == 2 and "without a config.json" in err


@pytest.mark.slow
def test_a_flow_draws_too(script, run_main):
    words = ["--version", "tiny-sd3", *BASE, "--draw_only", "--per_class", 2]
    assert run_main(script.main, *words)[0] == 0
    assert len(drawn(Path("data/fashion_mnist/drawn_vtiny-sd3_2steps_7.5guidance_64"))) == 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--version", "nonsense"], "--version nonsense"),
        (["--img_size", "65"], "--img_size 65"),
        (["--per_class", "1"], "--per_class"),
        (["--draw_only", "--lr", "0.1"], "--lr does nothing with --draw_only"),
        (["--templates", "none.txt"], "--templates none.txt cannot be read"),
    ],
)
def test_bad_input(words, told, run):
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1) and told in err and not Path("data").exists()
