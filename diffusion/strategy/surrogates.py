"""Guides of a race with many candidates: from the errors of those that were tried, what is to be expected of the others.

Numpy and scipy, on tables of numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion.strategy.elimination import Errors, Floats
from diffusion.strategy.fits import MOST

Expected = tuple[np.ndarray, np.ndarray]  # means and standard deviations, float64 [K] each


@dataclass(frozen=True)
class LinearGuide:
    """Errors as a linear function of what the network is told: ridge regression on features of the candidates, float [K,D].

    Embeddings of texts that share words are near each other, and errors of texts that share what is right are. The penalty is the
    one with the smallest leave-one-out error, which also is the deviation of what is expected (Allen 1974, PRESS).
    """

    features: np.ndarray

    PENALTIES = np.geomspace(1e-3, 1e3, 13)  # in units of the mean square of a feature

    def restrict(self, rows: Sequence[int]) -> "LinearGuide":
        """The guide for some of the candidates."""
        return LinearGuide(self.features[list(rows)])

    @property
    def distances(self) -> np.ndarray:
        """Between candidates, float64 [K,K]."""
        from scipy.spatial.distance import cdist

        return cdist(self.features, self.features)

    def expect(self, tried: Sequence[int], means: np.ndarray, counts: np.ndarray) -> Expected:
        """means, counts: [n] of the candidates `tried`: how far their errors lie above the best one's, on so many pairs each."""
        weights = np.sqrt(counts / counts.max())
        known = self.features[list(tried)]
        centre, middle = np.average(known, axis=0, weights=weights**2), np.average(means, weights=weights**2)
        x, y = (known - centre) * weights[:, None], (means - middle) * weights
        left, scale, right = np.linalg.svd(x, full_matrices=False)
        size = (scale**2).mean() or 1.0  # of one candidate alone nothing is fitted
        fits = [self._fit(left, scale, y, weights, penalty * size) for penalty in self.PENALTIES]
        error, shrunk = min(fits, key=lambda fit: fit[0])
        slope = right.T @ (shrunk * (left.T @ y))
        return middle + (self.features - centre) @ slope, np.full(len(self.features), error)

    def picked(self, order: Sequence[int], tried: Sequence[int], n: int) -> list[int]:
        """n of the untried rows in `order`, the most promising first."""
        return list(order[:n])

    @staticmethod
    def _fit(left: Floats, scale: Floats, y: Floats, weights: Floats, penalty: float) -> tuple[float, np.ndarray]:
        """The leave-one-out error with this penalty, and what multiplies the projections of y."""
        share = scale**2 / (scale**2 + penalty)
        influence = (left**2) @ share + weights**2 / (weights**2).sum()  # the mean is fitted too
        residual = (y - left @ (share * (left.T @ y))) / np.maximum(1 - influence, 1e-6)
        return float(np.sqrt((residual**2).mean())), scale / (scale**2 + penalty)


@dataclass(frozen=True)
class TreeGuide:
    """The nearest candidate of the tree that was tried stands for the others of its branch.

    distances: float [K,K], height of the smallest branch that holds both. The errors of two candidates are taken to differ by as
    much, in standard deviation, as a constant times their distance; the constant is that of all pairs that were tried.
    """

    distances: np.ndarray

    def restrict(self, rows: Sequence[int]) -> "TreeGuide":
        """The guide for some of the candidates."""
        return TreeGuide(self.distances[np.ix_(rows, rows)])

    def expect(self, tried: Sequence[int], means: np.ndarray, counts: np.ndarray) -> Expected:
        """Means and standard deviations, as in LinearGuide."""
        apart = (self.distances[np.ix_(tried, tried)] ** 2).sum()
        constant = np.sqrt(((means[:, None] - means) ** 2).sum() / apart) if apart else 0.0
        near = self.distances[:, list(tried)]
        # of several that are as near, the best one speaks for the branch
        nearest = np.lexsort((np.broadcast_to(means, near.shape), near), axis=1)[:, 0]
        return means[nearest], constant * near[np.arange(len(near)), nearest]

    def picked(self, order: Sequence[int], tried: Sequence[int], n: int) -> list[int]:
        """n of the untried rows, as in LinearGuide, but none to which a picked one is nearer than any that was tried."""
        near = self.distances[:, list(tried)].min(1)
        chosen: list[int] = []
        for row in order:
            if len(chosen) == n:
                break
            if not chosen or self.distances[row, chosen].min() >= near[row]:
                chosen.append(row)
        return chosen


Guide = LinearGuide | TreeGuide


@dataclass(frozen=True)
class Entrance:
    """Who enters an open race: those whose expected error, less `caution` standard deviations, is below that of the best,
    the most promising first, `width` at a time."""

    guide: Guide
    width: int
    caution: float

    def __call__(self, errors: dict[int, Floats], best: int) -> list[int]:
        tried = list(errors)
        above = np.array([(values - errors[best][: len(values)]).mean() for values in errors.values()])
        means, deviations = self.guide.expect(tried, above, np.array([len(values) for values in errors.values()]))
        low = means - self.caution * deviations
        low[tried] = np.inf
        order = [int(row) for row in np.argsort(low, kind="stable") if low[row] < 0]
        return self.guide.picked(order, tried, self.width)


def representatives(distances: np.ndarray, n: int) -> list[int]:
    """n candidates that lie among the others, ascending: of n clusters (Ward 1963) each the one nearest to its own. All where
    there are no more than n."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(distances) <= n:
        return list(range(len(distances)))
    cluster = fcluster(linkage(squareform(distances, checks=False), "ward"), n, "maxclust")
    members = [np.flatnonzero(cluster == c) for c in np.unique(cluster)]
    return sorted(int(group[(distances[np.ix_(group, group)] ** 2).sum(1).argmin()]) for group in members)


def principal(embeddings: np.ndarray, n: int) -> np.ndarray:
    """The n first principal components [K,n] of embeddings [K,D], fewer where there are no more."""
    left, scale, _ = np.linalg.svd(embeddings - embeddings.mean(0), full_matrices=False)
    return (left * scale)[:, :n].astype(np.float64)


def clustered(features: np.ndarray) -> np.ndarray:
    """`TreeGuide.distances` of clusters by their mean distances (UPGMA, Sokal and Michener 1958), float32 [K,K]."""
    from scipy.cluster.hierarchy import cophenet, linkage
    from scipy.spatial.distance import pdist, squareform

    if len(features) == 1:
        return np.zeros((1, 1), np.float32)
    return squareform(cophenet(linkage(pdist(features), "average"))).astype(np.float32)


# ---------------------------------------------------------------- trees


@dataclass(frozen=True)
class Branch:
    """A branch of a tree. height: above its leaves, which are numbers; parts: branches and leaves."""

    height: float
    parts: "tuple[Branch | int, ...]"

    @classmethod
    def of(cls, saved: Any) -> "Branch":
        """From JSON: {"height", "parts"}. Raises ValueError for what is none."""
        if not (isinstance(saved, dict) and set(saved) == {"height", "parts"} and isinstance(saved["parts"], list)):
            raise ValueError('a branch is {"height": ..., "parts": [...]}')
        height = saved["height"]
        if type(height) not in (int, float) or not 1 / MOST <= height <= MOST or not saved["parts"]:
            raise ValueError(f"a branch has the height {str(height)[:20]} and {len(saved['parts'])} parts")
        parts = tuple(part if type(part) is int else cls.of(part) for part in saved["parts"])
        if any(isinstance(part, cls) and part.height >= height for part in parts):
            raise ValueError(f"a branch of the height {height} has a part that is not lower")
        return cls(float(height), parts)

    @cached_property
    def leaves(self) -> list[int]:
        return [leaf for part in self.parts for leaf in (part.leaves if isinstance(part, Branch) else [part])]

    def check_leaves(self) -> None:
        """Raises ValueError for a leaf that the tree has twice."""
        if len(set(self.leaves)) < len(self.leaves):
            raise ValueError("it has a leaf twice")

    def distances(self, leaf_of: Sequence[int]) -> np.ndarray:
        """Distances between candidates, float32 [K,K]; leaf_of: the leaf of each. Two of one leaf are as far apart as two of
        the lowest branch.

        Raises ValueError for a leaf that the tree lacks or has twice.
        """
        self.check_leaves()
        place = {leaf: i for i, leaf in enumerate(self.leaves)}
        if lacking := sorted(set(leaf_of) - set(place)):
            raise ValueError(f"it lacks {len(lacking)} of the candidates' classes, such as {lacking[0]}")
        matrix = np.zeros((len(place), len(place)), np.float32)
        self._fill(matrix, 0)
        rows = [place[leaf] for leaf in leaf_of]
        matrix = matrix[np.ix_(rows, rows)]
        matrix[matrix == 0] = matrix[matrix > 0].min(initial=np.inf) if (matrix > 0).any() else 1
        np.fill_diagonal(matrix, 0)
        return matrix

    def _fill(self, matrix: Errors, start: int) -> int:
        """Writes this branch's height between its leaves, which are numbered from `start`, then its parts'; the next number."""
        stop = start + len(self.leaves)
        matrix[start:stop, start:stop] = self.height
        for part in self.parts:
            start = part._fill(matrix, start) if isinstance(part, Branch) else self._leaf(matrix, start)
        return stop

    @staticmethod
    def _leaf(matrix: Errors, start: int) -> int:
        matrix[start, start] = 0
        return start + 1
