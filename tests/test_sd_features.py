"""scripts/sd_features.py and its rooms: features against a forward hook, caches, both heads on a set that can be separated."""

import io
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script, some_slow
from PIL import Image

from diffusion import models
from diffusion.analysis import tables
from diffusion.baselines import early_stopping, heads, sd_features
from diffusion.datasets import transforms
from diffusion.kernel import noise
from diffusion.models import random_weights
from diffusion.runs import loop, run_folder

FLAT = ["--version", "tiny", "--dataset", "folder", "--data_dir", "seen", "--train_dir", "train", "--device", "cpu"]
CACHE = Path("data/folder_seen/features_vtiny_mid_block_t100_64")


@pytest.fixture(scope="module")
def script():
    return load_script("sd_features")


@pytest.fixture
def pictures():
    """Dark and bright pictures, with some grain, in seen/ and train/."""
    rng = np.random.default_rng(0)
    for part, n in (("seen", 4), ("train", 10)):
        for name, grey in (("dark", 40), ("bright", 200)):
            Path(part, name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(grey, grey + 40, (48, 64, 3), np.uint8)).save(f"{part}/{name}/{i}.png")


@pytest.fixture
def run(script, run_main):
    return lambda *argv: run_main(script.main, *FLAT, *argv)


def taken(folder=CACHE / "train_test"):
    return {path.name: np.load(path) for path in sorted(folder.glob("*/*.npy"))}


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("layer", ["mid_block", "down_blocks.0", "up_blocks.1", "conv_in"])
def test_features_are_those_of_a_hook_in_a_whole_pass(layer):
    from diffusers import StableDiffusionPipeline

    source = models.text_to_image("tiny")
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = sd_features.extractor(source, layer, 100, 7, "cpu", "float32")(3, image)
    pipeline = StableDiffusionPipeline.from_pretrained(source.source, safety_checker=None)
    tokens = pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    abar, kept = pipeline.scheduler.alphas_cumprod[100], []
    drawn = noise.seeded_row(7, 3, 100, 0, (4, 8, 8))
    pipeline.unet.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        x0 = pipeline.vae.encode(image[None]).latent_dist.mean * pipeline.vae.config.scaling_factor
        text = pipeline.text_encoder(tokens)[0]
        pipeline.unet(abar.sqrt() * x0 + (1 - abar).sqrt() * drawn, 100, text)
    expected = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_of_stable_diffusion_2_0_s_shape():
    """Eight by eight of 1280 channels, for half of the arithmetic."""
    published = random_weights.pipelines()["2-0"]
    network = random_weights.network_of(published.source(), published.text_configs)
    module, text = network.filled("meta", "float16"), torch.zeros(1, 77, 1024, device="meta", dtype=torch.float16)
    x_t, t = torch.zeros(1, 4, 64, 64, device="meta", dtype=torch.float16), torch.zeros(1, device="meta")
    read = sd_features.layer_reader(module, "mid_block")
    assert read(x_t, t, text).shape == (1, 1280, 8, 8)
    assert 0.3 < random_weights.flops(lambda: read(x_t, t, text)) / random_weights.flops(lambda: module(x_t, t, text)) < 0.5


@pytest.mark.parametrize(("layer", "told"), [("middle", "take mid_block, down_blocks.0"), ("time_embedding", "no map")])
def test_a_layer_that_gives_no_map(layer, told, run, pictures):
    code, _, err = run("--layer", layer)
    assert code == 2 and told in err and "--layer" in err


def test_noise_belongs_to_the_image_and_not_to_the_order():
    image = torch.zeros(3, 64, 64)
    extract = sd_features.extractor(models.text_to_image("tiny"), "mid_block", 100, 0, "cpu", "float32")
    first, second = extract(0, image), extract(1, image)
    assert torch.equal(extract(0, image), first) and not torch.allclose(first, second)
    assert not torch.allclose(extract(0, image, 1), first)


# ---------------------------------------------------------------- the command


SETTINGS = {
    "linear": ["--head", "linear"],
    "flat": ["--head", "linear", "--pool", "flat"],
    "resnet": ["--epochs", 16, "--patience", 16, "--batch_size", 4, "--lr", 0.001, "--val_share", 0.4],
}


@pytest.mark.parametrize("head", some_slow(SETTINGS, ["resnet"]))
def test_heads_learn_what_can_be_separated(head, run, pictures, run_main):
    words = SETTINGS[head]
    code, out, err = run(*words)
    assert code == 0 and "Top-1 accuracy: 100.00%" in out and "n = 8" in out, err
    [folder] = {path.parent for path in Path("data").rglob("*.pt")}
    read = tables.read_run(folder)
    assert [image.label for image in read.images] == [0] * 4 + [1] * 4 == [int(image.means.argmin()) for image in read.images]
    assert read.class_of == [0, 1] and read.names == {0: "bright", 1: "dark"}
    for script in ("print_acc", "report"):
        code, out, err = run_main(load_script(script).main, folder, *(["-o", "out"] if script == "report" else []))
        assert code == 0 and "100.0" in out, err
    assert run(*words)[1].count("0 to do here, 8 of 8 done before") == 1  # nothing is done twice


@pytest.mark.slow
def test_a_shared_cache_is_that_of_one_process(run, pictures):
    assert run("--head", "linear", "--seed", 5)[0] == 0
    alone = taken()
    shutil.rmtree("data")
    code, out, _ = run("--head", "linear", "--seed", 5, "--n_workers", 2, "--worker_idx", 1)
    assert code == 0 and "10 training images' features are other workers' to take" in out and not list(Path("data").rglob("*.pt"))
    code, out, _ = run("--head", "linear", "--seed", 5, "--n_workers", 2, "--worker_idx", 0)
    assert code == 0 and "n = 4" in out  # it trains, and has half of the test images
    shared = taken()
    assert alone.keys() == shared.keys() and len(alone) == 20
    assert all(np.array_equal(alone[name], shared[name]) for name in alone)
    code, out, _ = run("--head", "linear", "--seed", 5, "--n_workers", 2, "--worker_idx", 1)
    assert code == 0 and "n = 8" in out


@pytest.mark.slow
def test_a_killed_start_goes_on(forked, pictures, run):
    """Killed while it takes features: what is there stays, and what is not there is taken."""
    environment = {"LOG_DIR": "killed"}
    words = [*FLAT, "--head", "linear", "--val_share", "0.2"]
    [child] = forked.start([environment], words, command="sd_features")
    forked.wait_for(lambda: len(list(Path("killed").rglob("*.npy"))) >= 3, [child])
    os.kill(child, signal.SIGKILL)
    assert forked.wait([child]) == [-signal.SIGKILL]
    before = {path: path.stat().st_mtime_ns for path in Path("killed").rglob("*.npy")}
    assert forked.run([environment], words, command="sd_features") == [0]
    assert len(list(Path("killed").rglob("*.npy"))) == 28 and not list(Path("killed").rglob("*.tmp"))
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())


@pytest.mark.parametrize("change", [["--seed", 1], ["--interpolation", "bilinear"]])
def test_a_cache_of_other_features_is_refused(change, run, pictures):
    assert run("--head", "linear", "--cache_dir", "kept")[0] == 0
    code, _, err = run("--head", "linear", "--cache_dir", "kept", "--extra", "x", *change)
    assert code == 2 and change[0].lstrip("-") in err and "name another place with --cache_dir" in err and err.count("\n") == 1


def test_a_cache_of_other_images_or_of_nobody_is_refused(run, pictures):
    assert run("--head", "linear", "--cache_dir", "kept")[0] == 0
    Image.new("RGB", (64, 64)).save("train/dark/0.png")
    code, _, err = run("--head", "linear", "--cache_dir", "kept", "--extra", "x")
    assert code == 2 and "images" in err and "--cache_dir" in err
    Path("kept/train_test/config.json").unlink()
    code, _, err = run("--head", "linear", "--cache_dir", "kept", "--extra", "x")
    assert code == 2 and "without a config.json" in err and "--cache_dir" in err


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


DAMAGED = {
    "nothing": b"",
    "text": b"no features",
    "a broken zip": b"PK\x03\x04" + bytes(40),
    "an archive": None,
    "whole numbers": npy(np.ones((4, 2, 2), np.int64)),
    "NaN": npy(np.full((4, 2, 2), np.nan, np.float32)),
    "no map": npy(np.ones(4, np.float32)),
    "objects": npy(np.array([{}], dtype=object)),
    "another shape": npy(np.ones((4, 2, 3), np.float32)),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_cache_reads_maps_of_one_shape_and_nothing_else(kind):
    cache = sd_features.Cache(Path("kept"), {})
    for index in range(2):
        cache.write(index, torch.ones(4, 2, 2))
    if DAMAGED[kind] is None:
        np.savez(cache.path(1).with_suffix(""), x=np.ones(3))
        cache.path(1).with_suffix(".npz").rename(cache.path(1))
    else:
        cache.path(1).write_bytes(DAMAGED[kind])
    assert cache.read(0, (4, 2, 2)).shape == (4, 2, 2)
    with pytest.raises(OSError, match="damaged: remove it"):
        cache.read(1, (4, 2, 2))
    with pytest.raises(OSError, match=r"damaged.*0000001.npy"):
        cache.stack([0, 1])


@pytest.mark.slow
def test_a_damaged_file_of_the_cache(run, pictures, run_main, script):
    """Of a test image it is made again; what a head learns from is named."""
    assert run("--head", "linear")[0] == 0
    before, damaged = taken(CACHE / "test_test"), CACHE / "test_test" / "0000" / "0000002.npy"
    damaged.write_bytes(damaged.read_bytes()[:200])
    for path in (*Path("data").rglob("*.pt"), *Path("data").rglob("head.safetensors")):
        path.unlink()
    assert run("--head", "linear")[0] == 0
    assert all(np.array_equal(values, before[name]) for name, values in taken(CACHE / "test_test").items())
    (CACHE / "train_test" / "0000" / "0000003.npy").write_bytes(b"x")
    code, _, err = run_main(lambda argv: loop.run(lambda: script.main(argv)), *FLAT, "--head", "linear", "--pool", "flat")
    assert code == 1 and err.splitlines()[-1].startswith("error: data/") and "0000003.npy: damaged: remove it" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--train_dir", "seen"], "the training images would be the test images"),
        (["--train_dir", "none"], "--train_dir"),
        (["--train_split", "train"], "--train_split train: folder has test"),
        (["--t", "1000"], "--t 1000: this model's noise levels are 0..999"),
        (["--version", "tiny-sd3"], "features are those of the U-Net of Stable Diffusion 1.x or 2.x"),
        (["--head", "linear", "--lr", "0.1"], "--lr does nothing with --head linear"),
        (["--head", "resnet", "--pool", "mean"], "--pool does nothing with --head resnet"),
        (["--val_share", "1"], "--val_share"),
        (["--img_size", "65"], "--img_size 65"),
        (["--train_images", "2", "--seed", "3"], "training images are too few"),
    ],
)
def test_bad_input(words, told, run, pictures):
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1) and told in err, err
    assert not Path("data").exists()


def test_classes_have_to_be_the_same(run, pictures):
    Path("train/dark").rename("train/dim")
    code, _, err = run()
    assert code == 2 and "--train_dir train: its classes are not those of the test images" in err


@pytest.mark.slow
def test_with_views_of_their_own(run, pictures):
    """Only validation and test images are kept; every epoch sees other crops, and the same ones in another run."""
    words = ["--augment", "--epochs", 2, "--batch_size", 6, "--patience", 2]
    assert run(*words)[0] == 0 and len(taken()) == 2
    first = next(Path("data").rglob("training.csv")).read_text()
    shutil.rmtree("data")
    assert run(*words)[0] == 0 and next(Path("data").rglob("training.csv")).read_text() == first
    assert first.startswith("epoch,loss,validation_accuracy,validation_loss\n1,") and first.count("\n") == 3


def test_views_are_crops_that_their_numbers_give():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    view = [np.asarray(transforms.random_view(picture, 32, "bicubic", 0, epoch, 5)) for epoch in (0, 0, 1)]
    assert view[0].shape == (32, 32, 3) and np.array_equal(view[0], view[1]) and not np.array_equal(view[0], view[2])
    before = torch.get_rng_state()
    transforms.random_view(torch.zeros(3, 9, 9), 8, "bilinear", 1)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- heads and their training


def test_table_11_in_full_size():
    with torch.device("meta"):
        head = heads.resnet(1280, 37)
    widths = [m.out_channels for m in head.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert widths == [1280] * 5 + [2560] * 8
    maps = []
    for stage in head[1]:
        stage.register_forward_hook(lambda module, inputs, output: maps.append(tuple(output.shape[1:])))
    assert head(torch.zeros(2, 1280, 8, 8, device="meta")).shape == (2, 37)
    assert maps == [(1280, 8, 8), (2560, 4, 4), (2560, 2, 2)]
    with torch.device("meta"):
        assert heads.resnet50(1280, 37)(torch.zeros(2, 1280, 8, 8, device="meta")).shape == (2, 37)


def test_the_probe_is_at_the_minimum():
    """Where the gradient, by the formula, is zero; in standardised inputs, of which one does not vary."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, [1, 10, 0.1, 0], (60, 4)), rng.integers(0, 3, 60)
    weight, bias = heads.logistic(x, y, 3, 0.05)
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    z, w = (x - x.mean(0)) / scale, weight * scale
    logits = x @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = (p - np.eye(3)[y]).T @ z / 60 + 0.05 * w
    assert np.abs(gradient).max() < 1e-5 and np.abs((p - np.eye(3)[y]).mean(0)).max() < 1e-5
    again = heads.logistic(x, y, 3, 0.05, (rng.normal(size=(3, 4)), rng.normal(size=3)))
    np.testing.assert_allclose(again[0], weight, atol=1e-4)


def test_the_strength_is_chosen_on_validation_rows_and_all_are_learned_from():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 30)), rng.integers(0, 2, 80)
    x[:, 0] += 2 * y
    parts = np.arange(60), np.arange(60, 80)
    weight, _, course = heads.probe(x, y, *parts, 2)
    right = {}
    for strength in heads.STRENGTHS:
        w, b = heads.logistic(x[:60], y[:60], 2, strength)
        right[strength] = ((x[60:] @ w.T + b).argmax(1) == y[60:]).mean()
    assert {line["strength"]: line["validation_accuracy"] for line in course} == pytest.approx(right)
    best = max(s for s in right if right[s] == max(right.values()))
    np.testing.assert_allclose(weight, heads.logistic(x, y, 2, best)[0], atol=1e-4)


def test_a_share_of_each_class_is_held_back():
    labels = np.array([0] * 20 + [1] * 3 + [2])
    training, validation = early_stopping.held_back(labels, 0.1, 0)
    assert np.bincount(labels[validation]).tolist() == [2, 1] and sorted([*training, *validation]) == list(range(24))
    assert np.array_equal(early_stopping.held_back(labels, 0.1, 0)[1], validation)
    assert not np.array_equal(early_stopping.held_back(labels, 0.1, 1)[1], validation)
    with pytest.raises(ValueError, match="too few"):
        early_stopping.held_back(np.array([0, 1]), 0.5, 0)


def test_batches_hold_every_row_at_most_once():
    for n, size, wanted in ((10, 3, [3, 3, 3]), (2, 16, [2]), (8, 4, [4, 4])):
        found = early_stopping.batches(n, size, 0, 1)
        assert [len(rows) for rows in found] == wanted and len(set(np.concatenate(found))) == sum(wanted)


def trained(how, checkpoint, stop_after=None):
    """A small model on random data; (course, weights). stop_after: epochs before it is interrupted, and started again."""

    class Stop(Exception):
        pass

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=g), torch.randint(0, 3, (40,), generator=g)
    seen = []

    def judge(model):
        seen.append(1)
        if stop_after and len(seen) == stop_after + 1:
            raise Stop
        return early_stopping.judged(model, [(x[30:34], y[30:34]), (x[34:], y[34:])])

    def passes(epoch):
        return [(x[rows], y[rows]) for rows in early_stopping.batches(30, how.batch_size, how.seed, epoch)]

    for _ in range(2):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        try:
            course = early_stopping.fit(model, passes, judge, how, checkpoint)
            return course, model.state_dict(), judge(model)
        except Stop:
            continue


@pytest.mark.parametrize("cosine", [False, True])
def test_an_interrupted_training_ends_as_one_that_was_not(cosine, tmp_path):
    how = early_stopping.Epochs(8, 4, 0.05, 8, 0, cosine=cosine)
    whole, again = trained(how, tmp_path / "a"), trained(how, tmp_path / "b", stop_after=3)
    assert whole[0] == again[0] and all(torch.equal(whole[1][name], again[1][name]) for name in whole[1])


def test_it_stops_early_with_the_best_weights(tmp_path):
    course, _, found = trained(early_stopping.Epochs(200, 4, 0.3, 3, 0), tmp_path / "c")
    best = sorted(course, key=lambda line: (-line["validation_accuracy"], line["validation_loss"]))[0]
    assert len(course) < 200 and best["epoch"] == len(course) - 3
    assert found == {name: best[name] for name in ("validation_accuracy", "validation_loss")}


def test_of_equal_accuracies_the_least_loss_is_the_best():
    course = [(1, 0.5, 0.1), (2, 0.9, 0.4), (3, 0.9, 0.2), (4, 0.9, 0.3)]
    lines = [dict(zip(("epoch", "validation_accuracy", "validation_loss"), line, strict=True)) for line in course]
    assert early_stopping.best_of(lines)["epoch"] == 3


def test_judged_is_the_mean_over_all_rows():
    model, g = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5)), torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=g), torch.randint(0, 4, (7,), generator=g)
    p = torch.softmax(x @ model[0].weight.T + model[0].bias, 1)
    found = early_stopping.judged(model, [(x[:5], y[:5]), (x[5:], y[5:])])
    assert found["validation_accuracy"] == pytest.approx((p.argmax(1) == y).float().mean().item())
    assert found["validation_loss"] == pytest.approx(-p[range(7), y].log().mean().item(), rel=1e-5)


def test_the_head_says_what_it_is(run, pictures):
    from safetensors import safe_open

    assert run("--head", "linear")[0] == 0
    [path] = Path("data").rglob("head.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"head": "linear", "pool": "mean", "shape": "128 4 4", "classes": "2"}
    config = json.loads((path.parent / "config.json").read_text())
    assert config["identity"]["layer"] == "mid_block" and config["kind"] == run_folder.CLASSIFICATION
    path.write_bytes(b"x")
    code, _, err = run("--head", "linear")
    assert code == 2 and "head.safetensors cannot be read" in err and "remove it to train again" in err
