"""scripts/plot_method.py: its arrays against diffusers' own computation, the figure, and bad input."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, load_script
from PIL import Image

from diffusion.datasets import shipped
from diffusion.kernel.noise import seeded_row

TEXTS = ["a photo of a bag.", "a photo of a boot.", "a photo of a coat."]


@pytest.fixture(scope="module")
def script():
    return load_script("plot_method")


@pytest.fixture
def plot(run_main, script):
    return lambda *argv: run_main(script.main, *argv)


@pytest.fixture(scope="module")
def arrays(script):
    return script.compute(shipped.Clothes("test")[30][0], 30, TEXTS, 767)


def test_the_arrays_are_diffusers_own(arrays):
    """Its scheduler noises the latent and removes the predicted noise, its VAE decodes, its U-Net predicts."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = ROOT / "shipped" / "tiny-sd"
    vae, unet, text, tokenizer, scheduler = (
        cls.from_pretrained(folder, subfolder=part)
        for cls, part in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"), (CLIPTextModel, "text_encoder"),
                          (CLIPTokenizer, "tokenizer"), (DDIMScheduler, "scheduler"))
    )  # fmt: skip
    scheduler.set_timesteps(1000)
    assert arrays.t == 765  # the nearest one of 5, 15, ... 995
    t, noise = torch.tensor([765]), seeded_row(0, 30, 765, 0, (4, 8, 8))
    ids = tokenizer(TEXTS, padding="max_length", max_length=text.config.max_position_embeddings, return_tensors="pt").input_ids
    with torch.inference_mode():
        x0 = vae.encode(arrays.image[None]).latent_dist.mean * vae.config.scaling_factor
        x_t = scheduler.add_noise(x0, noise[None], t)
        predictions = unet(x_t.repeat(3, 1, 1, 1), t, text(ids).last_hidden_state).sample
        implied = scheduler.step(predictions, 765, x_t.repeat(3, 1, 1, 1)).pred_original_sample
        pictures = vae.decode(torch.cat([x_t, implied]) / vae.config.scaling_factor).sample
    torch.testing.assert_close(arrays.noise, noise)
    torch.testing.assert_close(arrays.predictions, predictions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.stack([arrays.noised, *arrays.implied]), pictures, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(arrays.errors, (predictions - noise).square().mean((1, 2, 3)), rtol=1e-4)


@pytest.mark.slow
def test_a_figure_and_the_command_that_draws_it(plot, arrays):
    code, out, err = plot("-o", "new/a.png")
    assert code == 0 and Image.open("new/a.png").width == 1800, err
    first, _, *rows, command = out.splitlines()
    assert first == "Image 30: bag" and arrays.winner == 0
    assert [row.split()[-1] for row in rows] == [f"{mean:.5f}" for mean in arrays.means]
    python, name, *options = shlex.split(command.removeprefix("Drawn by: "))
    assert (python, name) == ("python", "scripts/plot_method.py") and (ROOT / name).is_file()
    before = Path("new/a.png").read_bytes()
    assert plot(*options)[:2] == (0, out) and Path("new/a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--image", 1000], "--image 1000: 1000 images ship"),
        (["--labels", "bag", "bag", "coat"], "--labels: 'bag' stands there for two labels"),
        (["--labels", "bag", "Bag", "coat"], "--labels: "),
        (["--labels", "bag", "boot"], "--labels: expected 3"),
        (["--timestep", 1000], "--timestep: must be 999 or less"),
        (["-o", "x.gif"], ".png or .svg"),
    ],
)
def test_bad_input_is_one_line(argv, told, plot):
    code, _, err = plot("-o", "a.png", *argv)
    assert code == 2 and err.count("\n") == 1 and told in err, err
    assert not list(Path().iterdir())
