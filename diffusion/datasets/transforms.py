"""PIL image -> float32 tensor [3,H,W] in [-1,1]. torchvision is imported when a transform is built."""

from functools import partial

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")


def to_rgb(image):
    """Any PIL mode to RGB; a function of the module, so that data-loading processes can unpickle the transform."""
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


def adm_transform(size: int):
    """The DiT recipe: RGB, ADM centre crop, [-1,1]. RGB first, so that grey, palette, CMYK and alpha images work."""
    from torchvision import transforms as tv

    crop = partial(adm_crop, size=size)
    return tv.Compose([to_rgb, crop, tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)])


def sd_transform(size: int, interpolation: str = "bicubic"):
    """The Stable Diffusion recipe: resize the short side, centre crop, RGB, [-1,1].

    RGB comes after the resize as published: it decides what a palette or alpha image turns into.
    """
    from torchvision import transforms as tv

    mode = tv.InterpolationMode(interpolation)
    return tv.Compose(
        [tv.Resize(size, interpolation=mode), tv.CenterCrop(size), to_rgb, tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)]
    )


def shrink(image, size: int):
    """A transformed image [3,H,H] in [-1,1] at size pixels a side, bicubic with antialiasing as PIL does it."""
    from torch.nn.functional import interpolate

    return interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(-1, 1)
