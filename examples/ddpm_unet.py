"""A class-conditional U-Net of diffusers' on the DDPM schedule, on colour pixels, 32 a side.

    python eval_prob_dit.py --model_path examples/ddpm_unet.py --dataset fashion_mnist --imgs_to_eval 20 --t_interval 100

Its network has random weights, so it guesses; put yours in its place. docs/own_model.md explains the parts.
"""

import torch
from diffusers import DDPMScheduler, UNet2DModel

from diffusion.models.denoiser import Conditions, Denoiser, ddpm

IMG_SIZE, NUM_CLASSES = 32, 10


def build():
    torch.manual_seed(0)
    network = UNet2DModel(  # or UNet2DModel.from_pretrained("folder", torch_dtype=dtype)
        sample_size=IMG_SIZE,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        num_class_embeds=NUM_CLASSES,
    )
    return network.eval()


def load(device, dtype):
    network = build().to(device)
    levels = ddpm(DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.to(device))

    def encode(image):  # [3,32,32] in [-1,1]: pixels are its latents
        return image.to(device)

    def embed(class_ids):
        return Conditions(ids=torch.tensor(class_ids, device=device))

    def predict(x_t, t, conditions):
        return network(x_t.to(network.dtype), t, class_labels=conditions.ids).sample

    return Denoiser(encode, embed, predict, levels)
