"""scripts/train_lora.py: its losses against formulas written down again, and a file that --lora takes."""

import numpy as np
import pytest
import torch
from conftest import load_script
from safetensors.torch import load_file
from scipy.special import log_softmax

from diffusion import models
from diffusion.kernel import blocks, scores
from diffusion.settings import Lora, ModelOptions

WORDS = ["--version", "tiny", "--dataset", "fashion_mnist", "--split", "validation", "--class_labels", "4", "6",
         "--per_class", "2", "--batch_size", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def script():
    return load_script("train_lora")


def test_errors_are_the_kernels(script):
    """On the U-Net as it is, candidates by rows."""
    source = models.text_to_image("tiny")
    denoiser = source.load("cpu", "float32", plain=True)
    unet, _ = script.adapted_unet(script.Job(None, [], [], [], source, "cpu"), 2)
    g = torch.Generator().manual_seed(0)
    x0, t, noise = torch.randn(4, 8, 8, generator=g), torch.tensor([100, 700]), torch.randn(2, 4, 8, 8, generator=g)
    texts = denoiser.embed(["a photo of a coat.", "a photo of a shirt.", "a photo of a bag."])
    expected = blocks.errors(denoiser, x0, texts, t, noise, scores.l2, blocks.Batch(4))
    with torch.no_grad():
        all_of = script.errors_of(unet, denoiser.levels, "epsilon", x0.expand(2, -1, -1, -1), t, noise, texts.sequence,
                                  torch.arange(3)[:, None])  # fmt: skip
        own = script.errors_of(unet, denoiser.levels, "epsilon", x0.expand(2, -1, -1, -1), t, noise, texts.sequence,
                               torch.tensor([[2, 0]]))  # fmt: skip
    torch.testing.assert_close(all_of, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own[0], torch.stack([expected[2, 0], expected[0, 1]]), rtol=1e-5, atol=1e-6)


def test_the_contrast_is_a_cross_entropy_of_errors(script):
    errors = torch.tensor([[0.10, 0.20], [0.11, 0.19]])
    logits = -errors.numpy().T / (script.TEMPERATURE * errors.mean().item())
    expected = np.mean([0.10, 0.19]) - 2 * np.mean([log_softmax(row)[k] for row, k in zip(logits, (0, 1), strict=True)])
    assert script.contrasted(errors, torch.tensor([0, 1]), 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_a_trained_file_changes_errors_and_only_attention(script, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert script.main([*WORDS, "--steps", "3", "--contrast", "1", "--rank", "2", "--lr", "0.1", "-o", str(out)]) == 0
    assert "Price: 12 network evaluations" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == [out.name]
    assert all(key.startswith("unet.") and ".to_" in key for key in load_file(out))
    g = torch.Generator().manual_seed(0)
    x0, t, noise = torch.randn(4, 8, 8, generator=g), torch.tensor([500]), torch.randn(1, 4, 8, 8, generator=g)
    found = []
    for loras in ((), (Lora(str(out)),), (Lora(str(out), 0.0),)):
        denoiser = models.text_to_image("tiny", options=ModelOptions(loras=loras)).load("cpu", "float32")
        found.append(blocks.errors(denoiser, x0, denoiser.embed(["a photo of a coat."]), t, noise, scores.l2, blocks.Batch(4)))
    assert not torch.allclose(found[0], found[1], rtol=1e-4) and torch.allclose(found[0], found[2], rtol=1e-5)


def test_the_same_seed_gives_the_same_file(script, tmp_path, capsys):
    for name in ("a", "b"):
        assert script.main([*WORDS, "--steps", "2", "-o", str(tmp_path / f"{name}.safetensors")]) == 0
    capsys.readouterr()
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_images_are_of_the_classes(script):
    labels = np.array([4, 6, 4, 6, 0, 4])
    assert set(script.chosen(labels, 4, 3, 0)) == {0, 2, 5} and set(script.chosen(labels, 6, 2, 7)) == {1, 3}
