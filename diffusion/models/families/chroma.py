"""Chroma: FLUX.1 schnell without CLIP, guidance and most of its modulation, with T5's padding masked (Lodestone Rock 2025)."""

from typing import ClassVar

from diffusion.models.families.base import without_padding
from diffusion.models.families.flux import TOKENS, Flux
from diffusion.models.loading.text_encoders import Encoder


class Chroma(Flux):
    """Velocity, noise - x0, at s; level t is s = shifted((t + 1) / T).

    Conditions: T5's tokens up to the first one of padding, with their mask, as it was trained. diffusers' pipeline gives its
    network that mask as numbers, which are then added to the logits, so that all padding is attended to (issue 13619 of
    diffusers). In its joint attention nothing past the embedding of patches is the same for two prompts.
    """

    TITLE: ClassVar[str] = "Chroma"
    VERSIONS: ClassVar[dict[str, str]] = {
        "chroma1-hd": "lodestones/Chroma1-HD",
        "chroma1-base": "lodestones/Chroma1-Base",
        "chroma1-flash": "lodestones/Chroma1-Flash",
    }
    PIPELINES: ClassVar[tuple[str, ...]] = ("ChromaPipeline",)
    NETWORK_CLASS: ClassVar[str] = "ChromaTransformer2DModel"
    SINGLE_FILE: ClassVar[bool] = False
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder("text_encoder", "tokenizer", TOKENS, masked=True, large=True),)

    @classmethod
    def encoders_of(cls, pipeline, network):
        return cls.ENCODERS

    def conditions(self, prompts, read, plain):
        """sequence [K,L,4096], mask int64 [K,L]; L as far as the longest prompt goes, unless plain."""
        import torch

        from diffusion.models.denoiser import Conditions

        (sequence, mask) = read("text_encoder", lambda output, mask: (output.last_hidden_state, mask))
        mask = (torch.arange(mask.shape[1], device=mask.device) <= mask.sum(1, keepdim=True)).long()
        return Conditions(sequence=sequence, mask=mask) if plain else without_padding(sequence, mask)

    def besides(self, network, times, conditions, n_patches):
        import torch

        mask = conditions.mask.bool()
        return {"attention_mask": torch.cat([mask, mask.new_ones(len(mask), n_patches)], 1)}

    def adapted(self, network, plain):
        """A network that masks keys alone: without any key, as its blocks have it for padding's queries, attention is nothing."""
        from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

        class KeysMasked(FluxAttnProcessor):
            def __call__(self, attn, image, text=None, attention_mask=None, image_rotary_emb=None):
                last = attention_mask[:, :, -1:]  # [B,1,1,S] of [B,1,S,S]: a query of the image
                return super().__call__(attn, image, text, last, image_rotary_emb)

        network.set_attn_processor(KeysMasked())
        return network
