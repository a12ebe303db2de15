"""Noise banks: the seeded one of an image, and the shared one of a file. Row s belongs to the s-th pair of a Plan."""

from pathlib import Path

import numpy as np


def seeded_noise(seed: int, index: int, shape: tuple[int, ...]):
    """Standard normal float32 of this shape, a function of (seed, image index) alone: drawn on the CPU, whatever device runs."""
    import torch

    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state)))


def shared_noise(path, n: int, latent_shape, img_size: int, seed: int, rows_by_position: int | None):
    """The noise of n samples [n,C,h,w], the same for every image: of a file, or without one seeded, row i for sample i.

    rows_by_position: None, or the batch size: sample i of a file takes the row of its position in its batch, as the published
    code does without --randomize_noise. Raises ValueError as `read_noise`.
    """
    if not path:
        return seeded_noise(seed, 0, (n, *latent_shape))
    rows = np.arange(n) % (rows_by_position or n)
    return read_noise(path, int(rows.max()) + 1, latent_shape, img_size)[rows]


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
