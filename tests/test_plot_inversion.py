"""scripts/plot_inversion.py: DDIM both ways against its formula, a picture that comes back, and bad input."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_SD20, load_script
from PIL import Image

from diffusion import models
from diffusion.models.denoiser import Conditions, Denoiser, ddpm

SHIPPED = ["--version", "tiny", "--dataset", "fashion_mnist", "--image", 29, "--caption", "a photo of a dress."]


@pytest.fixture
def script():
    return load_script("plot_inversion")


@pytest.fixture
def plot(run_main, script):
    return lambda *argv: run_main(script.main, *argv)


def network(answer):
    """Of 1000 levels; answer(x_t, t, ids) is its epsilon."""
    levels = ddpm(torch.linspace(0.9995, 0.03, 1000))
    return Denoiser(None, None, lambda x, t, c: answer(x, t, c.ids.view(-1, 1, 1, 1)), levels)


def test_both_ways_are_the_formula(script):
    """Song et al. 2020, equation 12 without noise, in double precision: from one level to the next under one epsilon."""
    denoiser = network(lambda x, t, ids: 0.1 * x * (1 + ids) + t.view(-1, 1, 1, 1) / 1000)
    x0, steps = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)), 10
    told = []
    found = script.there_and_back(denoiser, x0, Conditions(ids=torch.tensor([0, 3])), steps, told.append)
    abar = denoiser.levels.signal.double().numpy() ** 2
    grid = [0, *range(1, 1000, 100)]  # levels, the first of the picture itself: the scheduler starts at abar of level 0

    def carry(x, t, start, stop, k):
        epsilon = 0.1 * x * (1 + k) + t / 1000
        clean = (x - np.sqrt(1 - abar[start]) * epsilon) / np.sqrt(abar[start])
        return np.sqrt(abar[stop]) * clean + np.sqrt(1 - abar[stop]) * epsilon

    noised = x0.double().numpy()
    for start, stop in itertools.pairwise(grid):
        noised = carry(noised, stop, start, stop, 0)
    for k, latent in zip((0, 3), found, strict=True):
        x = noised
        for start, stop in itertools.pairwise(grid[::-1]):
            x = carry(x, start, start, stop, k)
        np.testing.assert_allclose(latent, x, rtol=1e-4, atol=1e-4)
    assert sum(told) == steps * 3


def test_an_epsilon_that_does_not_depend_on_x_comes_back_exactly(script):
    denoiser = network(lambda x, t, ids: ids.expand_as(x) * 1.0)
    x0 = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(0))
    same, other = script.there_and_back(denoiser, x0, Conditions(ids=torch.tensor([2, 5])), 50, lambda n: None)
    torch.testing.assert_close(same, x0, rtol=1e-4, atol=1e-4)
    assert (other - x0).abs().min() > 1


def test_the_decoder_undoes_the_encoders_scale():
    source = models.text_to_image("2-0", str(TINY_SD20))
    vae = source.weights.load("vae", "cpu", torch.float32)
    latent = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = vae.decode(latent[None] / vae.config.scaling_factor).sample[0]
    torch.testing.assert_close(source.weights.vae_decoder("cpu")(latent), expected)


@pytest.mark.slow
def test_the_right_caption_brings_the_picture_back(plot):
    code, out, err = plot(*SHIPPED, "--under", "a photo of a coat.", "a photo of a boot.", "--steps", 20, "-o", "new/i.png")
    assert code == 0 and "Price: 80 network evaluations, 20 to invert" in out, err
    width, height = Image.open("new/i.png").size
    assert width > 3 * height
    with open("new/i.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["autoencoder", "inverted", "other", "other"]
    alone, right, *others = [float(row["pixel_mse"]) for row in rows]
    assert float(rows[0]["latent_mse"]) == 0 and right < 2 * alone and min(others) > 10 * right
    for row in rows:
        assert f"{float(row['pixel_mse']):.5f}" in out


def test_the_price_without_any_work(plot):
    code, out, _ = plot(*SHIPPED, "--under", "a boot", "--dry_run", "-o", "i.png")
    assert code == 0 and out == "Price: 150 network evaluations, 50 to invert and 50 back for each caption\n"
    assert not Path("i.png").exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--model_path", ROOT / "shipped" / "tiny-sd3"], "is a flow"),
        (["--model_path", "my_model.py"], "my_model.py: a Python file has no decoder"),
        (["--image", 1000], "--image 1000: fashion_mnist has 1000 images"),
        (["--steps", 501], "501: of 1000 noise levels DDIM takes at most every second"),
        (["--img_size", 63], "--img_size 63"),
        (["--version", "nonsense"], "--version nonsense"),
        (["-o", "x.gif"], ".png or .svg"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_input_is_one_line(more, told, plot):
    code, _, err = plot(*SHIPPED, "--under", "a boot", "-o", "i.png", *more)
    assert code == 2 and err.count("\n") == 1 and told in err, err
    assert not list(Path().iterdir())
