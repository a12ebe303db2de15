"""Sources of noise: the seeded bank of an image, and a bank that all images share. Row s belongs to the s-th pair of a Plan.

A source is called with an image's index and the shape [S,C,h,w] of its bank; `identity()` tells two sources apart in a record's
config. torch is imported when noise is drawn or read.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.files import fingerprint


@dataclass(frozen=True)
class Seeded:
    """Standard normal noise, a function of the seed and the image's index; of `index` for all images where that is given."""

    seed: int
    index: int | None = None

    def __call__(self, index: int, shape: tuple[int, ...]):
        if self.index is None:
            return seeded_noise(self.seed, index, shape)
        return _one_for_all(self.seed, self.index, tuple(shape))

    def identity(self) -> str:
        return "seeded"


@dataclass(frozen=True)
class Bank:
    """Noise [S,C,h,w] that all images share."""

    noise: Any

    def __call__(self, index: int, shape: tuple[int, ...]):
        """Raises ValueError for another shape than the bank's."""
        if tuple(shape) != tuple(self.noise.shape):
            raise ValueError(f"the noise bank holds {list(self.noise.shape)}, needed is {list(shape)}")
        return self.noise

    def identity(self) -> str:
        return fingerprint(self.noise.numpy().tobytes())


def seeded_noise(seed: int, index: int, shape: tuple[int, ...]):
    """Standard normal float32 of this shape, a function of (seed, image index) alone: drawn on the CPU, whatever device runs."""
    import torch

    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state)))


_one_for_all = lru_cache(maxsize=1)(seeded_noise)


def grid_noise(seed: int, path: str | None, n: int, latent_shape, img_size: int, rows_by_position: int | None):
    """The source of a grid of n pairs, the same for every image: a file's rows, or seeded ones, row i for pair i.

    rows_by_position: None, or a batch size: pair i of a file takes the row of its position in its batch, as the published code
    does without --randomize_noise. Raises ValueError as `read_noise`.
    """
    if not path:
        return Seeded(seed, 0)
    rows = np.arange(n) % (rows_by_position or n)
    return Bank(read_noise(path, int(rows.max()) + 1, latent_shape, img_size)[rows])


def image_noise(seed: int, path: str | None, n: int, latent_shape, img_size: int):
    """The source of a classification: every image's own seeded bank, or the first n rows of a file. Raises ValueError so too."""
    return Bank(read_noise(path, n, latent_shape, img_size)) if path else Seeded(seed)


def read_noise(path: str, rows: int, latent_shape: tuple[int, int, int], img_size: int):
    """The first `rows` rows of a file written by scripts/save_noise.py, float32 [rows,C,h,w].

    Raises ValueError when the file is missing, unreadable, of another shape or too short.
    """
    import torch

    channels, side, _ = latent_shape
    make = f"python scripts/save_noise.py --img_size {img_size} --n {max(rows, 1024)} --out {path}"
    make += f" --channels {channels} --downscale {img_size // side}" if (channels, img_size // side) != (4, 8) else ""
    if not Path(path).is_file():
        raise ValueError(f"--noise_path {path} does not exist; make it with: {make}")
    try:
        noise = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken zip or pickle raises whatever it runs into
        raise ValueError(f"--noise_path {path} cannot be read ({type(error).__name__}); make it with: {make}") from None
    if not torch.is_tensor(noise) or noise.shape[1:] != latent_shape or len(noise) < rows:
        found = list(noise.shape) if torch.is_tensor(noise) else type(noise).__name__
        needed = f"[{rows} or more, {', '.join(map(str, latent_shape))}]"
        raise ValueError(f"--noise_path {path} holds {found}, needed is {needed}; make it with: {make}")
    return noise[:rows].float()
