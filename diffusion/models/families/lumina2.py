"""Lumina Image 2.0: a rectified flow in FLUX.1's latents, with Gemma 2 for text (Qin et al. 2025)."""

from typing import ClassVar

from diffusion.models.families.refined import RefinedPipeline, Text
from diffusion.models.loading.text_encoders import Encoder, NoPrompt

TOKENS = 256  # with those of the instruction


class Lumina2(RefinedPipeline):
    """Minus velocity, x0 - noise, at 1 - s; level t is s = shifted((t + 1) / T).

    Conditions: Gemma's last states but one, with their mask, after the instruction that the pipeline puts before every prompt but
    that of guidance. The first blocks of the image do not see the text, and are computed once a latent.
    """

    TITLE: ClassVar[str] = "Lumina 2"
    VERSIONS: ClassVar[dict[str, str]] = {"lumina2": "Alpha-VLLM/Lumina-Image-2.0"}
    PIPELINES: ClassVar[tuple[str, ...]] = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")  # the latter as first published
    NETWORK_CLASS: ClassVar[str] = "Lumina2Transformer2DModel"
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder("text_encoder", "tokenizer", TOKENS, masked=True, large=True),)

    @property
    def patch(self) -> int:
        return self.network.get("patch_size", 2)

    def levels(self):
        return self.static_levels(1.0)

    def written(self, prompts):
        return ["" if isinstance(prompt, NoPrompt) else f"{_instruction()} <Prompt Start> {prompt}" for prompt in prompts]

    def axes(self):
        return 10_000, self.network.get("axes_dim_rope", [32, 32, 32])

    def time(self, network, times, dtype):
        embed = network.time_caption_embed
        return embed.timestep_embedder(embed.time_proj(times).to(dtype))

    def text(self, network, conditions):
        tokens = network.time_caption_embed.caption_embedder(conditions.sequence)
        return Text(tokens, conditions.mask.bool(), conditions.mask.sum(1))

    def image(self, network, patches):
        return network.x_embedder(patches)

    def last(self, network, tokens, time):
        return network.norm_out(tokens, time)


def _instruction() -> str:
    """What Lumina2Pipeline puts before prompts by default, which an object of it alone knows."""
    from diffusers import Lumina2Pipeline

    return Lumina2Pipeline(*[None] * 5).system_prompt
