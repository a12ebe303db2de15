"""Features of a Stable Diffusion's U-Net: an inner layer's map of a noised image under the empty prompt (Li et al. 2023, F.4).

They are kept on disk, one file per image, so that extraction can be interrupted and shared. torch is imported for features.
"""

import errno
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.kernel import noise
from diffusion.models.families.base import Pipeline
from diffusion.models.speed import devices
from diffusion.runs.artifacts import Store
from diffusion.utils import files


class _Reached(Exception):
    """The layer's output is there; what would follow is not computed."""


def layer_reader(unet, layer: str) -> Callable:
    """(x_t [B,C,h,w], t [B], sequence [B,L,D]) -> the output [B,C',h',w'] of a part of the U-Net; what comes after it is not run.

    layer: the part's name in diffusers, such as mid_block or down_blocks.1. Raises ValueError for a name of nothing, and, when it
    is called, for a part that gives no map.
    """
    try:
        module = unet.get_submodule(layer)
    except AttributeError:
        parts = [f"{name}.0 ... {name}.{len(getattr(unet, name)) - 1}" for name in ("down_blocks", "up_blocks")]
        raise ValueError(f"--layer {layer} is no part of this U-Net: take mid_block, {', '.join(parts)}") from None

    def read(x_t, t, sequence):
        features = []

        def stop(module, inputs, output):
            features.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = module.register_forward_hook(stop)
        try:
            unet(x_t, t, encoder_hidden_states=sequence)
        except _Reached:
            pass
        finally:
            handle.remove()
        if not features or features[0].ndim != 4:
            raise ValueError(f"--layer {layer} gives no map of features: take mid_block or another block")
        return features[0]

    return read


def extractor(source: Pipeline, layer: str, t: int, seed: int, device: str, dtype: str) -> Callable:
    """(index, image [3,H,W], trial=0) -> features [C,h,w] in dtype, on the device.

    The noise belongs to (seed, index, t, trial), and images go through alone, so that features do not depend on the order of
    images or on their neighbours. Raises ValueError as `layer_reader`, and as the source does for its weights.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of weights from disk
    unet: Any = source.weights.load("unet", device, devices.torch_dtype(dtype))  # diffusers', which knows its dtype
    read, encode, levels = layer_reader(unet, layer), source.weights.vae_encoder(device), source.levels().to(device)
    prompts = [""]
    conditions = source.conditions(prompts, source.reader(device, dtype)(prompts), plain=False)
    empty = conditions.to(unet.dtype).to(device).sequence
    at = torch.tensor([t], device=device)
    with torch.inference_mode():  # a layer that does not do is told before there is an image
        read(torch.zeros(1, source.vae["latent_channels"], *[source.patch] * 2, device=device, dtype=unet.dtype), at, empty)

    @torch.inference_mode()
    def extract(index: int, image, trial: int = 0):
        x0 = encode(image)
        drawn = noise.seeded_row(seed, index, t, trial, tuple(x0.shape)).to(device)
        return read(levels.add_noise(x0, drawn[None], at).to(unet.dtype), at, empty)[0]

    return extract


# ---------------------------------------------------------------- on disk


class Cache(Store):
    """Features [C,h,w], <index // 1000>/<index>.npy each."""

    flag, pattern = "--cache_dir", "*/*.npy"

    def path(self, index: int) -> Path:
        return self.folder / f"{index // 1000:04d}" / f"{index:07d}.npy"

    def write(self, index: int, features) -> None:
        """features: a tensor [C,h,w], whole or absent on disk; bfloat16, which numpy lacks, as float32."""
        values = features.cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        files.write(self.path(index), lambda file: np.save(file, values.numpy()))

    def read(self, index: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """[C,h,w], of this shape where it is known. Raises OSError, naming the file, where it is gone or holds anything else."""
        try:
            values = np.load(self.path(index), allow_pickle=False)
            numbers = isinstance(values, np.ndarray) and values.dtype.kind == "f" and np.isfinite(values).all()
            if numbers and values.ndim == 3 and shape in (None, values.shape):
                return values
        except (ValueError, EOFError, zipfile.BadZipFile):
            pass
        raise OSError(errno.EIO, "damaged: remove it, and run the same command again", str(self.path(index))) from None

    def stack(self, indices: Iterable[int], pool: bool = False):
        """Float32 tensor [N,C,h,w] of these images; pool: [N,C,1,1], the mean of each channel."""
        import torch

        first, *others = indices
        shape = self.read(first).shape
        maps = (self.read(index, shape).astype(np.float32) for index in (first, *others))
        return torch.from_numpy(np.stack([m.mean((1, 2), keepdims=True) if pool else m for m in maps]))
