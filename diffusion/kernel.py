"""The batched loop over (candidate, timestep, noise): the only caller of a denoiser for classification."""

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
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
        warnings.warn(f"out of memory: going on with {self.size} evaluations a call", stacklevel=4)
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
    guidance=0.0,  # W of `guided`; where it is not 0, the first condition is the empty one
):
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
    empty = {}  # pair -> what the network says of it under the empty condition, whose blocks come first

    def evaluate(rows, pairs):
        output = denoiser.predict_block(x_t[pairs], t[pairs], conditions[rows]).float()
        if guidance:
            here = range(len(t))[pairs]
            if rows.start == 0:
                empty.update(zip(here, output[: len(here)].clone(), strict=True))
            every = torch.stack([empty[pair] for pair in here]).repeat(len(output) // len(here), 1, 1, 1)
            output = guided(output, every, guidance, x_t.shape[1])
        return score_block(score, target[pairs], output, x_t[pairs], t[pairs])

    found = checked(_evaluated(len(conditions), len(t), evaluate, batch))
    return (found if x0.dim() == 3 else found.unflatten(1, (n_images, -1))).cpu()


def _evaluated(n_rows: int, n_pairs: int, evaluate: Callable, batch: Batch):
    """evaluate(rows, pairs) -> [R,P,...] of all n_rows x n_pairs, block by block: [n_rows,n_pairs,...], on the device."""
    todo, found = deque(blocks(n_rows, n_pairs, batch.size)), None
    while todo:
        rows, pairs = todo.popleft()
        try:
            if cells(rows, pairs) > batch.size:
                todo.extendleft(reversed(halves(rows, pairs)))
                continue
            new = evaluate(rows, pairs)
        except torch.OutOfMemoryError:
            batch.halve()
            todo.appendleft((rows, pairs))
            continue
        found = new.new_empty(n_rows, n_pairs, *new.shape[2:]) if found is None else found
        found[rows, pairs] = new
    return found


def checked(found):
    """The errors themselves. Raises FloatingPointError when one is not finite: no candidate may win by being NaN."""
    if not found.isfinite().all():
        raise FloatingPointError(f"{int((~found.isfinite()).sum())} of {found.numel()} errors are not finite")
    return found


def guided(output, empty, weight: float, channels: int):
    """(1 + W) output - W empty [B,C or more,h,w] in the first `channels` (figure 8); what is said of the variance stays.

    The same in any space of errors: predictions of one x_t in two spaces are p and a p + b x_t, and the weights' sum is 1.
    """
    return torch.cat([(1 + weight) * output[:, :channels] - weight * empty[:, :channels], output[:, channels:]], 1)


def score_block(score, target, output, x_t, t):
    """score of output [R*P,...], whose rows share target [P,C,h,w], x_t and t: [R,P,...]."""
    n = len(output) // len(t)
    return score(target.repeat(n, 1, 1, 1), output, x_t.repeat(n, 1, 1, 1), t.repeat(n)).unflatten(0, (n, -1))


# ---------------------------------------------------------------- cells of several images


@dataclass(frozen=True)
class Cells:
    """What is asked about one image: R candidates on S pairs, or some of these cells, which are numbered pair by pair: s * R + r.

    x0: [C,h,w] clean latent, already scaled; rows: R of the conditions, with guidance the empty one first; t: int64 [S], CPU
    noise: callable, slice of the S pairs -> standard normal [n,C,h,w]; which: the cells, of 0..R*S
    empty: pair -> what the network said under the empty condition, of a pair that calls cut; all parts share it
    """

    x0: Any
    rows: Sequence[int]
    t: Any
    noise: Callable
    which: range
    empty: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.which)

    @property
    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """The pair and the row of every cell."""
        return np.divmod(np.array(self.which), len(self.rows))

    def part(self, start: int, stop: int) -> "Cells":
        return replace(self, which=self.which[start:stop])

    def table(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """Errors of all cells in order, in pieces of [n,...], as [R,S,...]."""
        return torch.cat(list(pieces)).unflatten(0, (-1, len(self.rows))).transpose(0, 1)


@torch.inference_mode()
def cell_errors(
    denoiser,  # models.denoiser.Denoiser: its levels, its space, and predict_cells
    asked,  # list of Cells, of one image each
    conditions,  # Conditions of all candidates, of which only rows are taken
    score_of,  # callable(x0 [B,C,h,w]) -> a score for `errors`, of cells that have these clean latents
    batch,  # Batch: evaluations per call of the network
    guidance=0.0,  # as of `errors`
) -> list[torch.Tensor]:
    """Errors of cells of several images, which share calls of the network: float32 [n,...] for each, on the CPU.

    A call takes the next cells, whosever they are, and computes once what those of one pair share. Noising, errors and
    memory as in `errors`; noise is drawn call by call. Errors may not be finite, which only concerns their image: see `checked`.
    """

    def evaluate(_, which):
        parts = list(_parts(asked, which))
        x0, t, noise, latent, rows = _joined(parts)
        x_t, target = denoiser.levels.add_noise(x0, noise, t), denoiser.levels.target(denoiser.space, x0, noise, t)
        output = denoiser.predict_cells(x_t, t, latent, conditions[rows]).float()
        if guidance:
            output = guided(output, _empty(parts, output), guidance, x_t.shape[1])
        return score_of(x0[latent])(target[latent], output, x_t[latent], t[latent])[None]

    found = _evaluated(1, sum(map(len, asked)), evaluate, batch)[0].cpu()
    return list(found.split([len(part) for part in asked]))


def _parts(asked: Sequence[Cells], which: slice) -> Iterator[Cells]:
    """Those of all cells, one image after another, that lie in the slice."""
    start = 0
    for part in asked:
        if wanted := part.part(max(which.start - start, 0), max(which.stop - start, 0)):
            yield wanted
        start += len(part)


def _empty(parts: Sequence[Cells], output):
    """What the network says [B,...] under the empty condition on the pair of every cell: the first cell of a pair, which in a
    pair that is cut may have been in an earlier call."""
    found, cells = [], iter(output)
    for part in parts:
        pairs, rows = part.place
        for gone in [pair for pair in part.empty if pair < pairs[0]]:  # no earlier, as a call that does not fit is done again
            del part.empty[gone]
        for pair, row, said in zip(pairs, rows, cells, strict=False):
            if row == 0:
                part.empty[pair] = said.clone()
            found.append(part.empty[pair])
    return torch.stack(found)


def _joined(parts: Sequence[Cells]):
    """Of a call's B cells on P pairs: x0 [P,C,h,w], t [P], noise [P,C,h,w], the pair of every cell [B] and its row, a list."""
    x0, t, noise, pairs, rows = [], [], [], [], []
    for part in parts:
        pair, row = part.place
        seen = slice(int(pair[0]), int(pair[-1]) + 1)
        pairs.append(pair - pair[0] + sum(map(len, t)))
        rows += [part.rows[r] for r in row]
        t.append(part.t[seen])
        noise.append(part.noise(seen))
        x0.append(part.x0.expand(len(t[-1]), *part.x0.shape))
    device, pair = parts[0].x0.device, torch.from_numpy(np.concatenate(pairs))
    noise = torch.cat(noise).to(device, torch.float32)
    return torch.cat(x0), torch.cat(t).to(device), noise, pair.to(device), rows


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
