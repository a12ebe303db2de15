"""Which images are evaluated, and which of them are mine."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion.utils.files import fingerprint, one_line


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
    try:
        subset = _read_integers(path, n_images)
        _check_indices(subset, n_images)
    except (OSError, ValueError) as error:
        raise ValueError(f"--subset_path {path} {one_line(error)}: {make}") from None
    return subset.tolist()


def _read_integers(path: str, most: int) -> np.ndarray:
    """The list in a .npy file. Its header says how long it is: more than `most` are refused before they are read."""
    with open(path, "rb") as file:
        shape, dtype = _read_header(file)
        if len(shape) != 1 or dtype.kind not in "iu":  # a duration is an integer to numpy's issubdtype
            raise ValueError(f"holds {dtype} {list(shape)}, not a list of integers")
        if shape[0] < 1:
            raise ValueError("holds no index, so that no image would be evaluated")
        if shape[0] > most:
            raise ValueError(f"holds {shape[0]} indices, but the dataset has {most} images")
        data = file.read(shape[0] * dtype.itemsize)
    if len(data) < shape[0] * dtype.itemsize:
        raise ValueError(f"is cut off: it ends before its {shape[0]} indices do")
    return np.frombuffer(data, dtype)


def _read_header(file) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, dtype) of a .npy file; np.load would also open archives and pickles."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except Exception as error:  # whatever a foreign header makes of numpy's parser
        raise ValueError(f"is not a .npy file of indices ({one_line(error)})") from error
    return shape, dtype


def _check_indices(subset: np.ndarray, n_images: int) -> None:
    outside = subset[(subset < 0) | (subset >= n_images)]
    if outside.size:
        raise ValueError(f"holds index {outside[0]}, but the dataset has {n_images} images")
    if len(np.unique(subset)) < len(subset):
        raise ValueError("names an image twice")


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


def _number(environment, name: str, default: int) -> int:
    """Raises ValueError for what is no integer; an empty variable is one that is not there."""
    try:
        return int(environment.get(name) or default)
    except ValueError:
        raise ValueError(f"{name}={environment[name]} is no integer: unset it, or give --n_workers and --worker_idx") from None


def _srun_task(environment) -> tuple[int, int]:
    """This process among srun's. A shell of sbatch or salloc is told the job's tasks too, but is alone: it is in no step."""
    task, step = _number(environment, "SLURM_PROCID", 0), _number(environment, "SLURM_STEP_ID", SPECIAL_STEP)
    if "SLURM_JOB_ID" in environment and step >= SPECIAL_STEP and task == 0:
        return 0, 1
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 0) or _number(environment, "SLURM_NTASKS", 1)
    return (task, tasks) if "SLURM_PROCID" in environment else (0, 1)


def _array_task(environment) -> tuple[int, int]:
    """This task's place in its array, whose numbers may start anywhere: --array=3-9:2 has four."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    number, first, last, count, step = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}", default)
        for name, default in (("ID", 0), ("MIN", 0), ("MAX", -1), ("COUNT", 1), ("STEP", 1))
    )
    place, off = divmod(number - first, step)
    if off or not 0 <= place < count or (last >= 0 and (last - first) // step != count - 1):
        raise ValueError(
            f"SLURM's array of {count} tasks from {first} is unevenly spaced, and so says nothing about shares of the images: "
            "use --array=0-7, or give --n_workers and --worker_idx"
        )
    return place, count
