"""AuraFlow: a rectified flow in the latents of SDXL's kind of VAE, with the encoder of Pile-T5 for text (fal 2024)."""

import math
from typing import ClassVar

from diffusion.models.families.base import Pipeline
from diffusion.models.loading.text_encoders import Encoder

TOKENS = 256
SAMPLE_SIZE = 128  # latent elements a side of the pipeline's own default; its network's config says 64


class AuraFlow(Pipeline):
    """Velocity, noise - x0, at s; level t is s = shifted((t + 1) / T).

    Conditions: T5's 256 tokens, zeros where they are padding, which the network attends to. Nothing past the embedding of patches
    is the same for two prompts.
    """

    TITLE: ClassVar[str] = "AuraFlow"
    VERSIONS: ClassVar[dict[str, str]] = {
        "auraflow": "fal/AuraFlow",
        "auraflow-0.2": "fal/AuraFlow-v0.2",
        "auraflow-0.3": "fal/AuraFlow-v0.3",
    }
    PIPELINES: ClassVar[tuple[str, ...]] = ("AuraFlowPipeline",)
    FLOW: ClassVar[bool] = True
    NETWORK_CLASS: ClassVar[str] = "AuraFlowTransformer2DModel"
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder("text_encoder", "tokenizer", TOKENS, masked=True, large=True),)

    @property
    def patch(self) -> int:
        return self.network.get("patch_size", 2)

    @property
    def places(self) -> int:
        """Patches along one side that it has places for: its config counts those of the whole square."""
        return math.isqrt(self.network.get("pos_embed_max_size", 1024))

    @property
    def sample_size(self) -> int:
        return min(SAMPLE_SIZE, self.places * self.patch)

    def levels(self):
        return self.static_levels(1.0)

    def conditions(self, prompts, read, plain):
        """sequence [K,256,2048]."""
        from diffusion.models.denoiser import Conditions

        def take(output, mask):
            states = output.last_hidden_state
            return (states * mask[..., None].to(states),)

        (sequence,) = read("text_encoder", take)
        return Conditions(sequence=sequence)

    def call(self, network, x_t, times, conditions):
        return network(x_t, encoder_hidden_states=conditions.sequence, timestep=times, return_dict=False)[0]
