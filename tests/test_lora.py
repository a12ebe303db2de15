"""--lora: a fused adapter changes errors as its unfused module does, whatever wrote the file; what does not fit is refused."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import eval_prob_adaptive
from diffusion import models
from diffusion.kernel import blocks, scores
from diffusion.models.loading import hub, lora
from diffusion.runs import run_folder
from diffusion.settings import Lora, ModelOptions
from diffusion.utils.paths import TINY_SD
from tests import tiny_pipelines

PROMPTS = ["a photo of a coat.", "a photo of a shirt."]
TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0", "conv1"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """(the tiny pipeline with random adapters that are not fused, in U-Net and text encoder; diffusers' file of them)."""
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_SD, torch_dtype=torch.float32)
    torch.manual_seed(0)
    states = {}
    for part, targets in TARGETS.items():
        model = getattr(pipeline, part)
        model.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights="gaussian"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        states[part] = {f"{part}.{key}": value for key, value in get_peft_model_state_dict(model).items()}
    file = tmp_path_factory.mktemp("lora") / "mine.safetensors"
    config = {f"{part}.{key}": value for part, targets in TARGETS.items()
              for key, value in {"r": 4, "lora_alpha": 6, "target_modules": targets}.items()}  # fmt: skip
    about = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    save_file(states["unet"] | states["text_encoder"], file, metadata=about)
    return pipeline, file


def errors(*loras, prompts=PROMPTS, shared=True):
    """l2 errors of the tiny model with these fused, [K,3]."""
    source = models.text_to_image("tiny", options=ModelOptions(loras=tuple(map(Lora.parse, map(str, loras)))))
    denoiser = source.load("cpu", "float32", plain=not shared)
    x0, t, noise = inputs()
    return blocks.errors(denoiser, x0, denoiser.embed(prompts), t, noise, scores.l2, blocks.Batch(4))


def inputs():
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, 8, 8, generator=g), torch.tensor([100, 400, 800]), torch.randn(3, 4, 8, 8, generator=g)


@torch.no_grad()
def unfused_errors(pipeline):
    """The same by the pipeline's own modules, one input after the other."""
    x0, t, noise = inputs()
    tokens = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=24, return_tensors="pt").input_ids
    texts, found = pipeline.text_encoder(tokens)[0], torch.zeros(2, 3)
    for k in range(2):
        for i in range(3):
            x_t = pipeline.scheduler.add_noise(x0[None], noise[i : i + 1], t[i : i + 1])
            found[k, i] = (pipeline.unet(x_t, t[i], texts[k : k + 1]).sample - noise[i]).square().mean()
    return found


@pytest.mark.slow
def test_fused_equals_unfused(adapted):
    pipeline, file = adapted
    expected = unfused_errors(pipeline)
    for shared in (True, False):
        torch.testing.assert_close(errors(file, shared=shared), expected, rtol=1e-4, atol=0)
    assert (errors() - expected).abs().min() > 1e-3 * expected.max()


def test_a_kohya_file_is_the_same(adapted, tmp_path):
    """Kohya's names, with alpha beside the weights in place of a config."""
    state = load_file(adapted[1])
    kohya = {}
    for part, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te")):
        mine = {key.removeprefix(part + "."): value for key, value in state.items() if key.startswith(part + ".")}
        for key, value in mine.items():
            module, _, end = key.partition(".lora_")
            name = f"{prefix}_{('' if part == 'unet' else 'text_model.') + module}".replace(".", "_")
            kohya[f"{name}.lora_{'down' if end.startswith('A') else 'up'}.weight"] = value
            kohya[f"{name}.alpha"] = torch.tensor(6.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    torch.testing.assert_close(errors(tmp_path / "kohya.safetensors"), errors(adapted[1]), rtol=1e-5, atol=0)


def test_what_peft_saves_of_the_u_net_is_the_same(adapted, tmp_path):
    """Its own names, with alpha in a config."""
    state = load_file(adapted[1])
    unet = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
    save_file({f"base_model.model.{key}": value for key, value in unet.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
    about = {"unet.r": 4, "unet.lora_alpha": 6, "unet.target_modules": TARGETS["unet"]}
    save_file({f"unet.{key}": value for key, value in unet.items()}, tmp_path / "diffusers.safetensors",
              metadata={"format": "pt", "lora_adapter_metadata": json.dumps(about)})  # fmt: skip
    torch.testing.assert_close(errors(tmp_path), errors(tmp_path / "diffusers.safetensors"), rtol=1e-5, atol=0)
    for odd in ({"use_dora": True}, {"lora_bias": True}, {"peft_type": "IA3"}, {"modules_to_save": ["conv_in"]}):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6} | odd))
        lora._read.cache_clear()
        with pytest.raises(ValueError, match="no plain LoRA"):
            errors(tmp_path)


ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_" + ATTENTION.replace(".", "_")


OTHERS = ("dora_scale", "hada_w1_a", "lokr_w1", "lora_mid.weight", "diff", "diff_b", "on_input", "scale", "of_next_year.weight")


@pytest.mark.parametrize("name", [f"{KOHYA}.{end}" for end in OTHERS])
def test_what_diffusers_would_leave_out_is_named(name, tmp_path):
    state = {
        f"{KOHYA}.lora_down.weight": torch.ones(4, 64),
        f"{KOHYA}.lora_up.weight": torch.ones(64, 4),
        name: torch.ones(64, 1),
    }
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x.safetensors holds {name}[:,] "):
        errors(tmp_path / "x.safetensors")


def test_a_bias_for_a_layer_without_one(tmp_path, recwarn):
    width = load_file(TINY_SD / "unet" / "diffusion_pytorch_model.safetensors")[f"{ATTENTION}.weight"].shape
    state = {
        "lora_A.weight": torch.ones(4, width[1]),
        "lora_B.weight": torch.ones(width[0], 4),
        "lora_B.bias": torch.ones(width[0]),
    }
    save_file({f"unet.{ATTENTION}.{name}": value for name, value in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors does not fit this unet .*bias"):
        errors(tmp_path / "x.safetensors")
    assert not recwarn.list


@pytest.mark.slow
def test_scales(adapted):
    _, file = adapted
    torch.testing.assert_close(errors(f"{file}@0"), errors(), rtol=1e-5, atol=0)
    twice = errors(f"{file}@0.5", f"{file}@0.5")
    torch.testing.assert_close(twice, errors(file), rtol=1e-4, atol=0)
    identities = {models.text_to_image("tiny", options=ModelOptions(loras=loras)).identity()
                  for loras in ((), (Lora(str(file)),), (Lora(str(file), 0.5),), (Lora(str(file), 0.5),) * 2)}  # fmt: skip
    assert len(identities) == 4


def test_a_transformers_adapter(tmp_path):
    pipeline = tiny_pipelines.build("sd3-without-t5", tmp_path / "model")
    pipeline.transformer.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "add_k_proj"], init_lora_weights=False)
    )
    state = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(pipeline.transformer).items()}
    save_file(state, tmp_path / "flow.safetensors")
    asked = ModelOptions(16, loras=(Lora(str(tmp_path / "flow.safetensors")),))
    denoiser = models.text_to_image("mine", str(tmp_path / "model"), asked).load("cpu", "float32", plain=True)
    conditions, x, t = denoiser.embed(PROMPTS), torch.randn(2, 4, 8, 8), torch.tensor([100, 900])
    with torch.no_grad():
        expected = pipeline.transformer(x, conditions.sequence, conditions.pooled, denoiser.levels.time(t)).sample
    torch.testing.assert_close(denoiser.predict(x, t, conditions), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"unet.nowhere.lora_A.weight": (4, 8), "unet.nowhere.lora_B.weight": (8, 4)}, "for another model"),
        (
            {"unet.conv_in.lora_A.weight": (4, 99, 3, 3), "unet.conv_in.lora_B.weight": (64, 4, 1, 1)},
            "for another model than this unet",
        ),
        (
            {"prior.a.lora_A.weight": (4, 8), "unet.conv_in.lora_B.weight": (8, 4)},
            "'prior.a.lora_A.weight' and 0 more of its 2 weights",
        ),
        ({"unet.conv_in.weight": (4, 8)}, "unet.conv_in.weight, which is no LoRA"),
    ],
)
def test_weights_that_do_not_fit(state, expected, tmp_path):
    save_file({key: torch.zeros(shape) for key, shape in state.items()}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=expected):
        errors(tmp_path / "other.safetensors")


def test_a_lora_of_the_hub_is_read_at_the_commit_that_its_identity_names(adapted, monkeypatch):
    asked_for, states = [], load_file(adapted[1])
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))

    def read(path, *, return_lora_metadata, revision, unet_config=None, return_alphas=None, **_):
        asked_for.append((path, revision))
        return states, None, None

    monkeypatch.setattr(StableDiffusionPipeline, "lora_state_dict", read)
    source = models.text_to_image("tiny", options=ModelOptions(loras=(Lora("someone/a-lora"),)))
    assert asked_for == [("someone/a-lora", "c0ffee")]
    assert source.identity().endswith("lora someone/a-lora at commit c0ffee scaled by 1")


def test_a_folder_of_pickled_weights_has_an_identity_of_its_own(tmp_path):
    found = set()
    for n in range(2):
        (tmp_path / f"{n}").mkdir()
        torch.save({"x": torch.tensor(n)}, tmp_path / f"{n}" / "pytorch_lora_weights.bin")
        found.add(hub.content(str(tmp_path / f"{n}"), "--lora"))
    assert len(found) == 2


@pytest.mark.parametrize("value", ["@0.5", "x.safetensors@much", "x.safetensors@nan", "nowhere.safetensors", "/dev/null"])
def test_no_lora(value, capsys):
    with pytest.raises(SystemExit) as ended:
        eval_prob_adaptive.main(["--version", "tiny", "--dataset", "fashion_mnist", "--lora", value])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1 and "--lora" in told


def test_the_run_folder_names_them(adapted, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOG_DIR", str(tmp_path))
    run = ["--version", "tiny", "--dataset", "fashion_mnist", "--imgs_to_eval", "1", "--to_keep", "1", "--n_samples", "2"]
    assert eval_prob_adaptive.main([*run, "--lora", f"{adapted[1]}@0.5"]) == 0
    (folder,) = (tmp_path / "fashion_mnist").iterdir()
    config = run_folder.read_config(folder)
    assert folder.name.endswith("_mine@0.5") and config["options"]["lora"] == [f"{adapted[1]}@0.5"]
    assert "scaled by 0.5" in config["identity"]["weights"]
    capsys.readouterr()
