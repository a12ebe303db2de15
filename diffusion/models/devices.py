"""Which device and which number format, found without importing torch where that is possible: a dry run should be quick."""

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path

DTYPES = ("float16", "bfloat16", "float32")


def resolve_device(name: str | None) -> str:
    """The device asked for, else cuda if there is one, else cpu. Raises ValueError when PyTorch cannot use it here."""
    if name == "cpu" or (name is None and not _may_have_gpu()):
        return "cpu"
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # PyTorch raises either for a device that it was built without
        raise ValueError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}): try --device cpu") from None
    return name


def _may_have_gpu() -> bool:
    """False where the drivers that PyTorch needs are not there: no need to ask it."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # the latter is AMD's
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def resolve_dtype(name: str, device: str) -> str:
    """`auto` is float16 on CUDA and float32 elsewhere."""
    return ("float16" if device.startswith("cuda") else "float32") if name == "auto" else name


def torch_dtype(name: str):
    """torch's dtype of a name in DTYPES."""
    import torch

    return getattr(torch, name)


def local_gpu(environment: Mapping[str, str]) -> str | None:
    """`cuda:N` for a launcher's N-th process on this machine; None without a launcher and without CUDA.

    A process that was given one GPU by SLURM sees only that, as cuda:0.
    """
    place = environment.get("LOCAL_RANK" if "TORCHELASTIC_RUN_ID" in environment else "SLURM_LOCALID")
    if place is None:
        return None
    import torch

    n_gpus = torch.cuda.device_count()
    return f"cuda:{int(place) % n_gpus}" if n_gpus else None
