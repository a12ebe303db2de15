"""Which images are evaluated, and which of them are mine."""

from pathlib import Path

import numpy as np


def select(n_images: int, subset_path: str | None, imgs_to_eval: int | None, seed: int | None) -> list[int]:
    """Indices to evaluate, over all workers: everything, a file's indices, or some of either.

    Those are a seeded random choice, or without a seed the first ones. A larger imgs_to_eval adds to the choice of a smaller
    one, so a run can grow. Raises ValueError for a missing or unreadable file and for indices outside the dataset.
    """
    indices = read_subset(subset_path, n_images) if subset_path else list(range(n_images))
    if imgs_to_eval is None or imgs_to_eval >= len(indices):
        return indices
    if seed is None:
        return indices[:imgs_to_eval]
    chosen = np.random.default_rng(seed).permutation(len(indices))[:imgs_to_eval]
    return [indices[i] for i in sorted(chosen)]


def read_subset(path: str, n_images: int) -> list[int]:
    """A .npy file of dataset indices, in its order."""
    make = "make one with scripts/write_subset.py"
    if not Path(path).is_file():
        raise ValueError(f"--subset_path {path} does not exist: {make}")
    try:
        subset = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"--subset_path {path} is not a .npy file of indices ({error}): {make}") from None
    if subset.ndim != 1 or not np.issubdtype(subset.dtype, np.integer):
        raise ValueError(f"--subset_path {path} holds {subset.dtype} {list(subset.shape)}, not a list of integers: {make}")
    outside = [int(i) for i in subset if not 0 <= i < n_images]
    if outside:
        raise ValueError(f"--subset_path {path} holds index {outside[0]}, but the dataset has {n_images} images: {make}")
    if len(np.unique(subset)) < len(subset):
        raise ValueError(f"--subset_path {path} names an image twice: {make}")
    return subset.tolist()


def shard(indices: list[int], worker_idx: int, n_workers: int) -> list[int]:
    """Every n_workers-th index from worker_idx on, as published: after the subset was applied."""
    return indices[worker_idx::n_workers]
