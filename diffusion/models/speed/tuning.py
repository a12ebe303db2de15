"""What makes a network run fast on the device at hand: memory layout, memory itself, compilation, how many inputs fit."""

import ctypes
from collections.abc import Callable

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
CACHE_BYTES = 2**17  # of a call's latents in the network's dtype; a rule of thumb for CPUs, timed in docs/benchmarks.md
MOST = 256  # network inputs per call; the most that was timed, on a CPU: no GPU has been measured yet (docs/benchmarks.md)


def tune(network: torch.nn.Module, device: str) -> torch.nn.Module:
    """The network in channels_last, in which convolutions are fastest; it is changed in place.

    On CUDA the process may use TF32 for float32 products from now on; on a CPU it keeps the memory of its tensors.
    """
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    else:
        _keep_memory()
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                _keep_accurate(module)
    return network.to(memory_format=torch.channels_last)


def _keep_memory() -> None:
    """Keep glibc from giving the memory of freed tensors back: to get it again, page by page, takes a third of the time."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        mallopt(option, 2**31 - 1)


def _keep_accurate(norm: torch.nn.GroupNorm) -> None:
    """Make a GroupNorm run on contiguous tensors, in place: on a CPU it sums the squares of channels_last ones in one pass, which
    costs errors a digit (docs/tried.md)."""
    forward = norm.forward

    def contiguous(x):
        y = forward(x.contiguous())
        return y.to(memory_format=torch.channels_last) if x.dim() == 4 else y

    norm.forward = contiguous  # type: ignore[method-assign]


def compiled(function: Callable, device: str) -> Callable:
    """The function through torch.compile, for any number of inputs: a new number must not mean a compilation of a minute.

    On a CPU weights are frozen into the code, in the layout that its products want.
    """
    return torch.compile(function, dynamic=True, options=None if device.startswith("cuda") else {"freezing": True})


def largest_batch(fits: Callable[[int], None], device: str, latent_bytes: int, useful: int, likely: int = 1) -> int:
    """The largest number of network inputs per call that fits, a power of two.

    On a CPU, where nothing says that memory is short before the process is killed, the caches decide.

    Args:
        fits: runs the network on n inputs, and raises torch.OutOfMemoryError when they are too many.
        device: torch's name.
        latent_bytes: of one latent in the network's dtype.
        useful: inputs that are ever there at once; the result is not larger than the power of two that holds them.
        likely: what is tried first, a power of two; half of it where it does not fit, else twice as many.
    """
    most = min(MOST, 1 << (useful - 1).bit_length())
    if not device.startswith("cuda"):
        return min(most, max(1, CACHE_BYTES // latent_bytes))
    size = min(most, likely)
    if size > 1 and not _works(fits, size):
        while (size := size // 2) > 1 and not _works(fits, size):
            pass
        return size
    while size < most and _works(fits, 2 * size):
        size *= 2
    return size


def _works(fits: Callable[[int], None], n: int) -> bool:
    try:
        fits(n)
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()  # of what a call of another size left in pieces
