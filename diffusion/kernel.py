"""The batched loop over (candidate, timestep, noise): the only caller of a denoiser for classification."""

import warnings
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass
class Batch:
    """How many evaluations the network does in one call. A size that does not fit into a GPU's memory is halved for good."""

    size: int = 32

    def halve(self) -> None:
        """Raises torch.OutOfMemoryError when one evaluation is too much."""
        if self.size == 1:
            raise torch.OutOfMemoryError("one evaluation does not fit into the device's memory: give a smaller --img_size")
        self.size //= 2
        warnings.warn(f"out of memory: going on with {self.size} evaluations a call", stacklevel=3)
        torch.cuda.empty_cache()  # what the failed call left behind, in pieces of the larger size


@torch.inference_mode()
def errors(
    denoiser,  # models.denoiser.Denoiser: its levels, its space, and predict_block
    x0,  # [C,h,w] or [M,C,h,w]  clean latents, already scaled; every candidate is tried on all M images
    conditions,  # Conditions of K candidates, of which only rows are taken
    t,  # [S] int64  levels, 0 .. T-1
    noise,  # [S,C,h,w]  standard normal; row s belongs to t[s], the SAME for every candidate and image
    score,  # callable(target, output, x_t, t), all float32 but t -> [B] or [B,...] float32
    batch,  # Batch: evaluations per call of the network
):
    """Errors of every candidate on every (timestep, noise) pair: float32 on the CPU, [K,S,...], or [K,M,S,...] (paper, eq. 5).

    A call of the network is a block of candidates and pairs, so that a denoiser can compute once what they share. Noising and
    errors in float32; everything stays on x0's device until the one copy at the end. A block that does not fit into memory is
    done again in halves. Raises ValueError for noise of another shape, FloatingPointError when an error is not finite.
    """
    if noise.shape != (len(t), *x0.shape[-3:]):
        raise ValueError(f"noise {list(noise.shape)} does not fit {len(t)} timesteps of latents {list(x0.shape)}")
    t, noise = t.to(x0.device), noise.to(x0.device, torch.float32)
    clean = x0.view(-1, 1, *x0.shape[-3:])
    x_t = denoiser.levels.add_noise(clean, noise, t)  # [M,S,C,h,w]
    target = denoiser.levels.target(denoiser.space, clean, noise, t).expand_as(x_t).flatten(0, 1)
    n_images, x_t, t = len(x_t), x_t.flatten(0, 1), t.repeat(len(x_t))  # of M images one is no other than more pairs
    todo, found = deque(blocks(len(conditions), len(t), batch.size)), None
    while todo:
        rows, pairs = todo.popleft()
        try:
            if cells(rows, pairs) > batch.size:
                todo.extendleft(halves(rows, pairs))
                continue
            output = denoiser.predict_block(x_t[pairs], t[pairs], conditions[rows])
            new = score_block(score, target[pairs], output.float(), x_t[pairs], t[pairs])
        except torch.OutOfMemoryError:
            batch.halve()
            todo.appendleft((rows, pairs))
            continue
        found = new.new_empty(len(conditions), len(t), *new.shape[2:]) if found is None else found
        found[rows, pairs] = new
    if not found.isfinite().all():  # no candidate may win by being NaN
        raise FloatingPointError(f"{int((~found.isfinite()).sum())} of {found.numel()} errors are not finite")
    return (found if x0.dim() == 3 else found.unflatten(1, (n_images, -1))).cpu()


def score_block(score, target, output, x_t, t):
    """score of output [R*P,...], whose rows share target [P,C,h,w], x_t and t: [R,P,...]."""
    n = len(output) // len(t)
    return score(target.repeat(n, 1, 1, 1), output, x_t.repeat(n, 1, 1, 1), t.repeat(n)).unflatten(0, (n, -1))


# ---------------------------------------------------------------- blocks of candidates and pairs


@lru_cache
def blocks(n_rows: int, n_pairs: int, size: int) -> list[tuple[slice, slice]]:
    """Rectangles (rows, pairs) of at most `size` cells that cover n_rows x n_pairs, as few as any height gives, and then as
    high as can be: rows share what depends on the pair alone."""

    def cut(height):
        return [part for rows in even(n_rows, height) for part in _cut_pairs(rows, n_pairs, size)]

    return min((cut(height) for height in range(min(n_rows, size), 0, -1)), key=len)


def _cut_pairs(rows: slice, n_pairs: int, size: int) -> list[tuple[slice, slice]]:
    return [(rows, pairs) for pairs in even(n_pairs, size // (rows.stop - rows.start))]


def even(n: int, most: int) -> list[slice]:
    """0..n as slices of at most `most`, as few as can be, whose lengths differ by one at most."""
    count = -(-n // most)
    return [slice(n * i // count, n * (i + 1) // count) for i in range(count)]


def cells(rows: slice, pairs: slice) -> int:
    return (rows.stop - rows.start) * (pairs.stop - pairs.start)


def halves(rows: slice, pairs: slice) -> list[tuple[slice, slice]]:
    """A block as two, along its pairs if it has several."""
    if pairs.stop - pairs.start > 1:
        middle = (pairs.start + pairs.stop) // 2
        return [(rows, slice(pairs.start, middle)), (rows, slice(middle, pairs.stop))]
    middle = (rows.start + rows.stop) // 2
    return [(slice(rows.start, middle), pairs), (slice(middle, rows.stop), pairs)]
