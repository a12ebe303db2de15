"""Stable Diffusion 3 and 3.5: a rectified flow in 16 latent channels, two CLIP encoders and T5 (Esser et al. 2024)."""

from typing import ClassVar

from diffusion.models.families.base import Pipeline
from diffusion.models.loading.text_encoders import Encoder
from diffusion.utils.paths import TINY_SD3

T5_TOKENS = 256
CLIP = ("text_encoder", "text_encoder_2")


class StableDiffusion3(Pipeline):
    """Velocity, noise - x0, at 1000 s; level t is s = shifted((t + 1) / T), the schedule of the pipeline's own scheduler.

    Conditions: both CLIPs' last states but one side by side, padded to T5's width, then T5's 256 tokens; their pooled outputs.
    In its joint attention nothing past the embedding of patches is the same for two prompts.
    """

    TITLE: ClassVar[str] = "SD 3 and 3.5"
    VERSIONS: ClassVar[dict[str, str]] = {
        "sd3-medium": "stabilityai/stable-diffusion-3-medium-diffusers",
        "sd3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
        "sd3.5-large": "stabilityai/stable-diffusion-3.5-large",
        "tiny-sd3": str(TINY_SD3),
    }
    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    FLOW: ClassVar[bool] = True
    NETWORK_CLASS: ClassVar[str] = "SD3Transformer2DModel"
    SINGLE_FILE: ClassVar[bool] = True
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (
        Encoder("text_encoder", "tokenizer"),
        Encoder("text_encoder_2", "tokenizer_2"),
        Encoder("text_encoder_3", "tokenizer_3", T5_TOKENS, large=True),
    )
    OPTIONAL: ClassVar[tuple[str, ...]] = ("text_encoder_3",)

    @property
    def has_t5(self) -> bool:
        return len(self.encoders) == len(self.ENCODERS)

    def levels(self):
        return self.static_levels(self.n_levels)

    def conditions(self, prompts, read, plain):
        """sequence [K,77+256,4096] and pooled [K,2048] of the published models. Without T5 its tokens are zeros, of which one
        stands for all."""
        import torch
        from torch.nn.functional import pad

        from diffusion.models.denoiser import Conditions

        clips = [read(part, lambda output, mask: (output.hidden_states[-2], output.text_embeds)) for part in CLIP]
        sequence, pooled = (torch.cat(parts, -1) for parts in zip(*clips, strict=True))
        sequence = pad(sequence, (0, self.network["joint_attention_dim"] - sequence.shape[-1]))
        if self.has_t5:
            (t5,) = read("text_encoder_3", lambda output, mask: (output.last_hidden_state,))
        else:
            t5 = sequence.new_zeros(len(prompts), T5_TOKENS if plain else 1, sequence.shape[-1])
        return Conditions(sequence=torch.cat([sequence, t5.to(sequence.dtype)], 1), pooled=pooled)

    def adapted(self, network, plain):
        from diffusion.models.speed.joint_attention import CountedJointAttention

        if not self.has_t5 and not plain:
            network.set_attn_processor(CountedJointAttention(T5_TOKENS))
        return network

    def call(self, network, x_t, times, conditions):
        return network(x_t, conditions.sequence, conditions.pooled, times, return_dict=False)[0]
