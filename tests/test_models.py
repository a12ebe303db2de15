"""Loading of Stable Diffusion layouts and the conversion of predictions to epsilon."""

import json
import shutil

import pytest
import torch
from conftest import TINY_SD20

from diffusion import models
from diffusion.schedule import add_noise


def test_velocity_is_turned_into_epsilon():
    alphas = torch.linspace(0.9999, 0.005, 1000)
    x0, noise, t = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3), torch.tensor([0, 10, 500, 900, 999])
    a = alphas[t].view(-1, 1, 1, 1)
    velocity = a.sqrt() * noise - (1 - a).sqrt() * x0
    x_t = add_noise(x0, noise, alphas, t)
    epsilon = models.epsilon_from("v_prediction", alphas)(velocity, x_t, t)
    torch.testing.assert_close(epsilon, noise, rtol=1e-4, atol=1e-5)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="'sample'"):
        models.epsilon_from("sample", torch.ones(1000))


def test_a_v_prediction_checkpoint_differs_from_epsilon_only_by_the_conversion(tmp_path):
    shutil.copytree(TINY_SD20, tmp_path / "v")
    path = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    plain, velocity = (models.load_sd(models.find_sd("2-0", str(p)), "float32", "cpu") for p in (TINY_SD20, tmp_path / "v"))
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3, 800]), plain.embed(["a", "b"])
    with torch.inference_mode():
        expected = models.epsilon_from("v_prediction", plain.alphas_cumprod)(plain.predict(x, t, cond), x, t)
        torch.testing.assert_close(velocity.predict(x, t, cond), expected)


def test_the_denoiser_is_made_of_the_parts_of_the_pipeline():
    """Against diffusers' own pipeline classes, part by part."""
    from diffusers import StableDiffusionPipeline

    ours = models.load_sd(models.find_sd("2-0", str(TINY_SD20)), "float32", "cpu")
    theirs = StableDiffusionPipeline.from_pretrained(TINY_SD20)
    image = torch.rand(3, 64, 64) * 2 - 1
    with torch.inference_mode():
        latent = theirs.vae.encode(image[None]).latent_dist.mean[0] * 0.18215
        text = theirs.encode_prompt("a dog", "cpu", 1, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(ours.encode(image), latent)
    torch.testing.assert_close(ours.embed(["a dog"]), text)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.scheduler.alphas_cumprod)
    assert ours.alphas_cumprod.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_low_precision_stays_close(dtype, tolerance):
    files = models.find_sd("2-0", str(TINY_SD20))
    full, low = models.load_sd(files, "float32", "cpu"), models.load_sd(files, dtype, "cpu")
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    with torch.inference_mode():
        a, b = (d.predict(x, t, d.embed(["a dog", "a cat"])).float() for d in (full, low))
    assert b.sub(a).square().mean().sqrt() < tolerance * a.square().mean().sqrt()
    assert low.embed(["a"]).dtype == models.DTYPES[dtype] and low.encode(torch.zeros(3, 64, 64)).dtype == torch.float32


def test_identity_follows_the_weights_not_the_place(tmp_path):
    shutil.copytree(TINY_SD20, tmp_path / "copy")
    first = models.weights_identity(models.find_sd("2-0", str(TINY_SD20)))
    assert models.weights_identity(models.find_sd("x", str(tmp_path / "copy"))) == first
    path = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert models.weights_identity(models.find_sd("x", str(tmp_path / "copy"))) != first


def test_sizes_come_from_the_configs():
    files = models.find_sd("2-0", str(TINY_SD20))
    assert models.latent_shape(files, 256) == (4, 32, 32) and files.default_size == 512
    with pytest.raises(ValueError, match=r"--img_size 250 must be a multiple of 16.*240 or 256"):
        models.latent_shape(files, 250)


def test_auto_dtype():
    assert models.resolve_dtype("auto", "cpu") == "float32" and models.resolve_dtype("auto", "cuda:1") == "float16"
    assert models.resolve_dtype("bfloat16", "cpu") == "bfloat16"


@pytest.mark.parametrize(
    ("config", "key", "value", "told"),
    [
        ("unet/config.json", "in_channels", 9, "no text-to-image pipeline"),
        ("unet/config.json", "addition_embed_type", "text_time", "no text-to-image pipeline"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction", "'flow_prediction'"),
    ],
)
def test_other_layouts_are_refused_before_weights_are_read(tmp_path, config, key, value, told):
    shutil.copytree(TINY_SD20, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m" / config
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=told):
        models.find_sd("2-0", str(tmp_path / "m"))


def test_a_small_model_says_its_own_size(tmp_path):
    shutil.copytree(TINY_SD20, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 8}))
    assert models.find_sd("2-0", str(tmp_path / "m")).default_size == 64


@pytest.mark.parametrize(
    ("part", "file"),
    [("text_encoder", "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")],
)
def test_a_checkpoint_that_lacks_weights_is_refused(part, file, tmp_path):
    """transformers, and some versions of diffusers, would fill the gap with random numbers and a warning."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY_SD20, tmp_path / "gap")
    path = tmp_path / "gap" / part / f"{file}.safetensors"
    state = load_file(path)
    lost = sorted(state)[0]
    del state[lost]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing"):
        models.load_sd(models.find_sd("2-0", str(tmp_path / "gap")), "float32", "cpu")


@pytest.mark.parametrize(("part", "file"), [("text_encoder", "model"), ("vae", "diffusion_pytorch_model")])
def test_a_torn_checkpoint_is_refused(part, file, tmp_path):
    shutil.copytree(TINY_SD20, tmp_path / "torn")
    path = tmp_path / "torn" / part / f"{file}.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises((ValueError, OSError)):
        models.load_sd(models.find_sd("2-0", str(tmp_path / "torn")), "float32", "cpu")


def test_a_vae_path_without_a_vae(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--vae_path .* no AutoencoderKL"):
        models.find_dit("tiny", None, None, str(tmp_path))
