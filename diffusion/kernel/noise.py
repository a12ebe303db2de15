"""Sources of noise: seeded by image, timestep and trial, and a bank that all images share, of which row s belongs to pair s.

A source is called with an image's index, its Plan, the latents' shape [C,h,w] and the pairs that are wanted, and returns their
noise [n,C,h,w]; `identity()` tells two sources apart in a record's config. torch is imported when noise is drawn or read.
"""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from diffusion.settings import NoiseKind
from diffusion.strategy.schedule import Plan
from diffusion.utils import files
from diffusion.utils.files import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

ALL = slice(None)  # pairs


class NoiseSource(Protocol):
    """What every source is."""

    def __call__(self, index: int, plan: Plan, latent_shape: tuple[int, ...], pairs: slice = ALL, /) -> Tensor: ...

    def identity(self) -> str: ...


@dataclass(frozen=True)
class Seeded:
    """Standard normal noise, a function of the seed, the image's index (`index` for all images where that is given), the timestep
    and the trial: whatever strategy comes to a timestep finds the same noise there."""

    seed: int
    index: int | None = None

    def __call__(self, index: int, plan: Plan, latent_shape: tuple[int, ...], pairs: slice = ALL) -> Tensor:
        import torch

        draw, index = (seeded_row, index) if self.index is None else (_kept_row, self.index)
        rows = zip(plan.t[pairs].tolist(), plan.trial[pairs].tolist(), strict=True)
        return torch.stack([draw(self.seed, index, t, trial, tuple(latent_shape)) for t, trial in rows])

    def identity(self) -> str:
        return "seeded by timestep"


@dataclass(frozen=True)
class SeededInOrder:
    """The seeded noise of runs begun before noise belonged to timesteps: row s to the s-th pair. Their folders go on with it."""

    NAME: ClassVar = "seeded"

    seed: int
    index: int | None = None

    def __call__(self, index: int, plan: Plan, latent_shape: tuple[int, ...], pairs: slice = ALL) -> Tensor:
        entropy = [self.seed, index if self.index is None else self.index]
        return _drawn(entropy, (len(plan.t), *latent_shape))[pairs]

    def identity(self) -> str:
        return self.NAME


@dataclass(frozen=True)
class Bank:
    """Noise [S,C,h,w] that all images share, row s for pair s as published."""

    noise: Tensor

    def __call__(self, index: int, plan: Plan, latent_shape: tuple[int, ...], pairs: slice = ALL) -> Tensor:
        """Raises ValueError for another shape than the bank's."""
        shape = (len(plan.t), *latent_shape)
        if shape != tuple(self.noise.shape):
            raise ValueError(f"the noise bank holds {list(self.noise.shape)}, needed is {list(shape)}")
        return self.noise[pairs]

    def identity(self) -> str:
        return fingerprint(self.noise.numpy().tobytes())


@dataclass(frozen=True)
class Shaped:
    """A source whose standard normal noise is made into another kind, element by element or row by row: the same draws.

    zero: zeros; truncated: the normal distribution on [-A, A] (what drawing again outside of it gives), by its quantiles
    clipped: what lies outside is put on the border; expected_norm: a row [C,h,w] is scaled to the mean norm of such rows
    """

    source: NoiseSource
    kind: NoiseKind

    def __call__(self, index: int, plan: Plan, latent_shape: tuple[int, ...], pairs: slice = ALL) -> Tensor:
        noise, bound = self.source(index, plan, latent_shape, pairs), self.kind.bound or math.inf  # of two kinds alone
        if self.kind.name == "zero":
            return noise.new_zeros(noise.shape)
        if self.kind.name == "truncated":
            return truncated(noise, bound)
        return noise.clamp(-bound, bound) if self.kind.name == "clipped" else of_expected_norm(noise)

    def identity(self) -> str:
        """That of the source; the kind stands beside it in a run's identity."""
        return self.source.identity()


def shaped(source: NoiseSource, kind: NoiseKind) -> NoiseSource:
    """The source itself where its noise is to stay normal."""
    return source if kind.name == "normal" else Shaped(source, kind)


def truncated(noise: Tensor, bound: float) -> Tensor:
    """Standard normal numbers as ones of that distribution on [-bound, bound], each at its quantile; float32."""
    import torch

    below = torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64))
    quantile = below + torch.special.ndtr(noise.double()) * (1 - 2 * below)
    return torch.special.ndtri(quantile).clamp(-bound, bound).float()


def of_expected_norm(noise: Tensor) -> Tensor:
    """Rows [n,C,h,w] with the norm sqrt(2) gamma((d + 1) / 2) / gamma(d / 2), the mean of the chi distribution of d = C h w."""
    import torch

    d = noise[0].numel()
    expected = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
    norm = torch.linalg.vector_norm(noise.double().flatten(1), dim=1).view(-1, 1, 1, 1)
    return (noise.double() * (expected / norm)).float()


def continued(source: NoiseSource, made_with: str | None) -> NoiseSource:
    """The source for a folder whose records were made with noise of this identity; None: it has none yet."""
    if isinstance(source, Seeded) and made_with == SeededInOrder.NAME:
        return SeededInOrder(source.seed, source.index)
    return source


def seeded_row(seed: int, index: int, t: int, trial: int, latent_shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 [C,h,w], a function of these numbers alone."""
    return _drawn([seed, index, t, trial], latent_shape)


_kept_row = lru_cache(maxsize=None)(seeded_row)  # of noise that all images share: as many rows as a plan has pairs


def _drawn(entropy: list[int], shape: tuple[int, ...]) -> Tensor:
    """Drawn on the CPU, whatever device runs."""
    import torch

    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(state)))


def grid_noise(
    seed: int, path: str | None, n: int, latent_shape: tuple[int, ...], img_size: int, rows_by_position: int | None
) -> NoiseSource:
    """The source of a grid of n pairs, the same for every image: a file's rows, row i for pair i, or seeded ones.

    rows_by_position: None, or a batch size: pair i of a file takes the row of its position in its batch, as the published code
    does without --randomize_noise. Raises ValueError as `read_noise`.
    """
    if not path:
        return Seeded(seed, 0)
    rows = np.arange(n) % (rows_by_position or n)
    return Bank(read_noise(path, int(rows.max()) + 1, latent_shape, img_size)[rows])


def image_noise(seed: int, path: str | None, n: int, latent_shape: tuple[int, ...], img_size: int) -> NoiseSource:
    """The source of a classification: every image's own seeded noise, or the first n rows of a file. Raises ValueError so too."""
    return Bank(read_noise(path, n, latent_shape, img_size)) if path else Seeded(seed)


def read_noise(path: str, rows: int, latent_shape: tuple[int, ...], img_size: int) -> Tensor:
    """The first `rows` rows of a file written by scripts/save_noise.py, float32 [rows,C,h,w].

    Raises ValueError when the file is missing, unreadable, of another kind or shape, too short, or does not hold standard normal
    noise.
    """
    channels, side, _ = latent_shape
    name = shlex.quote(path if not os.path.lexists(path) else f"noise_{img_size}.pt")  # no advice to overwrite what is there
    make = f"python scripts/save_noise.py --img_size {img_size} --n {max(rows, 1024)} --out {name}"
    make += f" --channels {channels} --downscale {img_size // side}" if (channels, img_size // side) != (4, 8) else ""
    if not Path(path).is_file():
        kind = "is no file" if os.path.lexists(path) else "does not exist"
        raise ValueError(f"--noise_path {path} {kind}; make one with: {make}")
    try:
        noise = files.load_tensors(path)
    except Exception as error:  # a broken zip or pickle raises whatever it runs into
        raise ValueError(f"--noise_path {path} cannot be read ({type(error).__name__}); make one with: {make}") from None
    if problem := _kind_problem(noise) or _shape_problem(noise, rows, latent_shape):
        raise ValueError(f"--noise_path {path} holds {problem}; make one with: {make}")
    noise = noise[:rows].detach().float()
    if problem := _value_problem(noise):
        raise ValueError(f"--noise_path {path} holds {problem}; make one with: {make}")
    return noise


def _kind_problem(noise: object) -> str | None:
    """What a file holds that is no dense tensor of floating numbers on the CPU."""
    import torch

    if not torch.is_tensor(noise):
        return f"{type(noise).__name__}, needed is a tensor"
    kinds = [str(noise.dtype).removeprefix("torch."), str(noise.layout).removeprefix("torch."), noise.device.type]
    if noise.is_nested or noise.layout != torch.strided or noise.device.type != "cpu" or not noise.is_floating_point():
        return f"a tensor of {', '.join(kinds)}, needed is one of float32, dense"
    return None


def _shape_problem(noise: Tensor, rows: int, latent_shape: tuple[int, ...]) -> str | None:
    if noise.shape[1:] == latent_shape and len(noise) >= rows:
        return None
    return f"{list(noise.shape)}, needed is [{rows} or more, {', '.join(map(str, latent_shape))}]"


def _value_problem(noise: Tensor) -> str | None:
    """What float32 noise [S,C,h,w] has that standard normal noise does not. The bounds are wide: a law of another scale is meant,
    and not chance."""
    import torch

    finite = torch.isfinite(noise).flatten(1).all(1)
    if not finite.all():
        return f"numbers that are not finite, in row {int(finite.int().argmin())} first"
    constant = (noise == noise[:, :1, :1, :1]).flatten(1).all(1)
    if constant.any() and noise[0].numel() > 1:
        return f"one and the same number all over row {int(constant.int().argmax())}, needed is standard normal noise"
    deviation, mean = torch.std_mean(noise.double())
    slack = 6 / noise.numel() ** 0.5  # six standard errors of the mean
    if abs(mean) > 0.1 + slack or not 0.8 - slack < deviation < 1.25 + slack:
        return f"numbers with mean {mean:.2g} and standard deviation {deviation:.2g}, needed is standard normal noise (0 and 1)"
    return None
