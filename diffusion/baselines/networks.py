"""Classifiers of images that are trained from nothing, and files of trained weights. torch is imported when needed."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from diffusion.utils import files

NETWORKS = ("resnet50", "resnet18")


def build(network: str, n_classes: int):
    """torchvision's, with random weights."""
    from torchvision import models

    return getattr(models, network)(num_classes=n_classes)


def save(path: Path, model, about: Mapping[str, str]) -> None:
    """A safetensors file, whole or absent; about: its metadata."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files.write(path, lambda file: file.write(save(tensors, dict(about))))


def about(path: Path) -> dict[str, str]:
    """The metadata of a file of `save`; nothing of a file that is damaged, as `load` says."""
    from safetensors import safe_open

    with contextlib.suppress(Exception), safe_open(path, "pt") as file:
        return file.metadata() or {}
    return {}


def load(path: Path, build: Callable, device: str):
    """The model of a file in eval mode. build(metadata) -> the module. Raises ValueError for a file that is not of `save`."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            about, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = build(about)
        model.load_state_dict(state)
    except Exception as error:  # of a damaged file its reader raises whatever it runs into
        raise ValueError(f"{path} cannot be read ({files.one_line(error)}): remove it to train again") from None
    return model.to(device).eval()
