"""A note after the first images where few timesteps decide everything, as a model's first level may whose errors are huge."""

import logging
from collections.abc import Sequence

import numpy as np

log = logging.getLogger(__name__)

IMAGES = 10  # after which the note comes
FEW = 0.05  # of the timesteps that were seen
MOST = 0.6  # of the variance: the shipped models have 0.1 to 0.3 in so few


class Watch:
    """Adds up, over images, where the differences between each candidate's errors and the winner's vary.

    A mean over timesteps is as sure as its noisiest ones let it be: of differences with one level 50 times as noisy as the other
    249, a race needs ten times as many, and drops candidates by chance of that one level.
    """

    def __init__(self, n_levels: int):
        self.by_level, self.counts, self.images = np.zeros(n_levels), np.zeros(n_levels, int), 0

    def add(self, compared: Sequence[np.ndarray], winner: int, t: np.ndarray) -> None:
        """Counts an image by its Result's parts of these names; logs the note, where it is due, with the last one that counts."""
        if self.images >= IMAGES:
            return
        best = _deciding(compared[winner])
        for row, errors in enumerate(compared):
            n = min(len(errors), len(best))
            if row != winner and n > 1:
                self._add_row(_deciding(errors)[:n] - best[:n], t[:n])
        self.images += 1
        if self.images == IMAGES and (note := self.note()):
            log.info("%s", note)

    def _add_row(self, differences: np.ndarray, t: np.ndarray) -> None:
        squares = (differences - np.median(differences)) ** 2
        if squares.sum() > 0:
            np.add.at(self.by_level, t, squares / squares.mean())
            np.add.at(self.counts, t, 1)

    def note(self) -> str | None:
        """The line, or None where the variance is spread."""
        seen = np.flatnonzero(self.counts)
        means = self.by_level[seen] / self.counts[seen]
        n = max(1, round(FEW * len(seen)))
        few = np.argsort(-means)[:n]
        share = means[few].sum() / means.sum() if len(seen) > n and means.sum() > 0 else 0.0
        if share < MOST:
            return None
        which = ", ".join(map(str, sorted(seen[few])[:5])) + (", ..." if n > 5 else "")
        advice = "try another --error_space, --levels of a flow, or --level_weights (docs/own_model.md)"
        return (
            f"Note: {n} of the {len(seen)} timesteps seen ({which}) have {100 * share:.0f} % of the variance of differences "
            f"between candidates, and drown what the others say: {advice}"
        )


def _deciding(errors: np.ndarray) -> np.ndarray:
    """Of a DiT's four numbers the first, squared errors; float64 [n]."""
    return np.asarray(errors if errors.ndim == 1 else errors[:, 0], np.float64)
