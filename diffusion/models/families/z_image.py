"""Z-Image and its distilled Turbo: a rectified flow in FLUX.1's latents, with Qwen 3 for text (Z-Image Team 2025)."""

from typing import ClassVar

from diffusion.models.families.refined import RefinedPipeline, Text
from diffusion.models.loading.text_encoders import Encoder

TOKENS = 512
UNIT = 32  # tokens of a text, or of an image, are filled up to a multiple of it by a learned one, which is attended to


class ZImage(RefinedPipeline):
    """Minus velocity, x0 - noise, at 1 - s; level t is s = shifted((t + 1) / T).

    Conditions: Qwen's last states but one of the prompt in the tokenizer's own chat template, with their mask. The first blocks
    of the image do not see the text, and are computed once a latent where its tokens need no filling, whose places are others.
    """

    TITLE: ClassVar[str] = "Z-Image"
    VERSIONS: ClassVar[dict[str, str]] = {"z-image": "Tongyi-MAI/Z-Image", "z-image-turbo": "Tongyi-MAI/Z-Image-Turbo"}
    PIPELINES: ClassVar[tuple[str, ...]] = ("ZImagePipeline",)
    NETWORK_CLASS: ClassVar[str] = "ZImageTransformer2DModel"
    DYNAMIC: ClassVar[bool] = True
    INPUTS: ClassVar[dict[str, tuple]] = {
        "siglip_feat_dim": (None,),  # of Z-Image Omni
        "all_patch_size": (None, [2]),
        "all_f_patch_size": (None, [1]),
    }
    ENCODERS: ClassVar[tuple[Encoder, ...]] = (Encoder("text_encoder", "tokenizer", TOKENS, masked=True, large=True),)
    FIRST: ClassVar[int] = 1

    @property
    def patch(self) -> int:
        return 2

    def levels(self):
        return self.own_levels(1.0)

    def written(self, prompts):
        tokenizer = self.load_tokenizer("text_encoder")
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return [tokenizer.apply_chat_template([{"role": "user", "content": str(prompt)}], **how) for prompt in prompts]

    def axes(self):
        return self.network.get("rope_theta", 256.0), self.network.get("axes_dims", [32, 48, 48])

    def time(self, network, times, dtype):
        return network.t_embedder(times * network.t_scale).to(dtype)

    def text(self, network, conditions):
        import torch
        from torch.nn.functional import pad

        fill = -conditions.mask.shape[1] % UNIT
        mask, end = pad(conditions.mask, (0, fill)), (conditions.mask.sum(1) + UNIT - 1) // UNIT * UNIT
        tokens = network.cap_embedder(pad(conditions.sequence, (0, 0, 0, fill)))
        counted = torch.arange(mask.shape[1], device=mask.device) < end[:, None]
        return Text(torch.where(mask.bool()[..., None], tokens, network.cap_pad_token), counted, end + 1)

    def image(self, network, patches):
        import torch

        tokens = network.all_x_embedder["2-1"](patches)
        fill = network.x_pad_token.expand(len(tokens), -tokens.shape[1] % UNIT, -1)
        return torch.cat([tokens, fill], 1)

    def last(self, network, tokens, time):
        return network.all_final_layer["2-1"](tokens, c=time)

    def share(self, network):
        _, h, w = self.latent_shape(self.default_size)
        return None if h * w // self.patch**2 % UNIT else super().share(network)
