"""Which candidates survive.

An elimination is a generator: it yields (rows, slice of pairs), is sent their errors [len(rows), len of the slice], and returns
its outcome. It therefore runs on a table of numbers as on a network, alone or beside those of other images.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

NEVER = np.empty(0, np.float32)  # errors of a candidate that was never tried

Request = tuple[list[int], slice]  # candidates, and the (timestep, noise) pairs on which their errors are wanted


def drive(requests: Generator, answer: Callable[[Any], Any]) -> Any:
    """What a generator of requests returns when each is answered by answer(request)."""
    reply = None
    while True:
        try:
            request = requests.send(reply)
        except StopIteration as end:
            return end.value
        reply = answer(request)


def relay(requests: Generator, answer: Callable[[Any], Generator]) -> Generator:
    """`drive` where answers are generators themselves: what answer(request) yields is yielded, what it returns is sent."""
    reply = None
    while True:
        try:
            request = requests.send(reply)
        except StopIteration as end:
            return end.value
        reply = yield from answer(request)


def means_of(errors: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of every candidate's errors, float64 [K], of K arrays [n]; inf of one that was never tried."""
    return np.array([own.mean(dtype=np.float64) if len(own) else np.inf for own in errors])


def run_stages(n_candidates: int, stages: Sequence[slice], to_keep: Sequence[int]) -> Generator[Request, Any, tuple]:
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


def append_errors(errors: dict[int, np.ndarray], rows: list[int], new) -> None:
    """Extends each row's errors by new ones, [len(rows), n]. Raises FloatingPointError when one is not finite."""
    new = np.asarray(new, np.float32)
    if not np.isfinite(new).all():
        raise FloatingPointError(f"{np.size(new) - np.isfinite(new).sum()} of {np.size(new)} errors are not finite")
    for row, values in zip(rows, new, strict=True):
        errors[row] = np.concatenate([errors[row], values])


def survivors(scores: dict[int, float], k: int) -> list[int]:
    """The k rows with the lowest scores, ascending by row; the lower row wins a tie."""
    return sorted(sorted(scores, key=lambda row: (scores[row], row))[:k])
