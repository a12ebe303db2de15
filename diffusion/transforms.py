"""PIL image -> float32 tensor [3,H,W] in [-1,1]. torchvision is imported when a transform is built."""

INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")


def to_rgb(image):
    """Any PIL mode to RGB; a function of the module, so that data-loading processes can unpickle the transform."""
    return image.convert("RGB")


def sd_transform(size: int, interpolation: str = "bicubic"):
    """The Stable Diffusion recipe: resize the short side, centre crop, RGB, [-1,1].

    RGB comes after the resize as published: it decides what a palette or alpha image turns into.
    """
    from torchvision import transforms as tv

    mode = tv.InterpolationMode(interpolation)
    return tv.Compose(
        [tv.Resize(size, interpolation=mode), tv.CenterCrop(size), to_rgb, tv.ToTensor(), tv.Normalize([0.5] * 3, [0.5] * 3)]
    )
