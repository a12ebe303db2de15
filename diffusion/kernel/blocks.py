"""The batched loop over (candidate, timestep, noise): the only caller of a denoiser for classification."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from diffusion.kernel.scores import Score

Cell = tuple[dict[int, Tensor], int, int]  # (predictions under the empty condition by pair, pair, row) of an evaluation
Block = tuple[slice, slice]  # rows, pairs
C = TypeVar("C", bound="Rows")
C_in = TypeVar("C_in", contravariant=True)


class Law(Protocol):
    """What the kernel calls of models.denoiser.Levels."""

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...

    def target(self, space: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor: ...


class Rows(Protocol):
    """What the kernel takes of models.denoiser.Conditions."""

    def __len__(self) -> int: ...

    def __getitem__(self: C, rows: slice | Sequence[int], /) -> C: ...


class Predictor(Protocol[C_in]):
    """What the kernel needs of a models.denoiser.Denoiser, whatever conditions it takes."""

    @property
    def levels(self) -> Law: ...

    @property
    def space(self) -> str: ...

    @property
    def predict_latents(self) -> Callable[[Tensor, Tensor, C_in, Tensor | None], Tensor]: ...


@dataclass
class Batch:
    """How many evaluations the network does in one call. A size that does not fit into a GPU's memory is halved for good."""

    size: int = 32

    def halve(self) -> None:
        """Raises torch.OutOfMemoryError when one evaluation is too much."""
        if self.size == 1:
            raise torch.OutOfMemoryError("one evaluation does not fit into the device's memory: give a smaller --img_size")
        self.size //= 2
        warnings.warn(f"out of memory: going on with {self.size} evaluations a call", stacklevel=4)
        torch.cuda.empty_cache()  # what the failed call left behind, in pieces of the larger size


@torch.inference_mode()
def errors(
    denoiser: Predictor[C],
    x0: Tensor,  # [C,h,w] or [M,C,h,w]  clean latents, already scaled; every candidate is tried on all M images
    conditions: C,  # Conditions of K candidates, of which only rows are taken
    t: Tensor,  # [S] int64  levels, 0 .. T-1
    noise: Tensor,  # [S,C,h,w]  standard normal; row s belongs to t[s], the SAME for every candidate and image
    score: Score,
    batch: Batch,
    guidance: float = 0.0,  # W of `guided`; where it is not 0, the first condition is the empty one
) -> Tensor:
    """Errors of every candidate on every (timestep, noise) pair: float32 on the CPU, [K,S,...], or [K,M,S,...] (paper, eq. 5).

    A call of the network is a block of candidates and pairs, so that a denoiser can compute once what they share. Noising and
    errors in float32; everything stays on x0's device until the one copy at the end. A block that does not fit into memory is
    done again in halves. The empty condition of guidance is one more row, evaluated once for each pair; its errors are its own.
    Raises ValueError for noise of another shape, FloatingPointError when an error is not finite.
    """
    if noise.shape != (len(t), *x0.shape[-3:]):
        raise ValueError(f"noise {list(noise.shape)} does not fit {len(t)} timesteps of latents {list(x0.shape)}")
    t, noise = t.to(x0.device), noise.to(x0.device, torch.float32)
    clean = x0.view(-1, 1, *x0.shape[-3:])
    x_t = denoiser.levels.add_noise(clean, noise, t)  # [M,S,C,h,w]
    target = denoiser.levels.target(denoiser.space, clean, noise, t).expand_as(x_t).flatten(0, 1)
    n_images, x_t, t = len(x_t), x_t.flatten(0, 1), t.repeat(len(x_t))  # of M images one is no other than more pairs
    unconditional: dict[int, Tensor] = {}  # pair -> prediction under the empty condition, whose blocks come first
    calls = Calls(len(conditions), len(t), batch)
    values: Tensor | None = None  # made when a score has said its shape
    for rows, pairs in calls:
        with calls.attempt():
            output = denoiser.predict_latents(x_t[pairs], t[pairs], conditions[rows], None).float()  # [R*P,C,h,w]
            if guidance:
                cells = [(unconditional, pair, row) for row in range(rows.start, rows.stop) for pair in range(len(t))[pairs]]
                output = guided(output, cells, guidance, x_t.shape[1])
            n = rows.stop - rows.start
            new = score(target[pairs].repeat(n, 1, 1, 1), output, x_t[pairs].repeat(n, 1, 1, 1), t[pairs].repeat(n))
            values = new.new_empty(len(conditions), len(t), *new.shape[1:]) if values is None else values
            values[rows, pairs] = new.unflatten(0, (n, -1))
    assert values is not None  # there is a call
    values = checked(values)
    return (values if x0.dim() == 3 else values.unflatten(1, (n_images, -1))).cpu()


class Calls:
    """The calls of the network for n_rows x n_pairs evaluations, as blocks (rows, pairs) that fit into a batch.

    A call that does not fit into memory, inside `attempt`, is done again in halves, and all later ones are smaller.
    """

    def __init__(self, n_rows: int, n_pairs: int, batch: Batch):
        self.todo, self.batch = deque(blocks(n_rows, n_pairs, batch.size)), batch

    def __iter__(self) -> Iterator[Block]:
        while self.todo:
            self.block = self.todo.popleft()
            if cells(*self.block) > self.batch.size:
                self.todo.extendleft(reversed(halves(*self.block)))
            else:
                yield self.block

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Raises torch.OutOfMemoryError where one evaluation does not fit."""
        try:
            yield
        except torch.OutOfMemoryError:
            self.batch.halve()
            self.todo.appendleft(self.block)


def checked(values: Tensor) -> Tensor:
    """The errors themselves. Raises FloatingPointError when one is not finite: no candidate may win by being NaN."""
    if not values.isfinite().all():
        raise FloatingPointError(f"{int((~values.isfinite()).sum())} of {values.numel()} errors are not finite")
    return values


def guided(output: Tensor, cells: Iterable[Cell], weight: float, channels: int) -> Tensor:
    """(1 + W) output - W empty [B,C or more,h,w] in the first `channels` (figure 8); a predicted variance stays as it is.

    cells: (unconditional, pair, row) of each of the B evaluations; row 0 is the empty condition, whose predictions are kept in
    `unconditional` by pair, for calls to come. The same in any error space: predictions of one x_t in two spaces are p and
    a p + b x_t, and the weights' sum is 1.
    """
    cells = list(cells)
    for prediction, (unconditional, pair, row) in zip(output, cells, strict=True):
        if row == 0:
            unconditional[pair] = prediction.clone()
    empty = torch.stack([unconditional[pair] for unconditional, pair, _ in cells])
    return torch.cat([(1 + weight) * output[:, :channels] - weight * empty[:, :channels], output[:, channels:]], 1)


# ---------------------------------------------------------------- blocks of candidates and pairs


@lru_cache
def blocks(n_rows: int, n_pairs: int, size: int) -> list[Block]:
    """Rectangles (rows, pairs) of at most `size` cells that cover n_rows x n_pairs, as few as any height gives, and then as
    high as can be: rows share what depends on the pair alone."""

    def cut(height: int) -> list[Block]:
        return [part for rows in even(n_rows, height) for part in _cut_pairs(rows, n_pairs, size)]

    return min((cut(height) for height in range(min(n_rows, size), 0, -1)), key=len)


def _cut_pairs(rows: slice, n_pairs: int, size: int) -> list[Block]:
    return [(rows, pairs) for pairs in even(n_pairs, size // (rows.stop - rows.start))]


def even(n: int, most: int) -> list[slice]:
    """0..n as slices of at most `most`, as few as can be, whose lengths differ by one at most."""
    count = -(-n // most)
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def cells(rows: slice, pairs: slice) -> int:
    return (rows.stop - rows.start) * (pairs.stop - pairs.start)


def halves(rows: slice, pairs: slice) -> list[Block]:
    """A block as two, along its pairs if it has several."""
    if pairs.stop - pairs.start > 1:
        middle = (pairs.start + pairs.stop) // 2
        return [(rows, slice(pairs.start, middle)), (rows, slice(middle, pairs.stop))]
    middle = (rows.start + rows.stop) // 2
    return [(slice(rows.start, middle), pairs), (slice(middle, rows.stop), pairs)]
