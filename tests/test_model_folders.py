"""Model folders as they come: every config file damaged in every way, schedulers of all kinds, weights saved as variants."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import TINY_SD20
from safetensors.torch import load_file, save_file
from test_baselines import CONFIG, find, make_model
from test_dit_loading import save, save_diffusers
from test_dit_model import TINY

import eval_prob_adaptive
import run_winoground
from diffusion import models
from diffusion.models.families.sd import StableDiffusion
from diffusion.models.loading.schedulers import DDPM_SCHEDULERS
from diffusion.models.speed import devices
from DiT import loading
from tests import tiny_pipelines

SD_FILES = {
    "vae/config.json": ["block_out_channels"],
    "unet/config.json": ["block_out_channels", "in_channels", "cross_attention_dim"],
    "text_encoder/config.json": ["hidden_size"],
    "scheduler/scheduler_config.json": ["_class_name", "num_train_timesteps", "beta_start", "beta_end", "beta_schedule"],
}
PUBLISHED_DIT = {  # what lies beside facebook/DiT-XL-2-256
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
NOT_JSON = [b"", b"{", b"\xff\xfe{}", b"[" * 100_000]
NO_OBJECT = [b"[]", b"3", b"null"]
WRONG = [None, True, "8", [], [0], [[8]], {"a": 1}, -1, 0, 1.5, 10**12]


def copy(name="m", weights=False):
    shutil.copytree(TINY_SD20, name, ignore=None if weights else shutil.ignore_patterns("*.safetensors"))
    return Path(name)


def change(path, **entries):
    """Sets keys of a JSON file; a value of ... removes one."""
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def told(call, *args):
    with pytest.raises((ValueError, OSError)) as caught:
        call(*args)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def open_sd(path="m"):
    return models.text_to_image("x", str(path))


def load_sd():
    """All parts, of which embedding loads the text encoder and the U-Net."""
    return open_sd().load("cpu", "float32").embed(["a dog"])


# ---------------------------------------------------------------- config files


@pytest.mark.parametrize("file", [*SD_FILES, "model_index.json", "tokenizer/tokenizer_config.json", "tokenizer/vocab.json"])
def test_a_file_that_is_no_json_object_is_named(file):
    path = copy() / file
    for content in NOT_JSON + NO_OBJECT:
        path.write_bytes(content)
        said = told(open_sd)
        assert f"m/{file}" in said and ("JSON" in said), (content[:20], said)


@pytest.mark.parametrize(("file", "key"), [(file, key) for file, keys in SD_FILES.items() for key in keys])
def test_a_key_that_is_missing_or_wrong_is_named(file, key):
    path = copy() / file
    good = path.read_text()
    for value in [..., *WRONG]:
        change(path, **{key: value})
        said = told(open_sd)
        assert (file in said and key.removeprefix("_class_") in said) or "differ" in said or "no scheduler" in said, (value, said)
        path.write_text(good)
    assert open_sd().default_size == 512


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("vae/config.json", {"latent_channels": "4"}),
        ("vae/config.json", {"latent_channels": 0}),
        ("vae/config.json", {"scaling_factor": "a"}),
        ("vae/config.json", {"scaling_factor": 0}),
        ("vae/config.json", {"scaling_factor": None}),
        ("vae/config.json", {"in_channels": 1}),
        ("vae/config.json", {"shift_factor": 0.1}),
        ("vae/config.json", {"latents_mean": [0.1] * 4}),
        ("unet/config.json", {"class_embed_type": "timestep"}),
        ("unet/config.json", {"num_class_embeds": 10}),
        ("unet/config.json", {"addition_embed_type": "text_time"}),
        ("unet/config.json", {"encoder_hid_dim_type": "image_proj"}),
        ("unet/config.json", {"time_cond_proj_dim": 256}),
        ("unet/config.json", {"out_channels": 8}),
        ("unet/config.json", {"sample_size": -1}),
        ("text_encoder/config.json", {"max_position_embeddings": 0}),
        ("text_encoder/config.json", {"vocab_size": "many"}),
        *(("tokenizer/tokenizer_config.json", {"model_max_length": value}) for value in ("77", 0, -5, 1, 77.5, True, [])),
    ],
)
def test_other_networks_and_settings_are_refused_before_weights_are_read(file, entries):
    change(copy() / file, **entries)
    said = told(open_sd)
    assert file in said and "\n" not in said, said


@pytest.mark.parametrize(
    "lost", ["tokenizer", "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler", "unet", "vae", "text_encoder"]
)
def test_a_part_that_is_not_there_is_named(lost):
    root = copy()
    (root / "tokenizer" / "tokenizer.json").unlink()
    open_sd()  # whose vocabulary lies in two files
    shutil.rmtree(root / lost) if (root / lost).is_dir() else (root / lost).unlink()
    assert f"--model_path m has no {lost}" in told(open_sd)


@pytest.mark.parametrize("place", ["m", "m/unet", "m/unet/diffusion_pytorch_model.safetensors"])
def test_a_network_alone_says_where_it_belongs(place):
    """What diffusers' training scripts leave at a checkpoint."""
    root = copy(weights=True)
    for other in set(root.iterdir()) - {root / "unet"}:
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    message = f"--model_path {place} is a network alone: copy its base model's folder, with m/unet as its unet"
    assert told(open_sd, place) == message


def test_sdxl_saved_for_another_task_and_its_refiner():
    tiny_pipelines.build("sdxl", "xl")
    text_to_image = models.text_to_image("x", "xl").identity()
    for task in ("Img2Img", "Inpaint"):
        change(Path("xl/model_index.json"), _class_name=f"StableDiffusionXL{task}Pipeline")
        assert models.text_to_image("x", "xl").identity() == text_to_image
    change(Path("xl/model_index.json"), _class_name="StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=True)
    assert "--model_path xl is SDXL's refiner" in told(open_sd, "xl")


def test_a_damaged_tokenizer_is_named():
    root = copy(weights=True)
    for content in ("{}", '{"version": "1.0", "model": 3}'):
        (root / "tokenizer" / "tokenizer.json").write_text(content)
        assert "m/tokenizer cannot be read" in told(load_sd)


def test_a_dry_run_sees_pointers_of_git_lfs(run_main):
    copy(weights=True)
    pointer = Path("m/unet/diffusion_pytorch_model.safetensors")
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3438167540\n")
    argv = ["--model_path", "m", "--dataset", "fashion_mnist", "--dry_run"]
    code, _, err = run_main(eval_prob_adaptive.main, *argv)
    assert code == 2 and f"{pointer} is a pointer of Git LFS" in err and "git lfs pull" in err and err.count("\n") == 1


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_not_there_are_named(part):
    root = copy(weights=True)
    next((root / part).glob("*.safetensors")).unlink()
    assert f"m/{part}: its weights are missing" in told(load_sd)


def test_weights_and_entries_that_the_network_has_no_place_for_are_told(caplog):
    """diffusers leaves them out with a warning; a class of another version, say, is then another network."""
    root = copy(weights=True)
    load_sd()
    assert not caplog.records
    file = root / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"class_embedding.weight": torch.ones(3)}, file)
    change(root / "unet" / "config.json", of_next_year="on", off=None)
    load_sd()
    (told,) = [record.getMessage() for record in caplog.records]
    expected = (
        "m/unet: 1 weights, class_embedding.weight the first, and 1 entries of its config.json, of_next_year the first, are not"
    )
    assert expected in told


TEXT_ENCODER = "m/text_encoder/model.safetensors"
PLACES = "text_model.embeddings.position_embedding.weight"
MISSING = "m/text_encoder: 1 weights are missing, embeddings.position_embedding.weight the first"


@pytest.mark.parametrize(
    "change_weights, expected",
    [
        (lambda state: state.pop(PLACES), MISSING),
        (
            lambda state: state.update({PLACES: torch.ones(3)}),
            "m/text_encoder: embeddings.position_embedding.weight is [3], and its config.json wants [77, 32]",
        ),
    ],
)
def test_a_text_encoders_weights_are_told_in_one_line(change_weights, expected, capfd):
    """transformers prints a table first, and names nothing in its error."""
    copy(weights=True)
    state = load_file(TEXT_ENCODER)
    change_weights(state)
    save_file(state, TEXT_ENCODER, {"format": "pt"})
    assert told(load_sd) == expected
    assert not "".join(capfd.readouterr())


def test_weights_that_a_text_encoder_has_no_place_for_are_told(caplog, capfd):
    copy(weights=True)
    save_file(load_file(TEXT_ENCODER) | {"classifier.weight": torch.ones(3)}, TEXT_ENCODER, {"format": "pt"})
    load_sd()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("Note: m/text_encoder: 1 weights, classifier.weight the first, are not used: its CLIPTextModel has")
    assert "REPORT" not in "".join(capfd.readouterr())


# ---------------------------------------------------------------- other kinds of model folders


@pytest.mark.parametrize("content", [*NOT_JSON, *NO_OBJECT])
def test_a_dits_config(content, tmp_path):
    file = save(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in told(models.class_conditional, "x", str(file))


@pytest.mark.parametrize("key", ["input_size", "depth", "hidden_size", "patch_size", "num_heads", "num_classes"])
def test_a_key_of_a_dits_config(key, tmp_path):
    file = save(tmp_path)
    for value in [..., *WRONG]:
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in (TINY | {key: value}).items() if v is not ...}))
        said = told(models.class_conditional, "x", str(file))
        assert "config.json" in said and key in said, (value, said)


@pytest.mark.parametrize("content", [*NOT_JSON, *NO_OBJECT])
def test_a_clips_config(content, tmp_path):
    make_model(tmp_path)
    (tmp_path / "small.json").write_bytes(content)
    assert "small.json" in told(find, tmp_path)


@pytest.mark.parametrize(
    ("entries", "key"),
    [
        ({"embed_dim": "a"}, "embed_dim"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"embed_dim": None}, "embed_dim"),
        ({"text_cfg": []}, "text_cfg"),
        ({"vision_cfg": 3}, "vision_cfg"),
        ({"text_cfg": {"context_length": -1}}, "context_length"),
        ({"text_cfg": {"vocab_size": "a"}}, "vocab_size"),
        ({"model_cfg": []}, "model_cfg"),
        ({"preprocess_cfg": []}, "preprocess_cfg"),
    ],
)
def test_an_entry_of_a_clips_config(entries, key, tmp_path):
    make_model(tmp_path)
    (tmp_path / "small.json").write_text(json.dumps(CONFIG | entries))
    said = told(find, tmp_path)
    assert "small.json" in said and repr(key) in said


# ---------------------------------------------------------------- schedulers


def scheduler_classes():
    return [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler") and not name.startswith("Flax")]


@pytest.mark.parametrize("name", scheduler_classes())
def test_schedulers_are_taken_that_have_the_levels_of_a_ddpm(name):
    """Oracle: what diffusers' own class makes of the same config."""
    config = {"num_train_timesteps": 500, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    expected = diffusers.DDPMScheduler.from_config(config).alphas_cumprod
    try:
        theirs = getattr(getattr(diffusers.schedulers, name).from_config(config), "alphas_cumprod", None)
    except ImportError:
        pytest.skip("needs a library that is not here")
    except (TypeError, ValueError):
        theirs = None
    is_ddpm = torch.is_tensor(theirs) and theirs.shape == expected.shape and torch.equal(theirs, expected)
    assert (name in DDPM_SCHEDULERS) == is_ddpm


@pytest.mark.parametrize("n", [500, 4000])
def test_another_number_of_levels_is_the_models_own(n, run_main):
    change(copy(weights=True) / "scheduler" / "scheduler_config.json", num_train_timesteps=n)
    source = open_sd()
    assert source.n_levels == n and f"{n} noise levels" in source.describe()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, n, dtype=torch.float64) ** 2
    levels = source.load("cpu", "float32").levels
    torch.testing.assert_close(levels.signal.double(), (1 - betas).cumprod(0).sqrt(), rtol=1e-3, atol=1e-6)
    argv = ["--dataset", "fashion_mnist", "--img_size", 64, "--model_path", "m", "--imgs_to_eval", 1, "--to_keep", 1]
    code, out, err = run_main(eval_prob_adaptive.main, *argv, "--n_samples", 4)
    assert code == 0 and f"{n} noise levels" in out, err
    record = torch.load(next(Path("data").rglob("*.pt")), weights_only=True)
    assert record["errors"][0]["t"].tolist() == [n // 8, 3 * n // 8, 5 * n // 8, 7 * n // 8]
    config = json.loads(next(Path("data").rglob("config.json")).read_text())
    assert config["n_levels"] == n
    code, _, err = run_main(eval_prob_adaptive.main, *argv, "--n_samples", n + 1)
    assert code == 2 and f"1..{n}" in err


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        {"_class_name": "EDMEulerScheduler", "num_train_timesteps": 1000, "sigma_max": 80},
        {
            "_class_name": "MyScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.1,
            "beta_end": 0.2,
            "beta_schedule": "linear",
        },
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 3, "trained_betas": [0.1, 0.2]},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 2, "trained_betas": [0.1, 1.2]},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 2, "trained_betas": "ab"},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 10**9, "trained_betas": None},
    ],
)
def test_another_law_of_noise_is_refused(config):
    (copy() / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert "scheduler/scheduler_config.json" in told(open_sd)


@pytest.mark.parametrize(
    "entries",
    [
        {"use_flow_sigmas": True},
        {"prediction_type": "flow_prediction"},
        {"prediction_type": []},
        {"prediction_type": None},
        {"beta_end": float("nan")},
        {"beta_start": 0.5},
        {"beta_schedule": "cosine"},
    ],
)
def test_an_entry_that_makes_another_law(entries):
    change(copy() / "scheduler" / "scheduler_config.json", **entries)
    said = told(open_sd)
    assert "scheduler/scheduler_config.json" in said and "\n" not in said


def test_trained_betas_are_the_law():
    betas = [0.1, 0.2, 0.3]
    change(copy(weights=True) / "scheduler" / "scheduler_config.json", num_train_timesteps=3, trained_betas=betas)
    abar = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    torch.testing.assert_close(open_sd().load("cpu", "float32").levels.signal, abar.sqrt())


def test_a_dits_scheduler_has_to_be_the_published_law(tmp_path):
    save_diffusers(tmp_path)
    argv = ["x", str(tmp_path), 64, str(TINY_SD20 / "vae")]
    models.class_conditional(*argv)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(PUBLISHED_DIT))
    models.class_conditional(*argv)
    for key, value in (("num_train_timesteps", 4000), ("beta_schedule", "scaled_linear"), ("prediction_type", "v_prediction"),
                       ("beta_end", ...)):  # fmt: skip
        path.write_text(json.dumps(PUBLISHED_DIT))
        change(path, **{key: value})
        said = told(models.class_conditional, *argv)
        assert "scheduler_config.json" in said and repr(key) in said
    path.write_text("[]")
    assert "scheduler_config.json" in told(models.class_conditional, *argv)


# ---------------------------------------------------------------- variants


def to_variant(root, part, variant):
    """Saves a part's weights under a variant's name, in half precision where it says so."""
    from safetensors.torch import load_file, save_file

    path = next((root / part).glob("*.safetensors"))
    state = load_file(path)
    half = {name: tensor.half() if variant == "fp16" else tensor for name, tensor in state.items()}
    save_file(half, path.with_name(f"{path.stem}.{variant}.safetensors"), metadata={"format": "pt"})
    path.unlink()
    return {name: tensor.float() for name, tensor in half.items()}


@pytest.mark.parametrize("parts", [["unet"], ["vae"], ["text_encoder"], ["unet", "vae", "text_encoder"]])
def test_weights_saved_as_a_variant_only_are_loaded_and_identified(parts):
    root, plain = copy(weights=True), open_sd(TINY_SD20)
    for part in parts:
        to_variant(root, part, "fp16")
    source = open_sd()
    assert source.identity() != plain.identity()
    ours, theirs = source.load("cpu", "float32"), plain.load("cpu", "float32")
    torch.manual_seed(0)
    x, t, image = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.rand(3, 64, 64) * 2 - 1
    with torch.inference_mode():
        pairs = [(d.encode(image), d.embed(["a dog"]).sequence, d.predict(x, t, theirs.embed(["a dog"]))) for d in (ours, theirs)]
    changed = {"vae": 0, "text_encoder": 1, "unet": 2}
    for part, i in changed.items():
        torch.testing.assert_close(pairs[0][i], pairs[1][i], rtol=0.05, atol=0.02)
        assert torch.equal(pairs[0][i], pairs[1][i]) == (part not in parts)
    before = source.identity()
    path = next((root / parts[0]).glob("*.fp16.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_sd().identity() != before


def test_plain_names_come_first_and_strange_variants_are_refused():
    root = copy(weights=True)
    shutil.copy(root / "unet" / "diffusion_pytorch_model.safetensors", root / "unet" / "diffusion_pytorch_model.ema.safetensors")
    open_sd().load("cpu", "float32")
    (root / "unet" / "diffusion_pytorch_model.safetensors").rename(root / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    assert "variants ema, non_ema" in told(load_sd)
    (root / "unet" / "diffusion_pytorch_model.ema.safetensors").unlink()
    open_sd().load("cpu", "float32")


@torch.inference_mode()
def test_a_dit_saved_as_a_variant_only(tmp_path):
    model = save_diffusers(tmp_path)
    plain = models.class_conditional("x", str(tmp_path), 64, str(TINY_SD20 / "vae")).identity()
    to_variant(tmp_path, "transformer", "fp16")
    loaded = loading.load_dit(tmp_path, image_size=64)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-2, atol=1e-3)
    assert models.class_conditional("x", str(tmp_path), 64, str(TINY_SD20 / "vae")).identity() != plain
    file = next((tmp_path / "transformer").glob("*.safetensors"))
    for name in ("ema", "non_ema"):
        shutil.copy(file, file.with_name(f"diffusion_pytorch_model.{name}.safetensors"))
    assert loading.load_dit(tmp_path, image_size=64)  # fp16 is a precision, the others are not
    file.unlink()
    assert "ema, non_ema" in told(loading.load_dit, tmp_path)


# ---------------------------------------------------------------- sizes that no memory holds


def test_sizes_that_cannot_fit_are_told_before_anything_is_allocated(monkeypatch):
    """Three maps of 8 channels and an image in float32: 108 bytes per pixel."""
    source = open_sd(TINY_SD20)
    monkeypatch.setattr(devices, "memory", lambda device: 108 * 1024**2)
    models.check_memory(source, 1024, "cpu", "float32", 32, 1000)
    with pytest.raises(ValueError, match=r"1040 pixels a side takes at least .* --img_size"):
        models.check_memory(source, 1040, "cpu", "float32", 32, 1000)
    channels = json.loads((TINY_SD20 / "unet" / "config.json").read_text())["block_out_channels"][0]
    most = 108 * 1024**2 // (3 * 4 * channels * 64**2)
    models.check_memory(source, 512, "cpu", "float32", most, 10**9)
    models.check_memory(source, 512, "cpu", "float32", "auto", 10**9)
    models.check_memory(source, 512, "cuda", "float32", 10**9, 10**9)  # where the kernel halves what does not fit
    models.check_memory(source, 512, "cpu", "float32", 10**9, most)
    with pytest.raises(ValueError, match=rf"batch of {most + 1} network inputs .* --batch_size"):
        models.check_memory(source, 512, "cpu", "float32", 10**9, most + 1)


@pytest.mark.parametrize("img_size", [160_000, 1_600_000_000])
def test_the_commands_tell_it(img_size, run_main, monkeypatch):
    monkeypatch.setattr(StableDiffusion, "load", None)
    for main, argv in (
        (eval_prob_adaptive.main, ["--dataset", "fashion_mnist"]),
        (run_winoground.main, ["--dataset", "tiny_pairs"]),
    ):
        code, _, err = run_main(main, *argv, "--version", "tiny", "--img_size", img_size, "--device", "cpu")
        assert code == 2 and err.count("\n") == 1 and "--img_size" in err and "memory" in err, err
    assert not Path("data").exists()


def test_memory_is_what_the_machine_has():
    pages = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    assert devices.memory("cpu") == pytest.approx(1024 * int(pages[0][1]), rel=0.01)


# ---------------------------------------------------------------- devices


NOWHERE = ["meta", "mps", "xpu", "xla", "hpu", "lazy", "vulkan", "privateuseone", "ipu", "mkldnn", "opengl", "fpga", "ort",
           "hip", "ve", "maia", "mtia"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*no longer used as device type")
@pytest.mark.parametrize("name", [*NOWHERE, "cuda:-1", "cuda:a", "CPU", "0", "x:y"])
def test_devices_that_compute_nothing_here(name):
    try:
        works = (torch.ones(2, device=name) * 3).sum().item() == 6
    except Exception:
        works = False
    if works:
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match=rf"--device {name} cannot be used here .* try --device cpu") as caught:
        devices.resolve_device(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
