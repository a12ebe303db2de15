"""Which candidates survive. Works on a callback that returns errors, so it runs on a table of numbers as on a network."""

from collections.abc import Sequence

import numpy as np

NEVER = np.empty(0, np.float32)  # errors of a candidate that was never tried


def means_of(errors: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of every candidate's errors, float64 [K], of K arrays [n]; inf of one that was never tried."""
    return np.array([own.mean(dtype=np.float64) if len(own) else np.inf for own in errors])


def run_stages(evaluate, n_candidates: int, stages, to_keep: Sequence[int]) -> tuple[dict[int, np.ndarray], int]:
    """The paper's adaptive strategy (section 3.3, algorithm 2).

    evaluate(rows, pairs) returns the errors [len(rows), len of the slice] of these candidates on these pairs; stages are the
    slices of a Plan. After a stage a candidate's score is the mean of all its errors so far and the k lowest survive, the lower
    row at a tie. Returns every candidate's errors in order of evaluation, by ascending row, and the winning row.
    Raises FloatingPointError when an error is not finite: no candidate may win by being NaN.
    """
    alive = list(range(n_candidates))
    errors = dict.fromkeys(alive, NEVER)
    for pairs, k in zip(stages, to_keep, strict=True):
        # a stage may add nothing: thinned grids overlap, so 50 50 or 4 5 6 8 are answered by what is known
        if pairs.stop > pairs.start:
            append_errors(errors, evaluate, alive, pairs)
        alive = survivors({row: errors[row].mean(dtype=np.float64) for row in alive}, k)
    return errors, alive[0]


def append_errors(errors: dict[int, np.ndarray], evaluate, rows: list[int], pairs: slice) -> None:
    """Extends each row's errors by those on these pairs. Raises FloatingPointError when one is not finite."""
    new = np.asarray(evaluate(rows, pairs), np.float32)
    if not np.isfinite(new).all():
        raise FloatingPointError(f"{np.size(new) - np.isfinite(new).sum()} of {np.size(new)} errors are not finite")
    for row, values in zip(rows, new, strict=True):
        errors[row] = np.concatenate([errors[row], values])


def survivors(scores: dict[int, float], k: int) -> list[int]:
    """The k rows with the lowest scores, ascending by row; the lower row wins a tie."""
    return sorted(sorted(scores, key=lambda row: (scores[row], row))[:k])
