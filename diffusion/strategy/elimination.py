"""Which candidates survive.

An elimination is a generator: it yields (rows, slice of pairs), is sent their errors [len(rows), len of the slice], and returns
its outcome. It therefore runs on a table of numbers as on a network, alone or beside those of other images.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Errors = npt.NDArray[np.float32]  # [n] of a candidate, in order of evaluation
Floats = npt.NDArray[np.float64]
NEVER: Errors = np.empty(0, np.float32)  # errors of a candidate that was never tried

Request = tuple[list[int], slice]  # candidates, and the (timestep, noise) pairs on which their errors are wanted

Requested = TypeVar("Requested")
Reply = TypeVar("Reply")
Returned = TypeVar("Returned")
Yielded = TypeVar("Yielded")
Sent = TypeVar("Sent")


def drive(requests: Generator[Requested, Reply, Returned], answer: Callable[[Requested], Reply]) -> Returned:
    """What a generator of requests returns when each is answered by answer(request)."""
    reply: Any = None  # which starts a generator, whatever it is sent later
    while True:
        try:
            request = requests.send(reply)
        except StopIteration as end:
            return end.value
        reply = answer(request)


def relay(
    requests: Generator[Requested, Reply, Returned], answer: Callable[[Requested], Generator[Yielded, Sent, Reply]]
) -> Generator[Yielded, Sent, Returned]:
    """`drive` where answers are generators themselves: what answer(request) yields is yielded, what it returns is sent."""
    reply: Any = None  # which starts a generator, whatever it is sent later
    while True:
        try:
            request = requests.send(reply)
        except StopIteration as end:
            return end.value
        reply = yield from answer(request)


def means_of(errors: Sequence[Errors]) -> Floats:
    """Mean of every candidate's errors, float64 [K], of K arrays [n]; inf of one that was never tried."""
    return np.array([row.mean(dtype=np.float64) if len(row) else np.inf for row in errors])


def run_stages(
    n_candidates: int, stages: Sequence[slice], to_keep: Sequence[int]
) -> Generator[Request, npt.ArrayLike, tuple[dict[int, Errors], int]]:
    """The paper's adaptive strategy (section 3.3, algorithm 2), as a generator of requests.

    stages are the slices of a Plan. After a stage a candidate's score is the mean of all its errors so far and the k lowest
    survive, the lower row at a tie. Returns every candidate's errors {row: float32 [n]} in order of evaluation, by ascending row,
    and the winning row. Raises FloatingPointError when an error is not finite: no candidate may win by being NaN.
    """
    alive = list(range(n_candidates))
    errors = dict.fromkeys(alive, NEVER)
    for pairs, k in zip(stages, to_keep, strict=True):
        # a stage may add nothing: thinned grids overlap, so 50 50 or 4 5 6 8 are answered by what is known
        if pairs.stop > pairs.start:
            append_errors(errors, alive, (yield alive, pairs))
        alive = survivors({row: errors[row].mean(dtype=np.float64) for row in alive}, k)
    return errors, alive[0]


def append_errors(errors: dict[int, Errors], rows: list[int], new: npt.ArrayLike) -> None:
    """Extends each row's errors by new ones, [len(rows), n]. Raises FloatingPointError when one is not finite."""
    new = np.asarray(new, np.float32)
    if not np.isfinite(new).all():
        raise FloatingPointError(f"{np.size(new) - np.isfinite(new).sum()} of {np.size(new)} errors are not finite")
    for row, values in zip(rows, new, strict=True):
        errors[row] = np.concatenate([errors[row], values])


def survivors(scores: Mapping[int, float], k: int) -> list[int]:
    """The k rows with the lowest scores, ascending by row; the lower row wins a tie."""
    return sorted(sorted(scores, key=lambda row: (scores[row], row))[:k])
