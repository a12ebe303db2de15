"""What config files and checkpoints say of themselves is used, or refused by its name: in every family, key by key."""

import inspect
import json
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel
from safetensors.torch import save_file
from test_dit_loading import save_diffusers

from diffusion import models
from diffusion.models.loading.schedulers import DDPM_SCHEDULERS, FLOW_SCHEDULERS
from diffusion.settings import ModelOptions
from diffusion.utils.paths import TINY_SD
from tests import original_layouts, tiny_pipelines

SIZE = 16
SCHEDULER, VAE = "scheduler/scheduler_config.json", "vae/config.json"
DDPMS, FLOWS = (
    ("sdxl", "pixart-alpha"),
    ("sd3", "flux-dev", "flux-schnell", "sana", "prx", "lumina2", "z-image", "chroma", "auraflow"),
)
SPREADS = ("use_karras_sigmas", "use_beta_sigmas", "use_exponential_sigmas", "invert_sigmas", "shift_terminal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """name -> the folder of a tiny pipeline of this family."""

    @cache
    def built(name):
        place = tmp_path_factory.mktemp(name)
        tiny_pipelines.build(name, place)
        return place

    return built


@pytest.fixture
def changed(folder):
    """(name, file, **entries) -> the folder with these keys in a JSON file, until the test ends."""
    before = {}

    def change(name, file, **entries):
        path = folder(name) / file
        before.setdefault(path, path.read_text())
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
        return folder(name)

    yield change
    for path, text in before.items():
        path.write_text(text)


def find(place, **asked):
    return models.text_to_image("mine", str(place), ModelOptions(SIZE, **asked))


REFUSED = [
    *((name, SCHEDULER, "_class_name", "FlowMatchEulerDiscreteScheduler") for name in DDPMS),
    *((name, SCHEDULER, "use_flow_sigmas", True) for name in DDPMS),
    *((name, SCHEDULER, "prediction_type", "flow_prediction") for name in DDPMS),
    *((name, SCHEDULER, "_class_name", kind) for name in FLOWS for kind in ("DDIMScheduler", "SCMScheduler")
      if (name, kind) != ("sana", "DDIMScheduler")),
    ("sana", SCHEDULER, "use_flow_sigmas", False),
    ("sana", SCHEDULER, "prediction_type", "epsilon"),
    *((name, SCHEDULER, key, 0.5) for name in FLOWS for key in SPREADS),
    *((name, SCHEDULER, "use_dynamic_shifting", True) for name in ("sd3", "sana", "prx", "lumina2", "auraflow")),
    ("flux-dev", SCHEDULER, "time_shift_type", "linear"),
    *(("sdxl", "unet/config.json", key, 4) for key in ("time_cond_proj_dim", "num_class_embeds")),
    *(("sdxl", "unet/config.json", key, "text_proj") for key in ("class_embed_type", "encoder_hid_dim_type")),
    ("sdxl", "unet/config.json", "addition_embed_type", "image"),
    ("sana", "transformer/config.json", "guidance_embeds", True),
    *(("z-image", "transformer/config.json", key, value) for key, value in (("siglip_feat_dim", 8), ("all_patch_size", [2, 4]))),
    ("sdxl", "unet/config.json", "out_channels", 8),
    *((name, "transformer/config.json", "out_channels", 7) for name in ("sd3", "flux-dev", "pixart-alpha", "sana")),
    *((name, VAE, key, [0.5] * 4) for name in (*DDPMS, *FLOWS) for key in ("latents_mean", "latents_std")),
    *((name, VAE, "_class_name", "AutoencoderTiny") for name in ("sdxl", "sd3", "prx")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "key", "value"), REFUSED)
def test_what_cannot_be_used_is_refused_by_name(name, file, key, value, changed):
    with pytest.raises(ValueError) as caught:
        find(changed(name, file, **{key: value}))
    named = value if isinstance(value, str) else key
    assert named in str(caught.value) and file in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("norm_type", "ada_norm_single"), ("activation_fn", "geglu"), ("attention_bias", False)]
)
def test_a_dit_of_another_kind_is_refused_by_name(key, value, tmp_path):
    save_diffusers(tmp_path)
    models.class_conditional("x", str(tmp_path), 64, str(TINY_SD / "vae"))
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"config.json: '{key}' is {value!r}, and that of a DiT is"):
        models.class_conditional("x", str(tmp_path), 64, str(TINY_SD / "vae"))


@pytest.mark.parametrize("name", DDPMS)
@pytest.mark.parametrize(("stated", "space"), [("epsilon", "epsilon"), ("v_prediction", "velocity"), ("sample", "x0")])
def test_the_prediction_is_the_schedulers(name, stated, space, changed):
    source = find(changed(name, SCHEDULER, prediction_type=stated))
    assert (source.prediction, source.space) == (space, "epsilon")


@pytest.mark.parametrize("name", DDPMS)
def test_betas_without_signal_at_their_end_are_the_schedulers(name, changed):
    assert find(changed(name, SCHEDULER, rescale_betas_zero_snr=True)).levels().signal[-1] < 1e-3


def test_a_flows_shift_is_read_of_a_solvers_config_in_every_family(changed):
    solver = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 2.0,
              "prediction_type": "flow_prediction", "use_dynamic_shifting": False}  # fmt: skip
    for name in FLOWS:
        s = find(changed(name, SCHEDULER, **solver)).levels().sigma[499]
        r = 0.5 * 0.999
        assert float(s) == pytest.approx(2 * r / (1 + r), rel=1e-6), name


def test_levels_of_ones_own_need_no_spread_of_the_schedulers(changed):
    place = changed("sd3", SCHEDULER, use_karras_sigmas=True)
    assert float(find(place, levels="uniform").levels().sigma[499]) == pytest.approx(0.5)


def test_schnell_reads_256_tokens_and_its_older_runs_are_others(folder):
    """As Black Forest Labs' own code has it; a network with an embedding of guidance reads 512."""
    lengths = {name: find(folder(name)).encoders[-1].length for name in ("flux-schnell", "flux-dev")}
    assert lengths == {"flux-schnell": 256, "flux-dev": 512}
    assert find(folder("flux-schnell")).identity().endswith(", 256 tokens")
    assert "tokens" not in find(folder("flux-dev")).identity()


def test_a_chat_template_tells_runs_apart(folder):
    template = folder("z-image") / "tokenizer" / "chat_template.jinja"
    text, before = template.read_text(), find(folder("z-image")).identity()
    template.write_text(text.replace("assistant", "model"))
    after = find(folder("z-image")).identity()
    template.write_text(text)
    assert before != after and "prompts as" in before


# ---------------------------------------------------------------- nothing that diffusers knows is left out

SAMPLING = """
    algorithm_type clip_sample clip_sample_range corrector_order disable_corrector dynamic_thresholding_ratio eta
    euler_at_final final_sigmas_type interpolation_type lambda_min_clipped lower_order_final original_inference_steps
    predict_x0 predictor_order sample_max_value set_alpha_to_one skip_prk_steps solver_order solver_p solver_type
    steps_offset tau_func thresholding timestep_scaling timestep_spacing variance_type stochastic_sampling scale_factors
    upscale_mode
"""
READ = """
    num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr prediction_type
    timestep_type use_flow_sigmas flow_shift shift use_dynamic_shifting base_shift max_shift base_image_seq_len
    max_image_seq_len time_shift_type sigma_min sigma_max use_lu_lambdas
"""
FED = """
    sample hidden_states timestep encoder_hidden_states encoder_attention_mask attention_mask added_cond_kwargs
    pooled_projections guidance txt_ids img_ids x t cap_feats
"""
# what a key that is refused would have wanted, and what only adapters, ControlNets and callers of other pipelines give
NOT_FED = """
    class_labels timestep_cond cross_attention_kwargs joint_attention_kwargs attention_kwargs
    down_block_additional_residuals mid_block_additional_residual down_intrablock_additional_residuals
    block_controlnet_hidden_states controlnet_block_samples controlnet_single_block_samples controlnet_blocks_repeat
    skip_layers return_dict siglip_feats image_noise_mask patch_size f_patch_size
"""
NETWORKS = [
    *(
        getattr(diffusers, f"{name}2DModel")
        for name in (
            "SD3Transformer",
            "FluxTransformer",
            "PixArtTransformer",
            "SanaTransformer",
            "Lumina2Transformer",
            "ZImageTransformer",
        )
    ),
    diffusers.UNet2DConditionModel,
    PRXTransformer2DModel,
]


def names_of(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind not in kinds} - {"self"}


@pytest.mark.parametrize("name", [*DDPM_SCHEDULERS, *FLOW_SCHEDULERS])
def test_every_key_of_a_schedulers_config_is_read_or_of_sampling(name):
    cls = getattr(diffusers.schedulers, name)
    if cls.__module__.startswith("diffusers.utils.dummy"):
        pytest.skip("needs a library that is not here")
    assert names_of(cls.__init__) <= {*READ.split(), *SAMPLING.split(), *SPREADS}


@pytest.mark.parametrize("cls", NETWORKS, ids=lambda cls: cls.__name__)
def test_every_input_of_a_network_is_fed_or_refused(cls):
    assert names_of(cls.forward) <= {*FED.split(), *NOT_FED.split(), "network"}


# ---------------------------------------------------------------- what a single file says

MARKED = [
    ({"v_pred": torch.tensor([])}, {}, {}, "has v_pred, which wants 'prediction_type' to be 'v_prediction'"),
    ({"v_pred": torch.tensor([])}, {}, {"prediction_type": "v_prediction"}, None),
    ({"ztsnr": torch.tensor([])}, {}, {}, "has ztsnr, which wants 'rescale_betas_zero_snr' to be True"),
    ({"ztsnr": torch.tensor([])}, {}, {"rescale_betas_zero_snr": True}, None),
    ({"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, {}, {}, "has edm_mean, which wants 'sigma_data'"),
    ({}, {"modelspec.prediction_type": "v"}, {}, "has modelspec.prediction_type, which wants 'prediction_type'"),
    ({}, {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "v_prediction"}, "has modelspec.prediction_type"),
    ({}, {"modelspec.prediction_type": "epsilon", "modelspec.encoder_layer": "1"}, {}, None),
    ({}, {"modelspec.encoder_layer": "2"}, {}, "modelspec.encoder_layer is 2"),
]


@pytest.mark.parametrize(("beside", "metadata", "scheduler", "expected"), MARKED)
def test_what_a_single_file_says_of_itself(beside, metadata, scheduler, expected, tmp_path):
    config = tmp_path / "config"
    for path in [path for path in TINY_SD.rglob("*") if path.suffix in (".json", ".txt")]:
        (config / path.relative_to(TINY_SD)).parent.mkdir(parents=True, exist_ok=True)
        (config / path.relative_to(TINY_SD)).write_bytes(path.read_bytes())
    law = config / SCHEDULER
    law.write_text(json.dumps(json.loads(law.read_text()) | scheduler))
    state = {name: value.contiguous() for name, value in original_layouts.tiny_sd(TINY_SD).items()} | beside
    save_file(state, tmp_path / "x.safetensors", metadata=metadata)
    if expected is None:
        assert models.text_to_image("none", str(tmp_path / "x.safetensors"), ModelOptions(config=str(config)))
        return
    with pytest.raises(ValueError, match=expected):
        models.text_to_image("none", str(Path(tmp_path, "x.safetensors")), ModelOptions(config=str(config)))
