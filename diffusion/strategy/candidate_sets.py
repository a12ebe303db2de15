"""Which candidates compete for which image, where not all do for every one."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Images(Protocol):
    """What is asked of a datasets.ImageData."""

    @property
    def n_candidates(self) -> int | None: ...

    def __len__(self) -> int: ...

    def candidates(self, index: int) -> Sequence[int] | np.ndarray: ...


@dataclass(frozen=True)
class Proposals:
    """labels_of: index of an image -> the labels that compete for it; size: how many these are at most; class_of: label of each
    candidate, of which a label may have several."""

    labels_of: Callable[[int], Sequence[int] | np.ndarray]
    size: int
    class_of: Sequence[int]

    def rows(self, index: int) -> list[int]:
        """Rows of the candidates that compete for this image, ascending."""
        labels = set(map(int, self.labels_of(index)))
        return [row for row, label in enumerate(self.class_of) if label in labels]

    @property
    def n_candidates(self) -> int:
        """The most that an image can have."""
        return most_candidates(self.class_of, self.size)


def most_candidates(class_of: Sequence[int], size: int) -> int:
    """How many candidates `size` labels have at most."""
    return sum(n for _, n in Counter(class_of).most_common(size))


def of_dataset(dataset: Images, class_of: Sequence[int]) -> Proposals | None:
    """The candidates of a set whose images have their own (datasets.ImageData); None for others.

    Raises ValueError where no prompt is of such a candidate.
    """
    if dataset.n_candidates is None:
        return None
    lacking = {int(label) for index in range(len(dataset)) for label in dataset.candidates(index)} - set(class_of)
    if lacking:
        raise ValueError(f"--prompt_path has no prompt of class {min(lacking)}, a candidate of this data set's images")
    return Proposals(dataset.candidates, dataset.n_candidates, class_of)
