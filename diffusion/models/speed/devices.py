"""Which device, how much memory, which number format: without importing torch where that is possible, so a dry run is quick."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DTYPES = ("float16", "bfloat16", "float32")


def resolve_device(name: str | None) -> str:
    """The device to run on.

    Args:
        name: torch's name; None: cuda if there is one, else cpu.

    Raises:
        ValueError: PyTorch cannot compute on it here.
    """
    if name == "cpu" or (name is None and not _may_have_gpu()):
        return "cpu"
    if "torch" not in sys.modules:
        log.info("Loading PyTorch ...")
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a driver or GPU that does not do: whether it does is tried
            (torch.ones(1, device=name) + 1).item()  # meta makes tensors, too, but computes nothing
    except Exception as error:  # every backend that is not there has its own way of saying so
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise ValueError(f"--device {name} cannot be used here ({reason[:160]}): try --device cpu") from None
    return name


def memory(device: str) -> int | None:
    """The whole memory of a device in bytes; None where it is not known."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.startswith("cpu") else None
    except (AttributeError, OSError, ValueError):  # not a Unix
        return None


def n_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_memory(n_bytes: int, device: str, what: str, advice: str) -> None:
    """Check, before anything is allocated, that something fits into a device's memory.

    Args:
        n_bytes: what it takes at least.
        device: torch's name.
        what, advice: what it is and what to do, for the error.

    Raises:
        ValueError: the device has less memory.
    """
    most = memory(device)
    if most is not None and n_bytes > most:
        sizes = f"at least {n_bytes / 1e9:,.1f} GB of memory, and {device} has {most / 1e9:,.1f} GB"
        raise ValueError(f"{what} takes {sizes}: {advice}")


def _may_have_gpu() -> bool:
    """Whether PyTorch could find a GPU: False where the drivers that it needs are not there."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # the latter is AMD's
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def resolve_dtype(name: str, device: str) -> str:
    """torch's name of a number format; `auto` is float16 on CUDA and float32 elsewhere."""
    return ("float16" if device.startswith("cuda") else "float32") if name == "auto" else name


def torch_dtype(name: str) -> "torch.dtype":
    """The torch.dtype of a name in DTYPES."""
    import torch

    return getattr(torch, name)


def local_gpu(environment: Mapping[str, str]) -> str | None:
    """The GPU of a launcher's process: `cuda:N` of the N-th one on this machine; None without a launcher and without CUDA.

    A process that was given one GPU by SLURM sees only that, as cuda:0.

    Args:
        environment: the variables of torchrun or SLURM.
    """
    place = environment.get("LOCAL_RANK" if "TORCHELASTIC_RUN_ID" in environment else "SLURM_LOCALID")
    if place is None:
        return None
    import torch

    n_gpus = torch.cuda.device_count()
    return f"cuda:{int(place) % n_gpus}" if n_gpus else None
