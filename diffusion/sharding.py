"""Which images are evaluated, and which of them are mine."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion.files import fingerprint, one_line


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
    """A .npy file of dataset indices, in its order. Raises ValueError for anything else."""
    make = "make one with scripts/write_subset.py"
    if not Path(path).is_file():
        raise ValueError(f"--subset_path {path} {'is no file' if Path(path).exists() else 'does not exist'}: {make}")
    subset = _map_array(path, make)
    if subset.ndim != 1 or subset.dtype.kind not in "iu":  # a duration is an integer to numpy's issubdtype
        raise ValueError(f"--subset_path {path} holds {subset.dtype} {list(subset.shape)}, not a list of integers: {make}")
    if not subset.size:
        raise ValueError(f"--subset_path {path} holds no index, so that no image would be evaluated: {make}")
    outside = subset[(subset < 0) | (subset >= n_images)]
    if outside.size:
        raise ValueError(f"--subset_path {path} holds index {outside[0]}, but the dataset has {n_images} images: {make}")
    if len(np.unique(subset)) < len(subset):
        raise ValueError(f"--subset_path {path} names an image twice: {make}")
    return subset.tolist()


def _map_array(path: str, make: str) -> np.ndarray:
    """The array in a .npy file, mapped and not read, so that a header may ask for any size. Raises ValueError for other files."""
    try:
        with open(path, "rb") as file:
            if file.read(6) != b"\x93NUMPY":  # np.load reads zip archives and pickles too
                raise ValueError("it does not begin as one")
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # whatever a damaged header makes of the parser
        raise ValueError(f"--subset_path {path} is not a .npy file of indices ({one_line(error)}): {make}") from None


def subset_identity(path: str | None, n_images: int) -> str | None:
    """A hash of the indices in a subset file, whatever their order; None without one."""
    return fingerprint(sorted(read_subset(path, n_images))) if path else None


def shard(indices: list[int], worker_idx: int, n_workers: int) -> list[int]:
    """Every n_workers-th index from worker_idx on, as published: after the subset was applied."""
    return indices[worker_idx::n_workers]


# ---------------------------------------------------------------- what a launcher says


def launched_share(environment: Mapping[str, str]) -> tuple[int, int]:
    """(worker_idx, n_workers) by SLURM: an array's tasks, and in each those of srun; (0, 1) without SLURM.

    The processes of torchrun share their images among themselves, so that below it only the array counts. Raises ValueError
    for an array whose numbers are not evenly spaced.
    """
    element, elements = _array_task(environment)
    task, tasks = (0, 1) if "TORCHELASTIC_RUN_ID" in environment else _srun_task(environment)
    return element * tasks + task, elements * tasks


SPECIAL_STEP = 0xFFFFFFF0  # from here on SLURM numbers what is no srun's step: the shells of sbatch and salloc


def _srun_task(environment) -> tuple[int, int]:
    """This process among srun's. A shell of sbatch or salloc is told the job's tasks too, but is alone: it is in no step."""
    task = int(environment.get("SLURM_PROCID", 0))
    step = int(environment.get("SLURM_STEP_ID", SPECIAL_STEP))
    if "SLURM_JOB_ID" in environment and step >= SPECIAL_STEP and task == 0:
        return 0, 1
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1
    return (task, int(tasks)) if "SLURM_PROCID" in environment else (0, 1)


def _array_task(environment) -> tuple[int, int]:
    """This task's place in its array, whose numbers may start anywhere: --array=3-9:2 has four."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    number, first, last, count, step = (
        int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("MIN", 0), ("MAX", -1), ("COUNT", 1), ("STEP", 1))
    )
    place, off = divmod(number - first, step)
    if off or not 0 <= place < count or (last >= 0 and (last - first) // step != count - 1):
        raise ValueError(
            f"SLURM's array of {count} tasks from {first} is unevenly spaced, and so says nothing about shares of the images: "
            "use --array=0-7, or give --n_workers and --worker_idx"
        )
    return place, count
