"""PixArt-alpha and PixArt-Sigma: a transformer on a DDPM's levels that attends to T5's tokens (Chen et al. 2023, 2024)."""

from dataclasses import replace
from typing import ClassVar

from diffusion.models.families.base import Pipeline
from diffusion.models.loading import schedulers
from diffusion.models.loading.text_encoders import Encoder

TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


class PixArt(Pipeline):
    """Epsilon on a DDPM's 1000 levels, in the first half of the output; the second half is a variance that is not used.

    Conditions: T5's tokens with their mask. alpha's 1024 px version is conditioned on the image's size and shape, too.
    """

    TITLE: ClassVar[str] = "PixArt"
    VERSIONS: ClassVar[dict[str, str]] = {
        "pixart-alpha": "PixArt-alpha/PixArt-XL-2-1024-MS",
        "pixart-sigma": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    }
    PIPELINES: ClassVar[tuple[str, ...]] = tuple(TOKENS)
    NETWORK_CLASS: ClassVar[str] = "PixArtTransformer2DModel"
    OLDER_CLASS: ClassVar[str | None] = "Transformer2DModel"  # diffusers before 0.29, with which PixArt was published
    SPACE: ClassVar[str] = "epsilon"
    OUTPUTS: ClassVar[tuple[int, ...]] = (1, 2)
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder("text_encoder", "tokenizer", masked=True, large=True),)

    @classmethod
    def encoders_of(cls, pipeline, network):
        return tuple(replace(encoder, length=TOKENS[pipeline]) for encoder in cls.ENCODERS)

    def written(self, prompts):
        return [prompt.lower().strip() for prompt in prompts]

    def levels(self):
        return schedulers.ddpm_levels(self.scheduler)

    def conditions(self, prompts, read, plain):
        """sequence [K,120 or 300,4096], mask [K,120 or 300]."""
        from diffusion.models.denoiser import Conditions

        sequence, mask = read("text_encoder", lambda output, mask: (output.last_hidden_state, mask))
        return Conditions(sequence=sequence, mask=mask)

    def call(self, network, x_t, times, conditions):
        added = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:
            side, ones = x_t.shape[-1] * self.vae["downscale"], x_t.new_ones(len(x_t), 1)
            added = {"resolution": side * ones.expand(-1, 2), "aspect_ratio": ones}
        text = {"encoder_hidden_states": conditions.sequence, "encoder_attention_mask": conditions.mask}
        output = network(x_t, timestep=times, added_cond_kwargs=added, return_dict=False, **text)[0]
        return output[:, : x_t.shape[1]]
