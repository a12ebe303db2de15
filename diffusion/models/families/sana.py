"""Sana: a rectified flow in the latents of a deep compression autoencoder, a language model for text (Xie et al. 2024)."""

import inspect
from dataclasses import replace
from typing import ClassVar

from diffusion.models.families.base import Pipeline
from diffusion.models.loading.text_encoders import Encoder, NoPrompt

TOKENS = 300


class Sana(Pipeline):
    """Velocity, noise - x0, at 1000 s times the network's own scale; level t is s = shifted((t + 1) / T).

    Conditions: Gemma's tokens with their mask, after the instruction that the pipeline puts before every prompt: the first token,
    and the last 299.
    """

    TITLE: ClassVar[str] = "Sana"
    VERSIONS: ClassVar[dict[str, str]] = {"sana": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"}
    PIPELINES: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    FLOW: ClassVar[bool] = True
    NETWORK_CLASS: ClassVar[str] = "SanaTransformer2DModel"
    INPUTS: ClassVar[dict[str, tuple]] = {"guidance_embeds": (None,)}  # of Sana Sprint
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder("text_encoder", "tokenizer", TOKENS, masked=True, large=True),)

    def levels(self):
        return self.static_levels(self.n_levels * self.network.get("timestep_scale", 1.0))

    def written(self, prompts):
        return ["" if isinstance(prompt, NoPrompt) else _instruction() + prompt.lower().strip() for prompt in prompts]

    def encoder(self, part):
        """The text encoder with room for the instruction before the prompt's tokens, of which begin and end are counted once."""
        encoder = super().encoder(part)
        n_before = len(encoder.load_tokenizer(self.source, self.revision).encode(_instruction()))
        return replace(encoder, length=n_before + TOKENS - 2)

    def conditions(self, prompts, read, plain):
        """sequence [K,300,2304], mask [K,300]."""
        import torch

        from diffusion.models.denoiser import Conditions

        def take(output, mask):
            length = mask.shape[1]
            of_prompt, of_none = [0, *range(length + 1 - TOKENS, length)], [*range(TOKENS)]
            # fewer tokens than the instruction with begin and end: no prompt; of shapes without numbers nobody knows
            short = [False] * len(mask) if mask.is_meta else (mask.sum(1) < length + 2 - TOKENS).tolist()
            rows = [(row, of_none if none else of_prompt) for row, none in enumerate(short)]
            return tuple(torch.stack([part[row, places] for row, places in rows]) for part in (output.last_hidden_state, mask))

        sequence, mask = read("text_encoder", take)
        return Conditions(sequence=sequence, mask=mask)

    def call(self, network, x_t, times, conditions):
        text = {"encoder_hidden_states": conditions.sequence, "encoder_attention_mask": conditions.mask}
        return network(x_t, timestep=times, return_dict=False, **text)[0]


def _instruction() -> str:
    """What SanaPipeline puts before prompts by default."""
    from diffusers import SanaPipeline

    return "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
