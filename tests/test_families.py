"""Every family of pipelines against diffusers: conditions, noising, latents, and the training loss written down by itself."""

import dataclasses
import inspect
import json
import weakref

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, SanaPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

import eval_prob_adaptive
from diffusion import models
from diffusion.kernel import blocks, scores
from diffusion.models.denoiser import Conditions, Denoiser, Levels, in_space, one_by_one
from diffusion.models.families.base import placed
from diffusion.models.loading import hub
from diffusion.models.speed import devices
from diffusion.runs import run_folder
from diffusion.settings import ModelOptions
from tests import tiny_pipelines

PROMPTS = ["a photo of a bag.", "A red boot, a type of clothing", ""]
SIZE = 16  # pixels; not what the pipelines were built for


@pytest.fixture(scope="module", params=list(tiny_pipelines.BUILT))
def family(request, tmp_path_factory):
    """(name, diffusers' pipeline, our Denoiser, our Conditions of PROMPTS)."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = tiny_pipelines.build(request.param, folder)
    source = models.text_to_image("mine", str(folder), ModelOptions(SIZE))
    denoiser = source.load("cpu", "float32")
    return request.param, pipeline, denoiser, denoiser.embed(PROMPTS)


@torch.no_grad()
def encoded(name, pipeline, prompts) -> dict:
    """What the pipeline makes of prompts, by the names of our Conditions."""
    told = {"device": "cpu", "do_classifier_free_guidance": False}
    if name == "sdxl":
        sequence, _, pooled, _ = pipeline.encode_prompt(prompts, **told)
        return {"sequence": sequence, "pooled": pooled}
    if name.startswith("sd3"):
        sequence, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, **told)
        return {"sequence": sequence, "pooled": pooled}
    if name.startswith("flux"):
        length = 512 if name == "flux-dev" else 256  # as its published example
        sequence, pooled, _ = pipeline.encode_prompt(prompts, None, device="cpu", max_sequence_length=length)
        return {"sequence": sequence, "pooled": pooled}
    if name == "z-image":
        return stacked(pipeline.encode_prompt(list(prompts), **told)[0])  # it writes its template into the list
    if name == "auraflow":
        return {"sequence": pipeline.encode_prompt(prompts, **told)[0]}
    if name == "chroma":
        sequence, _, mask, *_ = pipeline.encode_prompt(list(prompts), **told)
        return {"sequence": sequence, "mask": mask.long()}
    if name.startswith("prx"):
        sequence, mask, _, _ = pipeline.encode_prompt(prompts, **told)
        return {"sequence": sequence, "mask": mask}
    if name == "sana":
        prefix = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        told["complex_human_instruction"] = prefix
    sequence, mask, _, _ = pipeline.encode_prompt(prompts, **told)
    return {"sequence": sequence, "mask": mask}


def stacked(rows) -> dict:
    """Texts [n,D] side by side, with their mask."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True)
    return {"sequence": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), "mask": mask}


def test_conditions_are_the_pipelines_own(family):
    name, pipeline, _, conditions = family
    expected = encoded(name, pipeline, PROMPTS)
    if name == "sd3-without-t5":  # one zero stands for 256
        assert (expected["sequence"][:, 24:] == 0).all() and (conditions.sequence[:, 24:] == 0).all()
        expected["sequence"] = expected["sequence"][:, :25]
    if name == "z-image":  # which cuts padding, and does not tell of it
        conditions = dataclasses.replace(conditions, sequence=conditions.sequence * conditions.mask[..., None])
    for part, value in without_padding(expected, conditions).items():
        torch.testing.assert_close(getattr(conditions, part), value, rtol=1e-5, atol=1e-5)


def without_padding(expected: dict, conditions) -> dict:
    """As far as the longest of our prompts goes; no later token counts."""
    if "mask" not in expected:
        return expected
    n = conditions.mask.shape[1]
    assert not expected["mask"][:, n:].any()
    return {part: value[:, :n] for part, value in expected.items()}


@torch.no_grad()
def test_no_prompt_is_told_as_the_pipeline_guides_without_a_negative_one(family):
    name, pipeline, denoiser, _ = family
    conditions = denoiser.embed(["a photo of a bag.", models.EMPTY_PROMPT])[[1]]
    if name.startswith("flux"):  # which is guided by a negative prompt only, the empty one
        expected = encoded(name, pipeline, [""])
    else:
        how = {"do_classifier_free_guidance": True, "device": "cpu"}
        more = [None, None] if name.startswith("sd3") else []
        found = pipeline.encode_prompt(["a photo of a bag."], *more, **how)
        if name == "z-image":
            expected = stacked(found[1])
        elif name == "auraflow":
            expected = {"sequence": found[2]}
        elif name == "chroma":
            expected = {"sequence": found[3], "mask": found[5].long()}
        elif name == "sdxl" or name.startswith("sd3"):
            expected = {"sequence": found[1], "pooled": found[3]}
        else:
            expected = {"sequence": found[2], "mask": found[3]}
    if name == "sd3-without-t5":
        expected["sequence"] = expected["sequence"][:, :25]
    if "mask" in expected:
        expected, n = without_padding(expected, conditions), int(expected["mask"].sum())
        assert (conditions.mask[:, :n] == expected.pop("mask")[:, :n]).all() and not conditions.mask[:, n:].any()
        expected["sequence"], conditions = (
            expected["sequence"][:, :n],
            dataclasses.replace(conditions, sequence=conditions.sequence[:, :n]),
        )
    for part, value in expected.items():
        torch.testing.assert_close(getattr(conditions, part), value, rtol=1e-5, atol=1e-5)


def scheduled(name, pipeline):
    """Times that the pipeline's scheduler has, from the least noise to the most, and what it makes of x0 = 1 and noise = 0, and
    of x0 = 0 and noise = 1, at each of them."""
    scheduler, one, zero = pipeline.scheduler, torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    if name.startswith("flux-dev"):
        mu = calculate_shift((SIZE // 2 // 2) ** 2, 256, 4096, 0.5, 1.15)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1e-3, 1000), mu=mu)
    elif name == "sana":
        scheduler.set_timesteps(1000)
        sigmas = scheduler.sigmas[:-1].flip(0)
        return None, 1 - sigmas, sigmas
    elif name in ("sdxl", "pixart-alpha", "pixart-sigma"):
        steps, scheduler = torch.arange(1000), DDPMScheduler.from_config(scheduler.config)
        signal, sigma = (torch.cat([scheduler.add_noise(*pair, t[None]) for t in steps]) for pair in ((one, zero), (zero, one)))
        return steps.float(), signal.flatten(), sigma.flatten()
    times = scheduler.timesteps.flip(0)
    signal, sigma = (
        torch.cat([scheduler.scale_noise(x, t[None], e) for t in times]).flatten() for x, e in ((one, zero), (zero, one))
    )
    return times, signal, sigma


def test_noising_is_the_schedulers_own(family):
    name, pipeline, denoiser, _ = family
    times, signal, sigma = scheduled(name, pipeline)
    levels = denoiser.levels
    torch.testing.assert_close(levels.signal, signal, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(levels.sigma, sigma, rtol=1e-5, atol=2e-6)
    if times is not None:
        fed = levels.time(torch.arange(1000)).float() * (
            1000 if name.startswith(("flux", "prx", "lumina2", "z-image", "chroma", "auraflow")) else 1
        )
        fed = 1000 - fed if levels.sign < 0 else fed
        torch.testing.assert_close(fed, times, rtol=1e-5, atol=1e-4)


def test_latents_are_the_pipelines_own(family):
    _, pipeline, denoiser, _ = family
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        found = pipeline.vae.encode(image[None])
    config = pipeline.vae.config
    if hasattr(found, "latent"):
        expected = found.latent[0] * config.scaling_factor
    else:
        expected = (found.latent_dist.mean[0] - (config.shift_factor or 0)) * config.scaling_factor
    torch.testing.assert_close(denoiser.encode(image), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def training_loss(name, pipeline, law, x0, noise, t, k, conditions) -> float:
    """Mean squared error of prompt k at level t, as diffusers' training scripts have it: one input, float32; law: `scheduled`."""
    _, signal, sigma = law
    a, s = signal[t], sigma[t]
    x_t, text = (a * x0 + s * noise)[None], {part: value[k : k + 1] for part, value in conditions.items()}
    sequence = text["sequence"]
    if name == "sdxl":
        added = {"text_embeds": text["pooled"], "time_ids": torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]]).float()}
        prediction = pipeline.unet(x_t, t, sequence, added_cond_kwargs=added).sample
        return (prediction - noise).square().mean().item()
    if name.startswith("pixart"):
        added = {"resolution": None, "aspect_ratio": None}
        if name == "pixart-alpha":
            added = {"resolution": torch.tensor([[SIZE, SIZE]]).float(), "aspect_ratio": torch.tensor([[1.0]])}
        prediction = pipeline.transformer(x_t, encoder_hidden_states=sequence, encoder_attention_mask=text["mask"],
                                          timestep=torch.tensor([t]), added_cond_kwargs=added).sample  # fmt: skip
        return (prediction.chunk(2, 1)[0] - noise).square().mean().item()
    if name == "lumina2":  # whose time runs from noise to picture
        prediction = -pipeline.transformer(x_t, 1 - s[None], sequence, text["mask"]).sample
    elif name == "z-image":
        (prediction,) = pipeline.transformer([x_t[0, :, None]], 1 - s[None], [sequence[0, text["mask"][0].bool()]]).sample
        prediction = -prediction[:, 0]
    elif name == "auraflow":
        prediction = pipeline.transformer(x_t, sequence, s[None]).sample
    elif name.startswith("prx"):
        prediction = pipeline.transformer(x_t, s[None], sequence, text["mask"]).sample
    elif name.startswith("sd3"):
        prediction = pipeline.transformer(x_t, sequence, text["pooled"], 1000 * s[None]).sample
    elif name.startswith(("flux", "chroma")):
        c, h, w = x0.shape
        told = {"pooled_projections": text.get("pooled")}
        if name == "chroma":  # whose pipeline gives the mask as numbers, which masks nothing
            told = {"attention_mask": torch.cat([text["mask"].bool(), torch.ones(1, h * w // 4, dtype=torch.bool)], 1)}
        elif pipeline.transformer.config.guidance_embeds:
            told["guidance"] = torch.tensor([1.0])
        prediction = pipeline.transformer(
            hidden_states=pipeline._pack_latents(x_t, 1, c, h, w),
            timestep=s[None],
            encoder_hidden_states=sequence,
            txt_ids=torch.zeros(sequence.shape[1], 3),
            img_ids=pipeline._prepare_latent_image_ids(1, h // 2, w // 2, "cpu", torch.float32),
            **told,
        ).sample
        prediction = pipeline._unpack_latents(prediction, SIZE, SIZE, pipeline.vae_scale_factor)
    else:
        scale = pipeline.transformer.config.timestep_scale
        prediction = pipeline.transformer(x_t, encoder_hidden_states=sequence, encoder_attention_mask=text["mask"],
                                          timestep=1000 * s[None] * scale).sample  # fmt: skip
    return (prediction - (noise - x0)).square().mean().item()


def test_errors_are_the_training_loss(family):
    name, pipeline, denoiser, conditions = family
    g = torch.Generator().manual_seed(2)
    x0 = denoiser.encode(torch.rand(3, SIZE, SIZE, generator=g) * 2 - 1)
    t, noise = torch.tensor([3, 500, 990]), torch.randn(3, *x0.shape, generator=g)
    found = blocks.errors(denoiser, x0, conditions, t, noise, scores.l2, blocks.Batch(4))
    texts, law = encoded(name, pipeline, PROMPTS), scheduled(name, pipeline)
    expected = [[training_loss(name, pipeline, law, x0, noise[i], int(t[i]), k, texts) for i in range(3)] for k in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0)
    assert len({round(row[1], 6) for row in expected}) == 3  # prompts matter to it


@torch.no_grad()
def test_a_flow_goes_where_the_pipelines_own_step_goes(family):
    """One Euler step of the pipeline's own call from a latent at level s to the image, x - s v, with its own sign and time."""
    name, pipeline, denoiser, conditions = family
    if not denoiser.levels.flow or name == "sana":  # whose solver takes no such step
        pytest.skip("no flow, or another step")
    start, t = {"sigmas": [0.4]}, 399  # before the scheduler's shift
    if name.startswith("prx"):  # which starts at noise
        start, t = {"use_resolution_binning": False}, 999
    x = torch.randn(1, *denoiser.encode(torch.zeros(3, SIZE, SIZE)).shape, generator=torch.Generator().manual_seed(4))
    packed = name.startswith(("flux", "chroma"))
    if name == "lumina2":
        pipeline.vae_scale_factor = 2  # 8 whatever the VAE is
    if name == "chroma":  # its mask as one
        pipeline.transformer.register_forward_pre_hook(masking, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline._pack_latents(x, 1, *x.shape[1:]) if packed else x
    told = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "return_dict": False, **start}
    told |= {"max_sequence_length": 256} if name == "flux-schnell" else {"guidance_scale": 0.0} if name == "z-image" else {}
    (there,) = pipeline([PROMPTS[1]], height=SIZE, width=SIZE, latents=latents, **told)
    there = pipeline._unpack_latents(there, SIZE, SIZE, pipeline.vae_scale_factor) if packed else there
    velocity = (x - there) / denoiser.levels.sigma[t]
    torch.testing.assert_close(denoiser.predict(x, torch.tensor([t]), conditions[[1]]), velocity, rtol=1e-4, atol=1e-4)


def masking(module, inputs, named):
    return inputs, named | {"attention_mask": named["attention_mask"].bool()}


@pytest.mark.parametrize(("name", "size"), [("lumina2", 16), ("z-image", 32)])  # of which 64 tokens need no filling
@torch.no_grad()
def test_blocks_of_the_image_alone_run_once_a_latent(name, size, tmp_path):
    tiny_pipelines.build(name, tmp_path)
    denoiser = models.text_to_image("mine", str(tmp_path), ModelOptions(size)).load("cpu", "float32")
    conditions, t = denoiser.embed(PROMPTS), torch.tensor([100, 900])
    x_t, latent = torch.randn(2, 4, size // 2, size // 2, generator=torch.Generator().manual_seed(5)), torch.tensor([1, 0, 1])
    expected = one_by_one(denoiser.predict, x_t, t, conditions, None)
    cells = one_by_one(denoiser.predict, x_t, t, conditions, latent)
    sizes, run = [], torch.nn.Module.__call__

    def noting(module, *inputs, **named):
        if inputs and getattr(module, "modulation", False):  # a block that sees an image
            sizes.append(len(inputs[0]))
        return run(module, *inputs, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "__call__", noting)
        found = denoiser.predict_latents(x_t, t, conditions, None)
    assert sizes == [2, 6, 6]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(denoiser.predict_latents(x_t, t, conditions, latent), cells, rtol=1e-5, atol=1e-5)


def test_spaces_differ_by_a_factor_at_every_level(family):
    """A flow's x0_hat = x_s - s v and e_hat = x_s + (1 - s) v: squared errors are s^2 and (1 - s)^2 times those of v. A DDPM's
    x0_hat = (x_t - sigma e) / signal: (sigma / signal)^2 times those of e."""
    _, _, denoiser, conditions = family
    g = torch.Generator().manual_seed(3)
    x0 = denoiser.encode(torch.rand(3, SIZE, SIZE, generator=g) * 2 - 1)
    t, noise = torch.tensor([200, 600]), torch.randn(2, *x0.shape, generator=g)
    signal, sigma = (table[t].double() for table in (denoiser.levels.signal, denoiser.levels.sigma))
    velocity, x0_space, epsilon = (
        blocks.errors(in_space(denoiser, space), x0, conditions, t, noise, scores.l2, blocks.Batch(8)).double()
        for space in ("velocity", "x0", "epsilon")
    )
    torch.testing.assert_close(x0_space, epsilon * (sigma / signal) ** 2, rtol=1e-4, atol=0)
    if denoiser.levels.flow:
        torch.testing.assert_close(x0_space, velocity * sigma**2, rtol=1e-4, atol=0)
        torch.testing.assert_close(epsilon, velocity * signal**2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_text_encoders_are_gone_before_the_network_is_there(name, tmp_path, monkeypatch):
    tiny_pipelines.build(name, tmp_path)
    loaded, real = [], hub.pretrained

    def remember(cls, *arguments, **how):
        alive = [part for part, reference in loaded if reference() is not None]
        assert how["subfolder"] == "vae" or alive in ([], ["vae"]), f"{alive} while {how['subfolder']} is loaded"
        model = real(cls, *arguments, **how)
        loaded.append((how["subfolder"], weakref.ref(model)))
        return model

    monkeypatch.setattr(hub, "pretrained", remember)
    denoiser = models.text_to_image("mine", str(tmp_path), ModelOptions(SIZE)).load("cpu", "float32")
    denoiser.embed(PROMPTS)
    assert [part for part, _ in loaded] == ["vae", *(["text_encoder", "text_encoder_2"]), *(["text_encoder_3"] * (name == "sd3")),
                                            {"sd3": "transformer", "sdxl": "unet"}[name]]  # fmt: skip


def test_embeddings_that_are_too_large_stay_on_the_cpu(monkeypatch):
    conditions = Conditions(sequence=torch.zeros(10, 100))
    monkeypatch.setattr(devices, "memory", lambda device: 39_000)
    assert placed(conditions, "meta").sequence.device.type == "cpu"
    monkeypatch.setattr(devices, "memory", lambda device: 40_000)
    assert placed(conditions, "meta").sequence.device.type == "meta"


@pytest.mark.parametrize("name", ["sd3", "flux-dev", "pixart-sigma"])
def test_t5_is_left_out_only_where_the_model_can_do_without(name, tmp_path):
    tiny_pipelines.build(name, tmp_path)
    if name != "sd3":
        with pytest.raises(ValueError, match=r"--text_encoders clip: .* cannot do without any"):
            models.text_to_image("mine", str(tmp_path), ModelOptions(text_encoders="clip"))
        return
    all_of, clip = (models.text_to_image("mine", str(tmp_path), ModelOptions(SIZE, which)) for which in ("all", "clip"))
    assert all_of.identity() != clip.identity()
    assert "text_encoder_3" in all_of.memory("float32") and "text_encoder_3" not in clip.memory("float32")
    sequence = clip.load("cpu", "float32").embed(PROMPTS).sequence
    assert sequence.shape == (3, 25, 40) and (sequence[:, 24] == 0).all()


def test_memory_is_the_weights_by_dtype(tmp_path):
    pipeline = tiny_pipelines.build("sd3", tmp_path)
    source = models.text_to_image("mine", str(tmp_path))
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in pipeline.components.items()
              if isinstance(part, torch.nn.Module)}  # fmt: skip
    buffers = pipeline.transformer.pos_embed.pos_embed.numel()  # which is saved with the weights
    expected = {name: n * (2 if name in ("transformer", "text_encoder_3") else 4) for name, n in counts.items()}
    assert source.memory("float16") == expected | {"transformer": 2 * (counts["transformer"] + buffers)}


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("sd3", 18, "--img_size 18 must be a multiple of 4"), ("sd3", 64, "places for images up to 48 pixels"),
     ("flux-dev", 18, "multiple of 4"), ("sdxl", 6, "multiple of 4"), ("sana", 9, "multiple of 2"),
     ("auraflow", 36, "places for images up to 32 pixels")],
)  # fmt: skip
def test_a_size_that_does_not_fit(name, size, expected, tmp_path):
    tiny_pipelines.build(name, tmp_path)
    with pytest.raises(ValueError, match=expected):
        models.text_to_image("mine", str(tmp_path), ModelOptions(size)).latent_shape(size)


def test_an_unknown_family(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    with pytest.raises(ValueError, match=r"is a KolorsPipeline, and the known ones are .*docs/own_model.md"):
        models.text_to_image("mine", str(tmp_path))


def test_a_part_of_another_model(tmp_path):
    tiny_pipelines.build("sd3", tmp_path)
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"latent_channels": 16}))
    with pytest.raises(ValueError, match="latents of 16 channels, and transformer/config"):
        models.text_to_image("mine", str(tmp_path))


def test_the_name_that_pixarts_transformer_had_when_it_was_published(tmp_path):
    pipeline = tiny_pipelines.build("pixart-alpha", tmp_path)
    errors = []
    for name in ("PixArtTransformer2DModel", "Transformer2DModel"):
        config = json.loads((tmp_path / "transformer" / "config.json").read_text())
        (tmp_path / "transformer" / "config.json").write_text(json.dumps(config | {"_class_name": name}))
        denoiser = models.text_to_image("mine", str(tmp_path), ModelOptions(SIZE)).load("cpu", "float32")
        x_t = torch.ones(1, pipeline.vae.config.latent_channels, SIZE // 2, SIZE // 2)
        errors.append(denoiser.predict(x_t, torch.tensor([500]), denoiser.embed(PROMPTS[:1])))
    torch.testing.assert_close(*errors, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("file", "changed", "expected"),
    [
        ("transformer/config.json", {"_class_name": "os.system"}, "is of a os.system, and a StableDiffusion3Pipeline has a SD3"),
        ("transformer/config.json", {"patch_size": 0}, "'patch_size' is 0, which is no size"),
        ("transformer/config.json", {"pos_embed_max_size": "large"}, "'pos_embed_max_size' is 'large', which is no size"),
        ("scheduler/scheduler_config.json", {"shift": "3"}, "'shift' is '3', which is no shift"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": -1}, "'num_train_timesteps' is -1, which is no size"),
        ("model_index.json", {"text_encoder": ["transformers", "Trainer"]}, "model_index.json names no text_encoder"),
        ("model_index.json", {"text_encoder_2": 3}, "model_index.json names no text_encoder_2"),
        ("vae/config.json", {"scaling_factor": None}, "'scaling_factor' is None, and has to be a number above 0"),
        ("vae/config.json", {"shift_factor": "much"}, "'shift_factor' is 'much', and has to be a number"),
    ],
)
def test_a_config_that_says_nothing_sensible(file, changed, expected, tmp_path):
    tiny_pipelines.build("sd3", tmp_path)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | changed))
    with pytest.raises(ValueError, match=expected):
        models.text_to_image("mine", str(tmp_path))


@pytest.mark.parametrize(
    ("file", "changed", "expected"),
    [
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "'use_dynamic_shifting' is True"),
        ("scheduler/scheduler_config.json", {"use_beta_sigmas": True}, "'use_beta_sigmas' is True"),
        ("transformer/config.json", {"bottleneck_size": 8}, "'bottleneck_size' is set, as of PRXPixel"),
        ("model_index.json", {"_class_name": "PRXPixelPipeline"}, "is a PRXPixelPipeline, and the known ones are"),
        ("model_index.json", {"default_sample_size": "large"}, "'default_sample_size' is 'large', which is no size"),
    ],
)  # fmt: skip
def test_what_is_no_prx(file, changed, expected, tmp_path):
    tiny_pipelines.build("prx", tmp_path)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | changed))
    with pytest.raises(ValueError, match=expected):
        models.text_to_image("mine", str(tmp_path))


def test_classes_that_prx_cleaning_makes_equal_are_refused_by_name(tmp_path):
    tiny_pipelines.build("prx", tmp_path)
    source = models.text_to_image("mine", str(tmp_path))
    assert source.default_size == 16
    with pytest.raises(ValueError, match=r"class 0 \(A300B4\) and class 1 \(E190\) are one and the same to the model"):
        models.check_prompts(source, ["a photo of a A300B4.", "a photo of a E190."], [0, 1], ["A300B4", "E190"])


def test_a_space_without_signal():
    levels = Levels(torch.tensor([0.9, 0.0]), torch.tensor([0.4, 1.0]))
    denoiser = Denoiser(None, None, None, levels)
    with pytest.raises(ValueError, match="--error_space: x0 does not follow from epsilon at level 1, which has no signal"):
        in_space(denoiser, "x0")


@pytest.mark.parametrize("name", ["sdxl", "flux-schnell", "pixart-sigma", "sana", "z-image"])
def test_the_command_classifies_with_it(name, tmp_path, run):
    tiny_pipelines.build(name, tmp_path / "model")
    printed = run("--model_path", tmp_path / "model", "--version", name, "--img_size", SIZE)
    assert "Top-1 accuracy" in printed


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """eval_prob_adaptive.main on two shipped images, in a folder of its own: what it printed."""
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "runs"))

    def main(*arguments):
        fixed = ["--dataset", "fashion_mnist", "--imgs_to_eval", "2", "--to_keep", "1", "--n_samples", "2"]
        assert eval_prob_adaptive.main([*fixed, *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return main


def test_the_space_of_errors_is_another_run(tmp_path, run):
    tiny_pipelines.build("sd3-without-t5", tmp_path / "model")
    told = ("--model_path", tmp_path / "model", "--version", "mine", "--img_size", SIZE)
    for space in ((), ("--error_space", "x0"), ("--error_space", "velocity")):
        run(*told, *space)
    folders = {path.name: run_folder.read_config(path) for path in (tmp_path / "runs" / "fashion_mnist").iterdir()}
    assert [name.partition("_16")[2] for name in sorted(folders)] == ["", "_x0"]  # velocity is its own
    assert [config["error_space"] for _, config in sorted(folders.items())] == ["velocity", "x0"]
