"""--model_path of a single checkpoint file: the numbers of the folder that it was made of; what does not fit is refused."""

import json
import shutil
import sys
import types

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

import eval_prob_adaptive
from diffusion import models
from diffusion.analysis import reload
from diffusion.kernel import blocks, scores
from diffusion.models.loading import checkpoint
from diffusion.runs import run_folder
from diffusion.settings import Embedding, Lora, ModelOptions
from diffusion.utils.paths import TINY_SD
from tests import original_layouts, tiny_pipelines

PROMPTS = ["a photo of a bag.", "a red boot, a type of clothing"]
SIZE = 16


@pytest.fixture(scope="module")
def state():
    """The shipped model by the names of Stable Diffusion 1."""
    return original_layouts.tiny_sd(TINY_SD)


@pytest.fixture(scope="module")
def mine(state, tmp_path_factory):
    """The same as a file."""
    file = tmp_path_factory.mktemp("single") / "mine.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    return file


def errors(path, img_size, **asked):
    """l2 errors of a model, [2,2]."""
    source = models.text_to_image("none", str(path), ModelOptions(img_size, **asked))
    denoiser, g = source.load("cpu", "float32"), torch.Generator().manual_seed(1)
    x0 = denoiser.encode(torch.rand(3, img_size, img_size, generator=g) * 2 - 1)
    noise, t = torch.randn(2, *x0.shape, generator=g), torch.tensor([200, 700])
    return blocks.errors(denoiser, x0, denoiser.embed(PROMPTS), t, noise, scores.l2, blocks.Batch(8))


BESIDE = {"betas": torch.zeros(3), "model_ema.decay": torch.tensor(0.9), "cond_stage_model.logit_scale": torch.ones([])}


def written(state, file, beside=BESIDE):
    """The file, as its name's ending says; beside: what training leaves there."""
    state = {name: value.contiguous() for name, value in (state | beside).items()}
    if file.suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 7}, file)
    else:
        save_file(state, file)
    return file


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_file_gives_the_errors_of_its_folder(ending, state, tmp_path):
    file = written(state, tmp_path / f"x.{ending}")
    found = errors(file, 64, config=str(TINY_SD))
    torch.testing.assert_close(found, errors(TINY_SD, 64), rtol=1e-6, atol=0)


def test_a_trainer_s_classes_beside_the_tensors_are_not_run(state, tmp_path, monkeypatch):
    """As Lightning leaves them; on the machine that reads the file there is no such class."""
    name = "trainer_of_nobody.callbacks"
    module = types.ModuleType(name)
    module.Checkpoint = type("Checkpoint", (), {"__module__": name, "__init__": lambda self: setattr(self, "monitor", "loss")})
    monkeypatch.setitem(sys.modules, "trainer_of_nobody", types.ModuleType("trainer_of_nobody"))
    monkeypatch.setitem(sys.modules, name, module)
    beside = {"callbacks": {module.Checkpoint: {"best": 1.0}}, "last": module.Checkpoint()}
    torch.save({"state_dict": {k: v.contiguous() for k, v in state.items()}} | beside, tmp_path / "x.ckpt")
    monkeypatch.delitem(sys.modules, name)
    found = errors(tmp_path / "x.ckpt", 64, config=str(TINY_SD))
    torch.testing.assert_close(found, errors(TINY_SD, 64), rtol=1e-6, atol=0)


def test_texts_by_open_clips_names(state, tmp_path):
    """As Stable Diffusion 2 has them."""
    texts = load_file(TINY_SD / "text_encoder" / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.startswith("cond_stage_model.")}
    file = written(kept | original_layouts.open_clip(texts), tmp_path / "x.safetensors")
    torch.testing.assert_close(errors(file, 64, config=str(TINY_SD)), errors(TINY_SD, 64), rtol=1e-6, atol=0)


def states(pipeline) -> dict:
    return {name: part.state_dict() for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def test_sdxl(tmp_path):
    parts = states(tiny_pipelines.build("sdxl", tmp_path / "folder"))
    file = original_layouts.unet(parts["unet"], 1) | original_layouts.vae(parts["vae"], 2)
    file |= original_layouts.clip(parts["text_encoder"], "conditioner.embedders.0.transformer.")
    file |= original_layouts.open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    expected = errors(tmp_path / "folder", SIZE)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):  # configs are enough
        next((tmp_path / "folder" / part).glob("*.safetensors")).unlink()
    file = written(file, tmp_path / "xl.safetensors")
    torch.testing.assert_close(errors(file, SIZE, config=str(tmp_path / "folder")), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_transformer_alone_takes_the_rest_of_the_folder(prefix, tmp_path):
    parts = states(tiny_pipelines.build("sd3", tmp_path / "folder"))
    file = written(original_layouts.sd3(parts["transformer"], 2, prefix), tmp_path / "x.safetensors", BESIDE if prefix else {})
    expected = errors(tmp_path / "folder", SIZE)
    next((tmp_path / "folder" / "transformer").glob("*.safetensors")).unlink()
    source = models.text_to_image("none", str(file), ModelOptions(SIZE, config=str(tmp_path / "folder")))
    assert "with vae, text_encoder, text_encoder_2, text_encoder_3, configs of" in source.describe()
    assert source.memory("float32")["transformer"] == 4 * sum(v.numel() for v in parts["transformer"].values())
    torch.testing.assert_close(errors(file, SIZE, config=str(tmp_path / "folder")), expected, rtol=1e-6, atol=0)
    shutil.rmtree(tmp_path / "folder" / "vae")
    (tmp_path / "folder" / "vae").mkdir()
    with pytest.raises(ValueError, match=r"has no vae/config\.json"):
        errors(file, SIZE, config=str(tmp_path / "folder"))


def test_sd3_with_all_its_texts_is_as_diffusers_reads_it(tmp_path):
    """CLIP-L without its projection, T5 with its embeddings under one of two names."""
    parts = states(tiny_pipelines.build("sd3", tmp_path / "folder"))
    file = original_layouts.sd3(parts["transformer"], 2) | original_layouts.vae(parts["vae"], 2)
    first = {name: value for name, value in parts["text_encoder"].items() if name != "text_projection.weight"}
    t5 = {name: value for name, value in parts["text_encoder_3"].items() if "embed_tokens" not in name}
    file |= original_layouts.clip(first, "text_encoders.clip_l.transformer.")
    file |= original_layouts.clip(parts["text_encoder_2"], "text_encoders.clip_g.transformer.")
    file |= {f"text_encoders.t5xxl.transformer.{name}": value for name, value in t5.items()}
    file = written(file, tmp_path / "x.safetensors")
    config = str(tmp_path / "folder")
    its_own = StableDiffusion3Pipeline.from_single_file(str(file), config=config, text_encoder_3=None, tokenizer_3=None)
    expected, _, pooled, _ = its_own.encode_prompt(PROMPTS, None, None, device="cpu", do_classifier_free_guidance=False)
    source = models.text_to_image("none", str(file), ModelOptions(SIZE, config=config))
    found = source.load("cpu", "float32").embed(PROMPTS)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sequence[:, :24], expected[:, :24], rtol=1e-5, atol=1e-5)
    whole = models.text_to_image("none", config, ModelOptions(SIZE)).load("cpu", "float32").embed(PROMPTS)
    torch.testing.assert_close(found.sequence[:, 24:], whole.sequence[:, 24:], rtol=1e-6, atol=0)
    clip = models.text_to_image("none", str(file), ModelOptions(SIZE, "clip", config=config))
    assert "text_encoder_3" in source.memory("float32") and "text_encoder_3" not in clip.memory("float32")


def test_what_is_added_to_a_folder_is_added_to_a_file(mine, tmp_path):
    g = torch.Generator().manual_seed(0)
    lora = {"unet.conv_in.lora_A.weight": torch.randn(2, 4, 3, 3, generator=g),
            "unet.conv_in.lora_B.weight": torch.randn(64, 2, 1, 1, generator=g)}  # fmt: skip
    save_file(lora, tmp_path / "lora.safetensors")
    save_file({"bag": torch.randn(2, 128, generator=g)}, tmp_path / "embedding.safetensors")
    loras, embeddings = (Lora(str(tmp_path / "lora.safetensors")),), (Embedding(str(tmp_path / "embedding.safetensors")),)
    found = errors(mine, 64, config=str(TINY_SD), loras=loras, embeddings=embeddings)
    torch.testing.assert_close(found, errors(TINY_SD, 64, loras=loras, embeddings=embeddings), rtol=1e-6, atol=0)
    plain = errors(mine, 64, config=str(TINY_SD), loras=loras)
    assert (found[0] != plain[0]).all() and not torch.isclose(plain, errors(mine, 64, config=str(TINY_SD))).any()


def test_names_and_shapes_of_flux(tmp_path, monkeypatch):
    """diffusers' converter knows the published width only, so no file is written."""
    tiny_pipelines.build("flux-dev", tmp_path)
    changed = {"attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": [16, 56, 56], "in_channels": 64,
               "joint_attention_dim": 24, "pooled_projection_dim": 16}  # fmt: skip
    config = json.loads((tmp_path / "transformer" / "config.json").read_text()) | changed
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    vae = json.loads((tmp_path / "vae" / "config.json").read_text()) | {"latent_channels": 16}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(vae))
    shapes = original_layouts.flux_shapes(24, 16)
    monkeypatch.setattr(checkpoint, "_read", lambda path: {k: torch.empty(v, device="meta") for k, v in shapes.items()})
    monkeypatch.setattr(checkpoint, "_metadata", lambda path: {})
    source = models.text_to_image("none", "flux.safetensors", ModelOptions(config=str(tmp_path)))
    assert source.weights.in_file == ["transformer"]
    shapes["single_blocks.0.another.weight"] = (3,)
    with pytest.raises(ValueError, match=r"holds 'single_blocks.0.another.weight', unknown to the transformer"):
        models.text_to_image("none", "flux.safetensors", ModelOptions(config=str(tmp_path)))


def changed(state, **changes):
    """The state with changed entries, `.` written as two underscores; None takes one away."""
    found = state | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: torch.ones(1) if value is ONE else value for name, value in found.items() if value is not None}


ONE = object()  # a tensor of its own


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: changed(s, model__diffusion_model__novel__a=ONE), "holds 'model.diffusion_model.novel.a', unknown to"),
        (lambda s: changed(s, first_stage_model__novel=ONE), "holds 'first_stage_model.novel', unknown to the vae of --config"),
        (lambda s: changed(s, cond_stage_model__transformer__novel=ONE), "holds 'novel', unknown to the text_encoder"),
        (lambda s: changed(s, conditioner__embedders__1__model__ln_final__bias=ONE), "of no part of a StableDiffusionPipeline"),
        (lambda s: changed(s, novel__weight=ONE, another__weight=ONE), "holds 'another.weight' and 1 more of no part"),
        (lambda s: changed(s, model__diffusion_model__out__2__bias=None), "lacks 'conv_out.bias' of the unet"),
        (lambda s: changed(s, model__diffusion_model__out__2__bias=ONE), "does not fit the unet of --config .*size mismatch"),
        (lambda s: {k: v for k, v in s.items() if "diffusion_model" not in k}, "holds no weights of the unet"),
        (lambda s: changed({}, lora_unet_mid__lora_up__weight=ONE), "is a LoRA, and no model: give it with --lora"),
        (lambda s: {"<cat>": torch.ones(1, 128)}, "holds no weights of the unet"),
        (lambda s: {}, "holds no weights"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(change, expected, state, tmp_path):
    save_file({name: value.contiguous() for name, value in change(state).items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=expected):
        models.text_to_image("none", str(tmp_path / "x.safetensors"), ModelOptions(config=str(TINY_SD)))


def test_configs_of_another_model(mine, tmp_path):
    for name in ("sdxl", "pixart-alpha"):
        tiny_pipelines.build(name, tmp_path / name)
    with pytest.raises(ValueError, match=r"does not fit the unet of --config .*sdxl"):
        errors(mine, SIZE, config=str(tmp_path / "sdxl"))
    with pytest.raises(ValueError, match=r"are read of StableDiffusionPipeline, .*, and --config .* is none of them"):
        errors(mine, SIZE, config=str(tmp_path / "pixart-alpha"))
    with pytest.raises(ValueError, match="--config x is for a single file of weights"):
        models.text_to_image("tiny", options=ModelOptions(config="x"))
    with pytest.raises(ValueError, match=r"--version none is none of .*: name its configs with --config"):
        models.text_to_image("none", str(mine))


def test_a_part_that_is_nowhere(state, tmp_path):
    configs = tmp_path / "configs"
    shutil.copytree(TINY_SD, configs)
    (configs / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    file = written({k: v for k, v in state.items() if "first_stage" not in k}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds no vae, and neither does --config"):
        errors(file, 64, config=str(configs))


def test_a_file_that_would_run_code(tmp_path):
    class Acts:
        def __reduce__(self):
            return (open, (str(tmp_path / "acted"), "w"))

    torch.save({"state_dict": {"model.diffusion_model.x": Acts()}}, tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"x.ckpt cannot be read as weights"):
        errors(tmp_path / "x.ckpt", 64, config=str(TINY_SD))
    assert not (tmp_path / "acted").exists()


def test_what_a_run_depends_on(mine, tmp_path):
    def identity(**asked):
        return models.text_to_image("tiny", str(mine), ModelOptions(**asked)).identity()

    configs = tmp_path / "configs"
    shutil.copytree(TINY_SD, configs)
    first = identity(config=str(configs))
    assert first == identity() != models.text_to_image("tiny").identity()
    (configs / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"others, which nobody reads")
    assert identity(config=str(configs)) == first
    scheduler = configs / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("0.012", "0.013"))
    assert identity(config=str(configs)) != first


def test_the_command_names_its_folder_by_the_file_and_is_read_back(mine, tmp_path, run_main, monkeypatch):
    monkeypatch.setenv("LOG_DIR", str(tmp_path / "runs"))
    run = ["--model_path", mine, "--dataset", "fashion_mnist", "--imgs_to_eval", "1", "--to_keep", "1", "--n_samples", "2"]
    code, out, err = run_main(eval_prob_adaptive.main, *run, "--config", TINY_SD)
    assert code == 0 and "Top-1 accuracy" in out, err
    code, _, err = run_main(eval_prob_adaptive.main, *run, "--version", "tiny")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "runs" / "fashion_mnist").iterdir())
    assert [name.partition("_")[0] for name in names] == ["vmine", "vtiny"]
    for name in names:
        folder = tmp_path / "runs" / "fashion_mnist" / name
        past = reload.Past(folder, run_folder.read_config(folder))
        assert past.options["config"] == str(TINY_SD)
        assert reload.open_source(past).identity() == past.identity["weights"]
