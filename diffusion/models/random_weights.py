"""Published networks by their shapes: config files without weights, filled with random numbers or empty on the meta device.

Parameters, memory, arithmetic and speed of a network follow from its shape. Nothing is downloaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from diffusion.models.families.auraflow import AuraFlow
from diffusion.models.families.base import Pipeline
from diffusion.models.families.chroma import Chroma
from diffusion.models.families.dit import DiTSource
from diffusion.models.families.flux import Flux
from diffusion.models.families.lumina2 import Lumina2
from diffusion.models.families.pixart import PixArt
from diffusion.models.families.prx import PRX
from diffusion.models.families.sana import Sana
from diffusion.models.families.sd import StableDiffusion
from diffusion.models.families.sd3 import StableDiffusion3
from diffusion.models.families.sdxl import StableDiffusionXL
from diffusion.models.families.z_image import ZImage
from diffusion.models.loading import hub, weights
from diffusion.models.speed import devices
from diffusion.settings import DEFAULT_OPTIONS, ModelOptions

# ---------------------------------------------------------------- config files, as published

SD_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD1_UNET = SD_UNET | {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2_UNET = SD_UNET | {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL_UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3_MMDIT = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM_MMDIT = SD3_MMDIT | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))}
SD35_LARGE_MMDIT = SD3_MMDIT | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
FLUX_TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": [16, 56, 56],
}
PIXART_TRANSFORMER = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "attention_bias": True,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "norm_type": "ada_norm_single",
    "num_embeds_ada_norm": 1000,
}
SANA_TRANSFORMER = {
    "sample_size": 32,
    "patch_size": 1,
    "in_channels": 32,
    "out_channels": 32,
    "num_layers": 20,
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
}
PRX_TRANSFORMER = {
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": 16,
    "context_in_dim": 2304,
    "hidden_size": 1792,
    "mlp_ratio": 3.5,
    "num_heads": 28,
    "depth": 16,
    "axes_dim": [32, 32],
}
LUMINA2_TRANSFORMER = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "hidden_size": 2304,
    "num_layers": 26,
    "num_refiner_layers": 2,
    "num_attention_heads": 24,
    "num_kv_heads": 8,
    "axes_dim_rope": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "cap_feat_dim": 2304,
}
Z_IMAGE_TRANSFORMER = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1024, 512, 512],
}
CHROMA_TRANSFORMER = {key: value for key, value in FLUX_TRANSFORMER.items() if key != "pooled_projection_dim"} | {
    "approximator_num_channels": 64,
    "approximator_hidden_dim": 5120,
    "approximator_layers": 5,
}
AURAFLOW_TRANSFORMER = {
    "sample_size": 64,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_mmdit_layers": 4,
    "num_single_dit_layers": 32,
    "attention_head_dim": 256,
    "num_attention_heads": 12,
    "joint_attention_dim": 2048,
    "caption_projection_dim": 3072,
}
KL_VAE = [128, 256, 512, 512]  # widths of every VAE of these but Sana's, of which nobody asks them
DDPM = {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
SCALED_DDPM = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
SHIFTED_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
CLIP_PLACES: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77}
CLIP_L = CLIP_PLACES | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_H = CLIP_PLACES | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
}
CLIP_G = CLIP_PLACES | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
PILE_T5_XL = T5_XXL | {"d_model": 2048, "d_ff": 5120, "num_heads": 32}
GEMMA_2B = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


@dataclass(frozen=True)
class Published:
    """A published pipeline by what its config files say.

    Attributes:
        family: its class of sources.
        pipeline: its class in diffusers.
        network, scheduler: the JSON of their configs.
        latent_channels, downscale: of the VAE.
        texts: folder of a text encoder -> its class in transformers, its config.
    """

    family: type[Pipeline]
    pipeline: str
    network: Mapping[str, Any]
    latent_channels: int
    downscale: int
    scheduler: Mapping[str, Any]
    texts: Mapping[str, tuple[str, Mapping[str, Any]]]

    def source(self, img_size: int | None = None) -> Pipeline:
        """The source that reading its config files would give. img_size: pixels a side; None: the model's own."""
        return self.family(
            source="random weights",
            revision=None,
            pipeline=self.pipeline,
            network={"_class_name": self.family.NETWORK_CLASS, **self.network},
            vae={"latent_channels": self.latent_channels, "downscale": self.downscale, "block_out_channels": KL_VAE},
            scheduler=self.scheduler,
            encoders=self.family.encoders_of(self.pipeline, self.network),
            options=ModelOptions(img_size),
        )

    @property
    def text_configs(self) -> dict[str, Mapping[str, Any]]:
        """Folder of a text encoder -> its config."""
        return {part: config for part, (_, config) in self.texts.items()}

    def text_memory(self, dtype: str) -> dict[str, int]:
        """Text encoder -> bytes of its weights, as they are loaded beside a network of this dtype."""
        import torch

        sizes = {}
        for encoder in self.source().encoders:
            name, config = self.texts[encoder.part]
            cls: Any = weights.class_named(name)
            with torch.device("meta"):
                made = cls.config_class(**config)
                n = sum(p.numel() for p in cls(getattr(made, "encoder", made)).parameters())
            sizes[encoder.part] = n * devices.torch_dtype(encoder.dtype(dtype)).itemsize
        return sizes


def _sd(network: Mapping[str, Any], text: Mapping[str, Any]) -> Published:
    texts = {"text_encoder": ("CLIPTextModel", text)}
    return Published(StableDiffusion, "StableDiffusionPipeline", network, 4, 8, SCALED_DDPM, texts)


def _sd3(network: Mapping[str, Any]) -> Published:
    clip = "CLIPTextModelWithProjection"
    texts = {"text_encoder": (clip, CLIP_L), "text_encoder_2": (clip, CLIP_G), "text_encoder_3": ("T5EncoderModel", T5_XXL)}
    return Published(StableDiffusion3, "StableDiffusion3Pipeline", network, 16, 8, SHIFTED_FLOW, texts)


def _flux(guidance: bool, scheduler: dict[str, Any]) -> Published:
    network = FLUX_TRANSFORMER | {"guidance_embeds": guidance}
    texts = {"text_encoder": ("CLIPTextModel", CLIP_L), "text_encoder_2": ("T5EncoderModel", T5_XXL)}
    return Published(Flux, "FluxPipeline", network, 16, 8, {"_class_name": SHIFTED_FLOW["_class_name"]} | scheduler, texts)


def _pixart(pipeline: str, with_sizes: bool) -> Published:
    network = PIXART_TRANSFORMER | {"use_additional_conditions": with_sizes}
    return Published(PixArt, pipeline, network, 4, 8, DDPM, {"text_encoder": ("T5EncoderModel", T5_XXL)})


def _auraflow(places: int) -> Published:
    network = AURAFLOW_TRANSFORMER | {"pos_embed_max_size": places}
    texts = {"text_encoder": ("UMT5EncoderModel", PILE_T5_XL)}
    return Published(AuraFlow, "AuraFlowPipeline", network, 4, 8, SHIFTED_FLOW | {"shift": 1.73}, texts)


def _prx(network: Mapping[str, Any], latent_channels: int, downscale: int) -> Published:
    texts = {"text_encoder": ("T5GemmaEncoder", {"encoder": GEMMA_2B})}
    return Published(PRX, "PRXPipeline", {**PRX_TRANSFORMER, **network}, latent_channels, downscale, SHIFTED_FLOW, texts)


PIPELINES = {  # by the families' VERSIONS
    "1-5": _sd(SD1_UNET, CLIP_L),
    "2-0": _sd(SD2_UNET, CLIP_H),
    "sdxl": Published(
        StableDiffusionXL,
        "StableDiffusionXLPipeline",
        SDXL_UNET,
        4,
        8,
        SCALED_DDPM,
        {"text_encoder": ("CLIPTextModel", CLIP_L), "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G)},
    ),
    "sd3-medium": _sd3(SD3_MMDIT),
    "sd3.5-medium": _sd3(SD35_MEDIUM_MMDIT),
    "sd3.5-large": _sd3(SD35_LARGE_MMDIT),
    "flux-dev": _flux(True, {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}),
    "flux-schnell": _flux(False, {"shift": 1.0}),
    "pixart-alpha": _pixart("PixArtAlphaPipeline", True),
    "pixart-sigma": _pixart("PixArtSigmaPipeline", False),
    "sana": Published(
        Sana,
        "SanaPipeline",
        SANA_TRANSFORMER,
        32,
        32,
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0},
        {"text_encoder": ("Gemma2Model", GEMMA_2B)},
    ),
    "prx-512": _prx({}, 16, 8),
    "prx-512-dc-ae": _prx({"sample_size": 16, "patch_size": 1, "in_channels": 32}, 32, 32),
    "lumina2": Published(
        Lumina2,
        "Lumina2Pipeline",
        LUMINA2_TRANSFORMER,
        16,
        8,
        SHIFTED_FLOW | {"shift": 6.0},
        {"text_encoder": ("Gemma2Model", GEMMA_2B)},
    ),
    "z-image": Published(
        ZImage,
        "ZImagePipeline",
        Z_IMAGE_TRANSFORMER,
        16,
        8,
        SHIFTED_FLOW,
        {"text_encoder": ("Qwen3Model", QWEN3_4B)},
    ),
    "chroma1-hd": Published(
        Chroma,
        "ChromaPipeline",
        CHROMA_TRANSFORMER,
        16,
        8,
        SHIFTED_FLOW,
        {"text_encoder": ("T5EncoderModel", T5_XXL)},
    ),
    "auraflow": _auraflow(4096),
    "auraflow-0.3": _auraflow(9216),
}


SAME_SHAPE = {"1-1": "1-5", "1-2": "1-5", "1-3": "1-5", "1-4": "1-5", "2-1": "2-0", "sd-turbo": "2-0", "sdxl-turbo": "sdxl"}
SAME_SHAPE |= {name: "prx-512-dc-ae" if "dc-ae" in name else "prx-512" for name in PRX.VERSIONS}
SAME_SHAPE |= {"z-image-turbo": "z-image", "chroma1-base": "chroma1-hd", "chroma1-flash": "chroma1-hd"}
SAME_SHAPE |= {"auraflow-0.2": "auraflow"}
HALF_SIZE = ("sdxl-turbo", "prx-256", "prx-256-sft")  # of the side of that shape's images


def expected(version: str, options: ModelOptions = DEFAULT_OPTIONS) -> Pipeline | None:
    """The source of a published version whose config files are not in the hub's cache, as if they had been read, but without a
    revision; None for all others. It knows what a price depends on, and has no identity."""
    published = PIPELINES.get(SAME_SHAPE.get(version, version))
    place = published.family.VERSIONS.get(version) if published else None
    if published is None or place is None or not hub.is_absent(place, f"{published.family.NETWORK}/config.json"):
        return None
    if version in HALF_SIZE:
        published = replace(published, network={**published.network, "sample_size": published.network["sample_size"] // 2})
    return replace(published.source(), source=place, options=options)


# ---------------------------------------------------------------- arithmetic of these networks

GFLOP = {  # of one evaluation at the default size, as `Bare.count` counts it
    "1-5": 803,
    "2-0": 804,
    "sdxl": 6_761,
    "sd3-medium": 8_904,
    "sd3.5-medium": 11_250,
    "sd3.5-large": 31_121,
    "flux-dev": 74_385,
    "flux-schnell": 69_467,
    "pixart-alpha": 6_510,
    "pixart-sigma": 6_634,
    "sana": 2_967,
    "prx-512": 1_732,
    "prx-512-dc-ae": 452,
    "lumina2": 23_829,
    "z-image": 62_506,
    "chroma1-hd": 74_569,
    "auraflow": 43_968,
    "auraflow-0.3": 43_968,
    "dit-xl": 237,  # DiT-XL/2 at 256 pixels
}


def gflop(source, img_size: int) -> float | None:
    """GFLOP of an evaluation at this size, roughly, as if they grew with the image's area; None for a network of no published
    shape.

    torch is not needed, so that it can be told at once.
    """
    if isinstance(source, DiTSource):
        return GFLOP["dit-xl"] * (img_size / 256) ** 2 if source.token_elements == 1152 // 2**2 else None  # width, patch
    name = next((name for name, one in PIPELINES.items() if _is_of_shape(source, one)), None)
    return GFLOP[name] * (img_size / PIPELINES[name].source().default_size) ** 2 if name else None


def _is_of_shape(source, published: Published) -> bool:
    """But for the size that it was trained at."""
    if type(source) is not published.family:
        return False
    return all(source.network.get(key) == value for key, value in published.network.items() if key != "sample_size")


# ---------------------------------------------------------------- networks of these shapes


@dataclass(frozen=True)
class Bare:
    """A network without weights.

    Attributes:
        build: () -> the module.
        latent_shape: (C, h, w) of what it is fed.
        call: (module, x_t [B,C,h,w], times [B], Conditions of B) -> its output.
        conditions: (K, device) -> random Conditions of K candidates.
    """

    build: Callable
    latent_shape: tuple[int, int, int]
    call: Callable
    conditions: Callable

    def filled(self, device: str, dtype: str):
        """The module with random numbers, which every dtype rounds from the same float32; on the meta device it has none.

        It never takes more memory than its weights in this dtype and one of them in float32.
        """
        import torch

        with torch.device("meta"):
            module = self.build().eval().requires_grad_(False)
        torch.nn.Module.to(module, devices.torch_dtype(dtype))  # diffusers' own `to` warns of modules that it does not name
        module.to_empty(device=device)
        for tensor in (*module.parameters(), *module.buffers()):
            std = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.5  # outputs are about as large as inputs
            tensor.copy_(std * torch.randn(tensor.shape, device=device))
        return module

    def encoder(self, device: str) -> Callable:
        """A function of an image that gives a random latent [C,h,w]."""
        import torch

        return lambda image: torch.randn(self.latent_shape, device=device)

    def count(self) -> dict[str, int]:
        """Its size: parameters; numbers in memory, which are these and buffers; flops_per_evaluation."""
        import torch

        module = self.filled("meta", "float32")
        x_t, times = torch.zeros(1, *self.latent_shape, device="meta"), torch.zeros(1, device="meta")
        conditions = self.conditions(1, "meta")
        n_parameters, n_buffers = (sum(t.numel() for t in part()) for part in (module.parameters, module.buffers))
        return {
            "parameters": n_parameters,
            "numbers": n_parameters + n_buffers,
            "flops_per_evaluation": flops(lambda: self.call(module, x_t, times, conditions)),
        }


def flops(work: Callable[[], object]) -> int:
    """The arithmetic of work(): two operations per multiply-add of matrix products and convolutions. Attention counts as two
    matrix products, however it is fused; everything else as nothing."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def network_of(source: Pipeline, text_configs: Mapping[str, Mapping[str, Any]]) -> Bare:
    """A pipeline's network, to be called with random conditions.

    Args:
        source: of the pipeline's configs.
        text_configs: folder of a text encoder -> its config.
    """
    import diffusers

    cls = getattr(diffusers, source.NETWORK_CLASS)

    def build():
        with hub.quiet():  # of PRX's size, which is not in its network's config
            return cls.from_config(dict(source.network))

    return Bare(
        build=build,
        latent_shape=source.latent_shape(source.default_size),
        call=source.call,
        conditions=lambda n, device: source.conditions([""] * n, _reader(source, text_configs, n, device), plain=True),
    )


def text_configs(source: Pipeline) -> dict[str, Mapping[str, Any]]:
    """Folder of each text encoder -> its config, of a pipeline that has files. Raises ValueError for a missing or damaged one."""
    return {encoder.part: hub.read_config(source.source, f"{encoder.part}/config.json") for encoder in source.encoders}


def _reader(source: Pipeline, text_configs: Mapping[str, Mapping[str, Any]], n: int, device: str) -> Callable:
    """`read` as in Pipeline.conditions, in which every text encoder gives random states of all its tokens."""
    import torch

    def random(*shape):
        return torch.randn(n, *shape, device=device)

    def read(part, take):
        config = text_configs[part]
        config = config.get("encoder", config)  # T5Gemma's is the whole model's
        width = config.get("d_model") or config["hidden_size"]
        length = {e.part: e.length for e in source.encoders}[part] or config["max_position_embeddings"]
        states = random(length, width)
        pooled = {"pooler_output": random(width), "text_embeds": random(config.get("projection_dim", width))}
        output = SimpleNamespace(last_hidden_state=states, hidden_states=(states, states), **pooled)
        return take(output, torch.ones(n, length, dtype=torch.int64, device=device))

    return read


def load(source: Pipeline, text_configs: Mapping[str, Mapping[str, Any]], device: str, dtype: str, compile: bool = False,
         plain: bool = False):  # fmt: skip
    """The Denoiser of a pipeline whose weights, texts and latents are random.

    Args:
        source, text_configs: as in `network_of`.
        device, dtype, compile, plain: as in Pipeline.load.
    """
    network = network_of(source, text_configs)
    module = source.adapted(network.filled(device, dtype), plain)

    def reader(prompts):
        return _reader(source, text_configs, len(prompts), "cpu")  # where texts are kept

    return source.denoiser(lambda: module, network.encoder(device), reader, device, dtype, compile, plain)
