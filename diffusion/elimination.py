"""Which candidates survive. Works on a callback that returns errors, so it runs on a table of numbers as on a network."""

from collections.abc import Callable, Sequence

import numpy as np


def run_stages(evaluate, n_candidates: int, stages, to_keep: Sequence[int]) -> tuple[dict[int, np.ndarray], int]:
    """The paper's adaptive strategy (section 3.3, algorithm 2).

    evaluate(rows, pairs) returns the errors [len(rows), len of the slice] of these candidates on these pairs; stages are the
    slices of a Plan. After a stage a candidate's score is the mean of all its errors so far and the k lowest survive, the lower
    row at a tie. Returns every candidate's errors in order of evaluation, by ascending row, and the winning row.
    Raises FloatingPointError when an error is not finite: no candidate may win by being NaN.
    """
    alive = list(range(n_candidates))
    errors = {row: np.empty(0, np.float32) for row in alive}
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


# ---------------------------------------------------------------- a statistical race


def run_race(
    evaluate, class_of: list[int], t, alpha: float, round_size: Callable
) -> tuple[dict[int, np.ndarray], int, dict[int, int]]:
    """Candidates are dropped when their error is significantly above the best one's, until one class remains or no pair is left.

    All candidates see the same (timestep, noise) pairs, so their errors are strongly correlated and only paired differences count
    (Clark and Jaini 2023, section 3; Baharav and Tse 2019, arXiv 1906.04356, on shared samples). evaluate(rows, pairs) is that of
    `run_stages`; class_of names each row's class, as rows of one class do not have to be told apart; t [S] are the timesteps of
    all pairs in order of evaluation, every beginning of which covers them evenly. alpha: level of the tests of one round, shared
    by the comparisons with all others (Bonferroni); round_size(seen, n_alive): how many pairs the next round has, a function of
    these two alone, so that results do not depend on the batch size. Returns every candidate's errors in order of evaluation, the
    winning row (lowest mean, the lower row at a tie), and the round in which each was dropped.
    Raises FloatingPointError when an error is not finite.
    """
    alive, t = list(range(len(class_of))), np.asarray(t)
    errors = {row: np.empty(0, np.float32) for row in alive}
    fell: dict[int, int] = {}
    seen = number = 0
    while seen < len(t) and len({class_of[row] for row in alive}) > 1:
        pairs = slice(seen, min(len(t), seen + round_size(seen, len(alive))))
        append_errors(errors, evaluate, alive, pairs)
        seen, number = pairs.stop, number + 1
        losers = clearly_worse({row: errors[row] for row in alive}, class_of, t, alpha / (len(class_of) - 1))
        fell |= dict.fromkeys(losers, number)
        alive = [row for row in alive if row not in fell]
    return errors, survivors({row: errors[row].mean(dtype=np.float64) for row in alive}, 1)[0], fell


def clearly_worse(errors: dict[int, np.ndarray], class_of: list[int], t, level: float) -> list[int]:
    """Rows of other classes than the best row's, whose mean paired difference to it is above zero at this level.

    errors: row -> [n], the same n for all, of the first n of the pairs t [S]. One-sided t test of what the differences' mean over
    all pairs will be; without at least two pairs nothing is clear.
    """
    from scipy.stats import t as student

    best = survivors({row: e.mean(dtype=np.float64) for row, e in errors.items()}, 1)[0]
    others = [row for row in errors if class_of[row] != class_of[best]]
    n = len(errors[best])
    if n < 2 or not others:
        return []
    differences = np.stack([errors[row] for row in others]).astype(np.float64) - errors[best]
    limit = student.isf(level, n - 1) * systematic_error(differences, t)
    return [row for row, above in zip(others, differences.mean(1) > limit, strict=True) if above]


def systematic_error(values, t):
    """Standard error of the mean of the first n of S values as an estimate of the mean of all S: [...] for values [..., n].

    t: [S] timesteps in order of evaluation. A beginning of that order is a systematic sample of a smooth curve, so what counts is
    not how far values spread over t but how far neighbours in t differ; and nothing is left to chance once all have been seen
    (Wolter 2007, Introduction to Variance Estimation, section 8.2, the estimator of successive differences).
    """
    n, total = values.shape[-1], len(t)
    steps = np.diff(values[..., np.argsort(t[:n], kind="stable")], axis=-1)
    return np.sqrt((1 - n / total) * (steps**2).sum(-1) / (2 * (n - 1) * n))
