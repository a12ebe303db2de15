"""PRX: a rectified flow in latents of FLUX.1's VAE or of a deep compression autoencoder, T5Gemma for text (Photoroom 2025)."""

from dataclasses import replace
from typing import ClassVar

from diffusion.models.families.base import Pipeline
from diffusion.models.loading import hub
from diffusion.models.loading.text_encoders import Encoder
from diffusion.settings import DEFAULT_OPTIONS, ModelOptions

TOKENS = 256
PIXELS = ("bottleneck_size", "resolution_embeds")  # what only networks on pixels have


class PRX(Pipeline):
    """Velocity, noise - x0, at s; level t is s = shifted((t + 1) / T).

    Conditions: T5Gemma's tokens with their mask, of prompts that the pipeline's cleaning has been through: it takes out model
    numbers, so that two classes can come out equal, which `models.check_prompts` refuses.
    """

    TITLE: ClassVar[str] = "PRX"
    VERSIONS: ClassVar[dict[str, str]] = {
        "prx-256": "Photoroom/prx-256-t2i",
        "prx-256-sft": "Photoroom/prx-256-t2i-sft",
        "prx-512": "Photoroom/prx-512-t2i",
        "prx-512-sft": "Photoroom/prx-512-t2i-sft",
        "prx-512-sft-distilled": "Photoroom/prx-512-t2i-sft-distilled",
        "prx-512-dc-ae": "Photoroom/prx-512-t2i-dc-ae",
        "prx-512-dc-ae-sft": "Photoroom/prx-512-t2i-dc-ae-sft",
        "prx-512-dc-ae-sft-distilled": "Photoroom/prx-512-t2i-dc-ae-sft-distilled",
    }
    PIPELINES: ClassVar[tuple[str, ...]] = ("PRXPipeline",)
    FLOW: ClassVar[bool] = True
    NETWORK_CLASS: ClassVar[str] = "PRXTransformer2DModel"
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder("text_encoder", "tokenizer", TOKENS, masked=True, large=True),)

    @classmethod
    def find(cls, source: str, options: ModelOptions = DEFAULT_OPTIONS) -> Pipeline:
        """Its size in pixels is the pipeline's, as its network's config has none."""
        pipeline = super().find(source, options)
        size = hub.read_config(source, "model_index.json").get("default_sample_size") or 512
        hub.check_sizes(f"{pipeline.where}: model_index.json", default_sample_size=size)
        return replace(pipeline, network={**pipeline.network, "sample_size": size // pipeline.vae["downscale"]})

    def check(self) -> None:
        super().check()
        odd = next((key for key in PIXELS if self.network.get(key)), None)
        if odd:
            raise ValueError(
                f"{self.where}: transformer/config.json: {odd!r} is set, as of PRXPixel, which predicts x0 of pixels"
            )

    def levels(self):
        return self.static_levels(1.0)

    def written(self, prompts):
        from diffusers.pipelines.prx.pipeline_prx import TextPreprocessor

        clean = TextPreprocessor().clean_text
        return [clean(prompt) for prompt in prompts]

    def conditions(self, prompts, read, plain):
        """sequence [K,256,2304], mask bool [K,256]."""
        from diffusion.models.denoiser import Conditions

        sequence, mask = read("text_encoder", lambda output, mask: (output.last_hidden_state, mask.bool()))
        return Conditions(sequence=sequence, mask=mask)

    def call(self, network, x_t, times, conditions):
        text = {"encoder_hidden_states": conditions.sequence, "attention_mask": conditions.mask}
        return network(x_t, timestep=times, return_dict=False, **text)[0]
