"""Stable Diffusion XL and its turbo version: a U-Net conditioned on two text encoders and on sizes (Podell et al. 2023)."""

from typing import ClassVar

from diffusion.models.families.base import Pipeline, UNetPipeline
from diffusion.models.loading import hub
from diffusion.models.loading.text_encoders import Encoder, NoPrompt
from diffusion.settings import DEFAULT_OPTIONS, ModelOptions

CLIP = ("text_encoder", "text_encoder_2")


class StableDiffusionXL(UNetPipeline):
    """Epsilon on a DDPM's 1000 levels.

    Conditions: both CLIPs' last states but one side by side, the pooled output of the second, and the sizes of an image that was
    neither resized nor cropped. The pooled text is part of the time embedding, so that no block is the same for two prompts.
    The empty prompt of guidance is zeros where the pipeline's config says so.
    """

    TITLE: ClassVar[str] = "SDXL"
    VERSIONS: ClassVar[dict[str, str]] = {
        "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
        "sdxl-turbo": "stabilityai/sdxl-turbo",
    }
    PIPELINES: ClassVar[tuple[str, ...]] = tuple(f"StableDiffusionXL{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint"))
    INPUTS: ClassVar[dict[str, tuple]] = UNetPipeline.INPUTS | {"addition_embed_type": ("text_time",)}
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (
        Encoder("text_encoder", "tokenizer"),
        Encoder("text_encoder_2", "tokenizer_2"),
    )

    @classmethod
    def find(cls, source: str, options: ModelOptions = DEFAULT_OPTIONS) -> Pipeline:
        """A pipeline of any task that has these weights. Raises ValueError as that of the base class, and for the refiner."""
        if hub.read_config(source, "model_index.json", flag=options.flag).get("requires_aesthetics_score"):
            raise ValueError(f"{options.flag} {source} is SDXL's refiner, which needs an image too: give the base model")
        return super().find(source, options)

    def conditions(self, prompts, read, plain):
        """sequence [K,77,2048], pooled [K,1280]."""
        import torch

        from diffusion.models.denoiser import Conditions

        (first,) = read(CLIP[0], lambda output, mask: (output.hidden_states[-2],))
        second, pooled = read(CLIP[1], lambda output, mask: (output.hidden_states[-2], output.text_embeds))
        kept = torch.tensor([not (isinstance(prompt, NoPrompt) and self._zeros_for_empty()) for prompt in prompts]).to(pooled)
        return Conditions(sequence=torch.cat([first, second], -1) * kept[:, None, None], pooled=pooled * kept[:, None])

    def _zeros_for_empty(self) -> bool:
        """Whether the empty prompt is zeros in place of its embedding."""
        return hub.read_config(self.source, "model_index.json").get("force_zeros_for_empty_prompt", True)

    def call(self, network, x_t, times, conditions):
        side = x_t.shape[-1] * self.vae["downscale"]
        sizes = x_t.new_tensor([side, side, 0, 0, side, side]).expand(len(x_t), -1)
        added = {"text_embeds": conditions.pooled, "time_ids": sizes}
        return network(x_t, times, conditions.sequence, added_cond_kwargs=added, return_dict=False)[0]
