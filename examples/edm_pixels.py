"""An EDM (Karras et al. 2022) on grey pixels, 32 a side, that knows ten class names: sigma levels, no VAE, x0 prediction.

    python eval_prob_adaptive.py --model_path examples/edm_pixels.py --dataset fashion_mnist --imgs_to_eval 20 --strategy race

Its network has random weights, so it guesses; put yours in its place. docs/own_model.md explains the parts.
"""

import torch
from torch import nn

from diffusion.models.denoiser import Conditions, Denoiser, Levels

IMG_SIZE = 32  # pixels a side without --img_size
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
SPREAD = 0.5  # sigma_data, the standard deviation of the pixels


class Network(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.of_class, self.of_noise = nn.Embedding(len(NAMES), width), nn.Linear(1, width)
        self.before, self.after = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x, noise, classes):
        told = self.of_class(classes) + self.of_noise(noise[:, None])
        return self.after(nn.functional.silu(self.before(x) + told[:, :, None, None]))


def load(device, dtype):
    torch.manual_seed(0)
    network = Network().to(device, dtype).eval()  # then: network.load_state_dict(torch.load("weights.pt", weights_only=True))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = torch.linspace(low, high, 250, device=device) ** 7  # the paper's eq. 5, rising
    levels = Levels(torch.ones_like(sigma), sigma, times=sigma.log() / 4)

    def encode(image):  # [3,32,32] in [-1,1] -> [1,32,32]
        return image.mean(0, keepdim=True).to(device)

    def embed(prompts):  # the class whose name stands in the prompt, the longest first: "t-shirt" holds "shirt"
        found = [max((name for name in NAMES if name in prompt), key=len) for prompt in prompts]
        return Conditions(ids=torch.tensor([NAMES.index(name) for name in found], device=device))

    def predict(x, t, conditions):  # eq. 7: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
        s, told = sigma[t].view(-1, 1, 1, 1), levels.time(t).to(dtype)
        scale = (s**2 + SPREAD**2).sqrt()
        raw = network((x / scale).to(dtype), told, conditions.ids).float()
        return (SPREAD / scale) ** 2 * x + s * SPREAD / scale * raw

    return Denoiser(encode, embed, predict, levels, space="x0")
