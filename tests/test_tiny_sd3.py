"""The flow model that ships: diffusers opens it and draws with it, it is small, and its errors are its pipeline's network's."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import eval_prob_adaptive
from diffusion import models
from diffusion.kernel import blocks, scores
from diffusion.runs import run_folder
from diffusion.utils.paths import TINY_SD, TINY_SD3

NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}  # which diffusers wants to be told
PROMPTS = ["a photo of a coat.", "a photo of a bag."]


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusion3Pipeline.from_pretrained(TINY_SD3, torch_dtype=torch.float32, **NO_T5)


def test_it_draws(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(PROMPTS[1], height=64, width=64, num_inference_steps=4, output_type="np").images[0]
    assert picture.shape == (64, 64, 3) and np.std(picture) > 0.05


def test_it_is_small_and_knows_no_machine():
    assert sum(path.stat().st_size for path in TINY_SD3.rglob("*") if path.is_file()) < 9e6
    for config in TINY_SD3.rglob("*.json"):
        assert "_name_or_path" not in config.read_text()


def test_its_vae_is_tiny_sds():
    mine, theirs = (folder / "vae" / "diffusion_pytorch_model.safetensors" for folder in (TINY_SD3, TINY_SD))
    assert mine.read_bytes() == theirs.read_bytes()


@torch.no_grad()
def test_errors_are_those_of_the_pipelines_network(pipeline):
    """With its own encode_prompt and its own 256 zeros in the place of T5's tokens."""
    g = torch.Generator().manual_seed(0)
    x0, t, noise = torch.randn(4, 8, 8, generator=g), torch.tensor([100, 900]), torch.randn(2, 4, 8, 8, generator=g)
    denoiser = models.text_to_image("tiny-sd3").load("cpu", "float32")
    found = blocks.errors(denoiser, x0, denoiser.embed(PROMPTS), t, noise, scores.l2, blocks.Batch(4))
    embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    for i, s in enumerate((t + 1) / 1000):
        x_s = (1 - s) * x0 + s * noise[i]
        velocity = pipeline.transformer(x_s.expand(2, -1, -1, -1), embeds, pooled, (1000 * s).expand(2)).sample
        torch.testing.assert_close(found[:, i], (velocity - (noise[i] - x0)).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_it_tells_clothes_apart(tmp_path, monkeypatch, capsys):
    """Chance is 2 of 20."""
    monkeypatch.setenv("LOG_DIR", str(tmp_path))
    run = ["--version", "tiny-sd3", "--dataset", "fashion_mnist", "--strategy", "race", "--imgs_to_eval", "20"]
    assert eval_prob_adaptive.main(run) == 0
    capsys.readouterr()
    (folder,) = (tmp_path / "fashion_mnist").iterdir()
    assert sum(outcome.right for outcome in run_folder.read_outcomes(folder, []).values()) >= 14
    assert run_folder.read_config(folder)["error_space"] == "epsilon"
