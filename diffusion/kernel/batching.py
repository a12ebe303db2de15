"""Several images at once: what their eliminations request is gathered into full calls of the network.

What goes into a call follows from the order of the images and from what they request, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion.kernel.blocks import Batch, C, Cell, Predictor
    from diffusion.kernel.scores import Score

Key = TypeVar("Key")
Returned = TypeVar("Returned")  # what a classification returns
Classification = Generator["Cells", "Tensor", Returned]  # yields Cells and is sent their errors [R,S,...]
Evaluate = Callable[[list["Cells"]], Sequence["Tensor"]]  # cells of several images -> their errors, one piece [n,...] each


@overload
def width(requested: int | str | None, device: str, batch_size: int) -> int | None: ...
@overload
def width(requested: int | str | None, device: str, batch_size: int | str) -> int | str | None: ...
def width(requested: int | str | None, device: str, batch_size: int | str) -> int | str | None:
    """How many images are in flight where --images_in_flight asks for so many, None: where the command has no such option.

    auto is 1 on a CPU and batch_size // 2 + 1 on a GPU: an image that is not decided yet has two candidates or more and asks for
    one pair or more, and of one image a part may be evaluated already, so that these fill a call. It stays "auto" while the
    batch size is that.
    """
    if not isinstance(requested, str):
        return requested
    if not device.startswith("cuda"):
        return 1
    return "auto" if isinstance(batch_size, str) else batch_size // 2 + 1


@dataclass(frozen=True)
class Cells:
    """Evaluations of one image: R candidates on S pairs, or some of these cells, which are numbered pair by pair: s * R + r.

    x0: [C,h,w] clean latent, already scaled; rows: R of the conditions, with guidance the empty one first; t: int64 [S], CPU
    noise: callable, slice of the S pairs -> standard normal [n,C,h,w]; which: the cells, of 0..R*S
    unconditional: pair -> prediction under the empty condition, of a pair that calls cut; all parts share it
    """

    x0: Tensor
    rows: Sequence[int]
    t: Tensor
    noise: Callable[[slice], Tensor]
    which: range
    unconditional: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.which)

    @property
    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """The pair and the row of every cell."""
        return np.divmod(np.array(self.which), len(self.rows))

    def part(self, start: int, stop: int) -> Cells:
        return replace(self, which=self.which[start:stop])

    def table(self, pieces: Sequence[Tensor]) -> Tensor:
        """Errors of all cells in order, in pieces of [n,...], as [R,S,...]."""
        import torch

        return torch.cat(list(pieces)).unflatten(0, (-1, len(self.rows))).transpose(0, 1)


def cell_errors(
    denoiser: Predictor[C],
    requested: Sequence[Cells],  # of one image each
    conditions: C,  # Conditions of all candidates, of which only rows are taken
    score_of: Callable[[Tensor], Score],  # x0 [B,C,h,w] -> the score of cells that have these clean latents
    batch: Batch,
    guidance: float = 0.0,  # as in `kernel.errors`
) -> list[Tensor]:
    """Errors of cells of several images, which share calls of the network: float32 [n,...] for each, on the CPU.

    A call takes the next cells, whosever they are, and computes once what those of one pair share. Noising, errors and
    memory as in `kernel.errors`; noise is drawn call by call. Errors may not be finite, which only concerns their image: see
    `kernel.checked`.
    """
    import torch

    from diffusion.kernel import blocks

    n = [len(part) for part in requested]
    errors: Tensor | None = None  # made when a score has said its shape
    calls = blocks.Calls(1, sum(n), batch)
    for _, which in calls:
        with calls.attempt(), torch.inference_mode():
            parts = list(_parts(requested, which))
            x0, t, noise, latent, rows = _joined(parts)
            x_t, target = denoiser.levels.add_noise(x0, noise, t), denoiser.levels.target(denoiser.space, x0, noise, t)
            output = denoiser.predict_latents(x_t, t, conditions[rows], latent).float()  # [B,C,h,w]
            if guidance:
                output = blocks.guided(output, _by_pair(parts), guidance, x_t.shape[1])
            new = score_of(x0[latent])(target[latent], output, x_t[latent], t[latent])
            errors = new.new_empty(sum(n), *new.shape[1:]) if errors is None else errors
            errors[which] = new
    assert errors is not None  # there is a call
    return list(errors.cpu().split(n))


def _parts(requested: Sequence[Cells], which: slice) -> Iterator[Cells]:
    """Those of all cells, one image after another, that lie in the slice."""
    start = 0
    for part in requested:
        if wanted := part.part(max(which.start - start, 0), max(which.stop - start, 0)):
            yield wanted
        start += len(part)


def _by_pair(parts: Sequence[Cells]) -> Iterator[Cell]:
    """The cells of a call as `kernel.guided` takes them. Forgets pairs that earlier calls ended, but not the pair that is cut,
    nor any of this call, which may be done again."""
    for part in parts:
        pairs, rows = part.place
        for done in [pair for pair in part.unconditional if pair < pairs[0]]:
            del part.unconditional[done]
        yield from ((part.unconditional, int(pair), int(row)) for pair, row in zip(pairs, rows, strict=True))


def _joined(parts: Sequence[Cells]) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """A call's B cells on P pairs: x0 [P,C,h,w], t [P], noise [P,C,h,w], the pair of every cell [B] and its row, a list."""
    import torch

    x0: list[Tensor] = []
    t: list[Tensor] = []
    noise: list[Tensor] = []
    pairs: list[np.ndarray] = []
    rows: list[int] = []
    for part in parts:
        pair, row = part.place
        seen = slice(int(pair[0]), int(pair[-1]) + 1)
        pairs.append(pair - pair[0] + sum(len(timesteps) for timesteps in t))
        rows += [part.rows[r] for r in row]
        t.append(part.t[seen])
        noise.append(part.noise(seen))
        x0.append(part.x0.expand(len(t[-1]), *part.x0.shape))
    device, latent = parts[0].x0.device, torch.from_numpy(np.concatenate(pairs))
    return torch.cat(x0), torch.cat(t).to(device), torch.cat(noise).to(device, torch.float32), latent.to(device), rows


# ---------------------------------------------------------------- images in flight


class InFlight(Generic[Key, Returned]):
    """An image in work: its classification, the cells it waits for, and the pieces in which they were evaluated so far."""

    cells: Cells  # from the first request on
    result: Returned  # once it has ended without a problem
    problem: Exception | None = None

    def __init__(self, key: Key, classification: Classification[Returned]):
        self.key, self.classification = key, classification
        self.pieces: list[Tensor] = []
        self.done = 0

    def advance(self) -> bool:
        """Sends the errors of its cells: whether it requests others. Else it has ended, with a result or a problem."""
        from diffusion.kernel import blocks

        try:
            if self.pieces:
                self.cells = self.classification.send(blocks.checked(self.cells.table(self.pieces)))
            else:
                self.cells = next(self.classification)
            self.pieces, self.done = [], 0
            return True
        except StopIteration as end:
            self.result = end.value
        except Exception as problem:
            self.problem = problem
        return False

    @property
    def left(self) -> int:
        """Cells that were not evaluated."""
        return len(self.cells) - self.done

    def next_part(self, most: int) -> Cells:
        """At most so many of these."""
        start, self.done = self.done, min(self.done + most, len(self.cells))
        return self.cells.part(start, self.done)

    def end(self) -> Returned:
        """What the classification returned. Raises what it raised."""
        if self.problem:
            raise self.problem
        return self.result


def together(
    classifications: Iterable[tuple[Key, Classification[Returned]]], n: int, size: Callable[[], int], evaluate: Evaluate
) -> Iterator[tuple[Key, Callable[[], Returned]]]:
    """Runs classifications, n at once, and yields (key, end) as they end: end() is what one returned, or raises what it raised.

    classifications: begun when there is room. size() is how many cells a call of the network has at most; evaluate(parts) ->
    their errors, one piece each, is given full calls, those first that have waited longest, and less only where all that is
    requested is less.
    """
    waiting: list[InFlight[Key, Returned]] = []  # in the order of their requests
    going: list[InFlight[Key, Returned]] = []
    classifications = iter(classifications)
    while True:
        while len(waiting) + len(going) < n and (begun := next(classifications, None)):
            going.append(InFlight(*begun))
        if not waiting + going:
            return
        ended: list[InFlight[Key, Returned]] = []
        for image in going:
            (waiting if image.advance() else ended).append(image)
        going = []
        yield from ((image.key, image.end) for image in ended)
        if not ended:  # else others may take their places first
            _evaluate_next(waiting, size(), evaluate)
            going = [image for image in waiting if not image.left]
            waiting = [image for image in waiting if image.left]


def _evaluate_next(waiting: list[InFlight[Key, Returned]], size: int, evaluate: Evaluate) -> None:
    """Evaluates what fills calls."""
    requested = sum(image.left for image in waiting)
    room, parts = requested // size * size or requested, []
    for image in waiting:
        if room:
            parts.append((image, image.next_part(room)))
            room -= len(parts[-1][1])
    for (image, _), piece in zip(parts, evaluate([part for _, part in parts]) if parts else (), strict=True):
        image.pieces.append(piece)
