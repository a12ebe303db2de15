"""What trainings on several folds say together: accuracy on classes that each left out, on the others, and the harmonic mean."""

from dataclasses import dataclass

import numpy as np

from diffusion.metrics.accuracy import Interval

DRAWS = 10_000


@dataclass(frozen=True)
class FoldScores:
    """Of one kind of model: in percent of 1, each with an interval over trainings and the classes in them.

    harmonic: 2 unseen seen / (unseen + seen), the score of generalised zero-shot learning.
    """

    unseen: Interval
    seen: Interval
    harmonic: Interval


def draw_folds(held_out, seed: int = 0, draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a bootstrap over trainings, and over the classes in each: what is compared takes the same draws.

    A class is drawn among the unseen or the seen ones of its training. Five trainings are few: the interval is likelier to be too
    narrow than too wide.

    Args:
        held_out: booleans [F,C], which classes each training left out.
        seed: of the draws.
        draws: how many.

    Returns:
        unseen and seen, float64 [draws,F,C]: each sums to 1 over both; the first row of each is the sample itself.
    """
    rng = np.random.default_rng(seed)
    held_out = np.asarray(held_out, bool)
    n_folds = len(held_out)
    of_folds = np.concatenate([np.ones((1, n_folds)), rng.multinomial(n_folds, [1 / n_folds] * n_folds, draws)])
    parts = []
    for part in (held_out, ~held_out):
        weights = np.zeros((draws + 1, *held_out.shape))
        for fold, row in enumerate(part):
            n = row.sum()
            counts = np.concatenate([np.ones((1, n)), rng.multinomial(n, [1 / n] * n, draws)])
            weights[:, fold, row] = of_folds[:, fold, None] * counts / (n * n_folds)
        parts.append(weights)
    return parts[0], parts[1]


def fold_scores(accuracies, unseen: np.ndarray, seen: np.ndarray) -> FoldScores:
    """Means over trainings and classes, with percentile intervals of a bootstrap.

    Args:
        accuracies: float [F,C] of each training on each class; of two kinds their differences, for which harmonic means nothing.
        unseen, seen: as `draw_folds` gives them.
    """
    means = [np.einsum("dfc,fc->d", part, np.asarray(accuracies, float)) for part in (unseen, seen)]
    with np.errstate(invalid="ignore", divide="ignore"):
        harmonic = np.nan_to_num(2 * means[0] * means[1] / (means[0] + means[1]))
    return FoldScores(*(interval(draws) for draws in (*means, harmonic)))


def interval(draws: np.ndarray) -> Interval:
    """The first draw, which is the sample's own, with the middle 95 % of the others."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high))
