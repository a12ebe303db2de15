"""FLUX.1: a rectified flow in 16 latent channels, packed two by two; T5 for the sequence, CLIP for the pooled text."""

from dataclasses import replace
from typing import ClassVar

from diffusion.models.families.base import Pipeline
from diffusion.models.loading.text_encoders import Encoder

TOKENS, TOKENS_OF_SCHNELL = 512, 256  # of T5, as Black Forest Labs' own code has them
GUIDANCE = 1.0  # that a guidance-distilled network is fed: the distribution without guidance


class Flux(Pipeline):
    """Velocity, noise - x0, at s; level t is s = shifted((t + 1) / T), the shift of `dev` growing with the image.

    Conditions: T5's tokens, CLIP's pooled output. In its joint attention nothing past the embedding of patches is the same for
    two prompts.
    """

    TITLE: ClassVar[str] = "FLUX.1"
    VERSIONS: ClassVar[dict[str, str]] = {
        "flux-dev": "black-forest-labs/FLUX.1-dev",
        "flux-schnell": "black-forest-labs/FLUX.1-schnell",
    }
    PIPELINES: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    FLOW: ClassVar[bool] = True
    NETWORK_CLASS: ClassVar[str] = "FluxTransformer2DModel"
    DYNAMIC: ClassVar[bool] = True
    SINGLE_FILE: ClassVar[bool] = True
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (
        Encoder("text_encoder", "tokenizer"),
        Encoder("text_encoder_2", "tokenizer_2", TOKENS, large=True),
    )

    @classmethod
    def encoders_of(cls, pipeline, network):
        """T5 pads to what the network was trained with, as padding is attended to."""
        clip, t5 = cls.ENCODERS
        return clip, t5 if network.get("guidance_embeds") else replace(t5, length=TOKENS_OF_SCHNELL)

    def identity(self):
        length = self.encoders[-1].length
        return super().identity() + (f", {length} tokens" if length != TOKENS else "")  # runs of before had as many for schnell

    @property
    def network_channels(self) -> int:
        return 4 * self.vae["latent_channels"]

    @property
    def patch(self) -> int:
        return 2

    def levels(self):
        return self.own_levels(1.0)

    def conditions(self, prompts, read, plain):
        """sequence [K,512,4096], of schnell [K,256,4096], pooled [K,768]."""
        from diffusion.models.denoiser import Conditions

        (pooled,) = read("text_encoder", lambda output, mask: (output.pooler_output,))
        (sequence,) = read("text_encoder_2", lambda output, mask: (output.last_hidden_state,))
        return Conditions(sequence=sequence, pooled=pooled)

    def call(self, network, x_t, times, conditions):
        import torch

        h, w = x_t.shape[-2] // 2, x_t.shape[-1] // 2
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(x_t)
        packed = x_t.unflatten(-1, (w, 2)).unflatten(-3, (h, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        output = network(
            hidden_states=packed,
            timestep=times,
            encoder_hidden_states=conditions.sequence,
            txt_ids=places.new_zeros(conditions.sequence.shape[1], 3),
            img_ids=places,
            return_dict=False,
            **self.besides(network, times, conditions, h * w),
        )[0]
        return output.unflatten(1, (h, w)).unflatten(-1, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(-2).flatten(-3, -2)

    def besides(self, network, times, conditions, n_patches: int) -> dict:
        """What the network is fed besides latents, times and the sequence."""
        import torch

        guidance = {"guidance": torch.full_like(times, GUIDANCE)} if network.config.guidance_embeds else {}
        return {"pooled_projections": conditions.pooled, **guidance}
