"""Loading of Stable Diffusion layouts, the law of noise and the spaces of a prediction, conditions, and which device runs."""

import dataclasses
import itertools
import json
import shutil

import pytest
import torch
from conftest import TINY_SD20

from diffusion import models
from diffusion.models.denoiser import SPACES, Conditions, Levels, ddpm
from diffusion.models.families.sd import default_size
from diffusion.models.loading.schedulers import prediction_of
from diffusion.models.speed import devices


def tiny(path=TINY_SD20, dtype="float32"):
    return models.text_to_image("2-0", str(path)).load("cpu", dtype)


# ---------------------------------------------------------------- the law of noise


def laws():
    """A DDPM's, a flow's and EDM's levels."""
    s = torch.linspace(0.02, 0.98, 50)
    return {
        "ddpm": ddpm(torch.linspace(0.9999, 0.005, 1000)),
        "flow": Levels(1 - s, s, times=1000 * s, flow=True),
        "edm": Levels(torch.ones(40), torch.logspace(-2, 2, 40)),
    }


def made_of(space, kind, signal, sigma, x0, noise):
    """A prediction by its definition, in double precision."""
    velocity = noise - x0 if kind == "flow" else signal * noise - sigma * x0
    return {"epsilon": noise, "x0": x0, "velocity": velocity}[space]


@pytest.mark.parametrize("kind", ["ddpm", "flow", "edm"])
def test_every_prediction_is_turned_into_every_space(kind):
    levels = laws()[kind]
    t = torch.tensor([0, 7, 20, len(levels) - 1])
    x0, noise = torch.randn(4, 4, 3, 3).double(), torch.randn(4, 4, 3, 3).double()
    signal, sigma = (table[t].double().view(-1, 1, 1, 1) for table in (levels.signal, levels.sigma))
    x_t = signal * x0 + sigma * noise
    torch.testing.assert_close(levels.add_noise(x0, noise, t).double(), x_t, rtol=1e-5, atol=1e-5)
    for prediction, space in itertools.product(SPACES, SPACES):
        given, wanted = (made_of(name, kind, signal, sigma, x0, noise) for name in (prediction, space))
        found = levels.conversion(prediction, space)(given.float(), x_t.float(), t).double()
        # what a level nearly hides, x0 behind noise or noise beside EDM's large levels, comes back with fewer digits
        scale = torch.maximum(1 / signal, 1 / sigma).clamp(min=1) * (1 + sigma)
        assert ((found - wanted).abs() <= 1e-5 * scale * (1 + wanted.abs())).all(), (prediction, space)
        target = levels.target(space, x0, noise, t).double()
        torch.testing.assert_close(target, wanted, rtol=1e-5, atol=1e-5)


def test_squared_errors_of_two_spaces_differ_by_the_factor_of_the_level():
    """(1 - s)^2 between velocity and epsilon of a flow, (sigma / signal)^2 between epsilon and x0 of a DDPM."""
    for kind, one, other, factor in (
        ("flow", "velocity", "epsilon", lambda a, s: a**2),
        ("ddpm", "epsilon", "x0", lambda a, s: (s / a) ** 2),
    ):
        levels = laws()[kind]
        t = torch.tensor([5, 20, 30])
        x0, noise, wrong = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
        x_t = levels.add_noise(x0, noise, t)
        output = levels.target(one, x0, noise, t) + wrong
        error = (levels.conversion(one, other)(output, x_t, t) - levels.target(other, x0, noise, t)).square().mean((1, 2, 3))
        expected = wrong.square().mean((1, 2, 3)) * factor(levels.signal[t], levels.sigma[t])
        torch.testing.assert_close(error, expected, rtol=1e-3, atol=1e-6)


def test_the_network_is_fed_the_models_own_times():
    levels = laws()["flow"]
    assert levels.time(torch.tensor([0, 49])).tolist() == pytest.approx([20, 980])
    t = torch.tensor([3, 800])
    assert laws()["ddpm"].time(t) is t and len(laws()["ddpm"]) == 1000 and len(levels) == 50


def test_an_unknown_space_or_prediction_is_refused():
    with pytest.raises(ValueError, match="'score'"):
        laws()["ddpm"].conversion("epsilon", "score")
    with pytest.raises(ValueError, match="'flow_prediction'"):
        prediction_of("flow_prediction")


# ---------------------------------------------------------------- conditions


def test_conditions_are_taken_moved_and_cast_by_rows():
    conditions = Conditions(sequence=torch.randn(4, 3, 2), pooled=torch.randn(4, 5), ids=torch.arange(4))
    some = conditions[[2, 0]]
    assert len(conditions) == 4 and len(some) == 2 and some.mask is None
    assert torch.equal(some.sequence, conditions.sequence[[2, 0]]) and some.ids.tolist() == [2, 0]
    assert some.repeat_each(3).ids.tolist() == [2, 2, 2, 0, 0, 0] and some.repeat_one(3).ids.tolist() == [2, 2, 2]
    half = conditions.to(torch.float16)
    assert half.pooled.dtype == torch.float16 and half.ids.dtype == torch.int64
    assert conditions.to("meta").sequence.device.type == "meta"


# ---------------------------------------------------------------- Stable Diffusion


def test_a_v_prediction_checkpoint_differs_from_epsilon_only_by_the_conversion(tmp_path):
    """Salimans and Ho 2022, appendix D: epsilon = sqrt(a) v + sqrt(1-a) x_t."""
    shutil.copytree(TINY_SD20, tmp_path / "v")
    path = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    plain, velocity = tiny(), tiny(tmp_path / "v")
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3, 800]), plain.embed(["a", "b"])
    signal, sigma = (table[t].view(-1, 1, 1, 1) for table in (plain.levels.signal, plain.levels.sigma))
    with torch.inference_mode():
        torch.testing.assert_close(velocity.predict(x, t, cond), signal * plain.predict(x, t, cond) + sigma * x)


def test_the_denoiser_is_made_of_the_parts_of_the_pipeline():
    """Against diffusers' own pipeline classes, part by part."""
    from diffusers import StableDiffusionPipeline

    ours = tiny()
    theirs = StableDiffusionPipeline.from_pretrained(TINY_SD20)
    image = torch.rand(3, 64, 64) * 2 - 1
    with torch.inference_mode():
        latent = theirs.vae.encode(image[None]).latent_dist.mean[0] * 0.18215
        text = theirs.encode_prompt("a dog", "cpu", 1, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(ours.encode(image), latent)
    torch.testing.assert_close(ours.embed(["a dog"]).sequence, text)
    abar = theirs.scheduler.alphas_cumprod
    torch.testing.assert_close(ours.levels.signal, abar.sqrt())
    torch.testing.assert_close(ours.levels.sigma, (1 - abar).sqrt())
    assert ours.levels.signal.dtype == torch.float32 and ours.space == "epsilon"


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_low_precision_stays_close(dtype, tolerance):
    full, low = tiny(), tiny(dtype=dtype)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    with torch.inference_mode():
        a, b = (d.predict(x, t, d.embed(["a dog", "a cat"])).float() for d in (full, low))
    assert b.sub(a).square().mean().sqrt() < tolerance * a.square().mean().sqrt()
    assert low.embed(["a"]).sequence.dtype == getattr(torch, dtype) and low.encode(torch.zeros(3, 64, 64)).dtype == torch.float32


def test_identity_follows_the_weights_not_the_place(tmp_path):
    shutil.copytree(TINY_SD20, tmp_path / "copy")
    first = models.text_to_image("2-0", str(TINY_SD20)).identity()
    assert models.text_to_image("x", str(tmp_path / "copy")).identity() == first
    path = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert models.text_to_image("x", str(tmp_path / "copy")).identity() != first


def test_sizes_come_from_the_configs():
    source = models.text_to_image("2-0", str(TINY_SD20))
    assert source.latent_shape(256) == (4, 32, 32) and source.default_size == 512 and source.n_levels == 1000
    with pytest.raises(ValueError, match=r"--img_size 250 must be a multiple of 16.*240 or 256"):
        source.latent_shape(250)


@pytest.mark.parametrize(("sample_size", "pixels"), [(8, 64), (31, 248), (32, 512), (64, 512), (96, 768), (None, 512)])
def test_a_size_that_fine_tunes_do_not_claim_by_mistake_is_deliberate(sample_size, pixels):
    assert default_size(sample_size, 8) == pixels


@pytest.mark.parametrize(("sample_size", "pixels"), [(8, 64), (96, 768)])
def test_a_model_says_its_own_size(tmp_path, sample_size, pixels):
    shutil.copytree(TINY_SD20, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "m" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": sample_size}))
    assert models.text_to_image("2-0", str(tmp_path / "m")).default_size == pixels


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
        models.text_to_image("2-0", str(tmp_path / "m"))


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
        tiny(tmp_path / "gap").embed(["a dog"])


@pytest.mark.parametrize(("part", "file"), [("text_encoder", "model"), ("vae", "diffusion_pytorch_model")])
def test_a_torn_checkpoint_is_refused(part, file, tmp_path):
    shutil.copytree(TINY_SD20, tmp_path / "torn")
    path = tmp_path / "torn" / part / f"{file}.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises((ValueError, OSError)):
        tiny(tmp_path / "torn").embed(["a dog"])


def test_a_vae_path_without_a_vae(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--vae_path.*config\.json has no 'block_out_channels'"):
        models.class_conditional("tiny", vae_path=str(tmp_path))


# ---------------------------------------------------------------- devices


def test_auto_dtype():
    assert devices.resolve_dtype("auto", "cpu") == "float32" and devices.resolve_dtype("auto", "cuda:1") == "float16"
    assert devices.resolve_dtype("bfloat16", "cpu") == "bfloat16"


def test_the_default_device_is_pytorchs_own():
    """The short cut that spares importing torch must not hide a GPU."""
    assert devices.resolve_device(None) == ("cuda" if torch.cuda.is_available() else "cpu")
    assert devices._may_have_gpu() or not torch.cuda.is_available()


def test_a_denoiser_can_be_changed_in_part():
    denoiser = tiny()
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([3, 800]), denoiser.embed(["a", "b", "c"])
    plain = dataclasses.replace(denoiser, shared=None)
    with torch.inference_mode():
        torch.testing.assert_close(
            denoiser.predict_latents(x, t, cond, None), plain.predict_latents(x, t, cond, None), rtol=0, atol=1e-4
        )
