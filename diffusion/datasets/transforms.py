"""PIL image -> float32 tensor [3,H,W] in [-1,1]. torchvision is imported when the first image comes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")


def to_rgb(image):
    """Any PIL mode to RGB; a function of the module, so that data-loading processes can unpickle it."""
    return image.convert("RGB")


def adm_crop(image, size: int):
    """The centre size x size pixels after a resize of the short side to `size` (Dhariwal and Nichol 2021, ADM).

    Halved with a box filter as long as the short side stays at or above 2 x size, then bicubic: sharper than one big step.
    """
    from PIL import Image

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Deferred:
    """A transform that is built when it is first used, in each process that uses it: build(*arguments)."""

    build: Callable
    arguments: tuple

    def __call__(self, image):
        return self.build(*self.arguments)(image)


def adm_transform(size: int) -> Deferred:
    """The DiT recipe: RGB, ADM centre crop, [-1,1]. RGB first, so that grey, palette, CMYK and alpha images work."""
    return Deferred(_adm, (size,))


def sd_transform(size: int, interpolation: str = "bicubic") -> Deferred:
    """The Stable Diffusion recipe: resize the short side, centre crop, RGB, [-1,1].

    RGB comes after the resize as published: it decides what a palette or alpha image turns into.
    """
    return Deferred(_sd, (size, interpolation))


@cache
def _adm(size: int):
    from torchvision import transforms as tv

    crop = partial(adm_crop, size=size)
    return tv.Compose([to_rgb, crop, tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)])


@cache
def _sd(size: int, interpolation: str):
    from torchvision import transforms as tv

    mode = tv.InterpolationMode(interpolation)
    return tv.Compose(
        [tv.Resize(size, interpolation=mode), tv.CenterCrop(size), to_rgb, tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)]
    )


def random_view(image, size: int, interpolation: str, *entropy: int):
    """A random resized crop of size x size pixels, mirrored or not (torchvision's defaults: a part of 8 to 100 % of the area).

    image: PIL, or a tensor [3,H,W]; the view is of the same kind, and a function of these integers
    """
    import numpy as np
    import torch
    from torchvision import transforms as tv

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))
        crop = tv.RandomResizedCrop(size, interpolation=tv.InterpolationMode(interpolation), antialias=True)
        return tv.RandomHorizontalFlip()(crop(image))
