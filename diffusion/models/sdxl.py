"""Stable Diffusion XL and its turbo version: a U-Net told of two text encoders, pooled text and sizes (Podell et al. 2023)."""

from typing import ClassVar

from diffusion.models import hub
from diffusion.models.pipelines import SCHEDULER, Pipeline, ddpm_levels
from diffusion.models.stable_diffusion import check_scheduler, prediction_of
from diffusion.models.texts import Encoder, NoPrompt

CLIP = ("text_encoder", "text_encoder_2")


class StableDiffusionXL(Pipeline):
    """Epsilon on a DDPM's 1000 levels.

    Conditions: both CLIPs' last states but one side by side, the pooled output of the second, and the sizes of an image that was
    neither resized nor cropped. The pooled text is part of the time embedding, so that no block is the same for two prompts.
    No prompt (of guidance) is told by zeros, where the pipeline's config says so.
    """

    VERSIONS: ClassVar[dict[str, str]] = {
        "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
        "sdxl-turbo": "stabilityai/sdxl-turbo",
    }
    PIPELINES: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    NETWORK_CLASS: ClassVar[str] = "UNet2DConditionModel"
    NETWORK: ClassVar[str] = "unet"
    SPACE: ClassVar[str] = "epsilon"
    SINGLE_FILE: ClassVar[bool] = True
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (
        Encoder("text_encoder", "tokenizer"),
        Encoder("text_encoder_2", "tokenizer_2"),
    )

    def check(self) -> None:
        super().check()
        check_scheduler(f"{self.where}: {SCHEDULER}", {"num_train_timesteps": 1000} | dict(self.scheduler))
        self.prediction  # noqa: B018 - raises
        if self.network.get("addition_embed_type") != "text_time":
            raise ValueError(f"{self.where}: unet/config.json is of no SDXL: 'addition_embed_type' is not 'text_time'")

    @property
    def patch(self) -> int:
        return 2 ** (len(self.network["block_out_channels"]) - 1)

    @property
    def prediction(self) -> str:
        return prediction_of(self.scheduler.get("prediction_type", "epsilon"), f"{self.where}: {SCHEDULER}")

    def levels(self):
        return ddpm_levels(self.scheduler)

    def conditions(self, prompts, read, plain):
        """sequence [K,77,2048], pooled [K,1280]."""
        import torch

        from diffusion.models.denoiser import Conditions

        (first,) = read(CLIP[0], lambda output, mask: (output.hidden_states[-2],))
        second, pooled = read(CLIP[1], lambda output, mask: (output.hidden_states[-2], output.text_embeds))
        told = torch.tensor([not (isinstance(prompt, NoPrompt) and self._tells_zeros()) for prompt in prompts]).to(pooled)
        return Conditions(sequence=torch.cat([first, second], -1) * told[:, None, None], pooled=pooled * told[:, None])

    def _tells_zeros(self) -> bool:
        return hub.read_config(self.source, "model_index.json").get("force_zeros_for_empty_prompt", True)

    def adapted(self, network, plain):
        from diffusion.models import hardware

        return network if plain else hardware.tune(network, str(network.device))

    def call(self, network, x_t, times, conditions):
        side = x_t.shape[-1] * self.vae["downscale"]
        sizes = x_t.new_tensor([side, side, 0, 0, side, side]).expand(len(x_t), -1)
        added = {"text_embeds": conditions.pooled, "time_ids": sizes}
        return network(x_t, times, conditions.sequence, added_cond_kwargs=added, return_dict=False)[0]
