"""What makes a network run fast on the device at hand: memory layout, compilation, how many inputs fit."""

from collections.abc import Callable

import torch

CACHE_ELEMENTS = 2**15  # latent elements of a call that keep a CPU's caches busy and not overrun (docs/tried.md)
MOST = 256  # network inputs a call: a larger one gains nothing on the cards of today


def tune(network, device: str):
    """The network in channels_last, in which convolutions are fastest; float32 products on CUDA may use TF32."""
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    else:
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                _keep_accurate(module)
    return network.to(memory_format=torch.channels_last)


def _keep_accurate(norm: torch.nn.GroupNorm) -> None:
    """On a CPU a GroupNorm sums squares in one pass over channels_last, which costs errors a digit (docs/tried.md)."""
    forward = norm.forward

    def contiguous(x):
        y = forward(x.contiguous())
        return y.to(memory_format=torch.channels_last) if x.dim() == 4 else y

    norm.forward = contiguous


def compiled(network: Callable, batch) -> Callable:
    """network(x_t [B,C,h,w], t [B], cond [B,...]) through torch.compile, always at batch.size inputs: smaller ones are padded.

    A new shape would mean a new compilation of minutes.
    """
    fast = torch.compile(network, dynamic=False)

    def run(*inputs):
        n = len(inputs[0])
        padded = [torch.cat([x, x[-1:].expand(batch.size - n, *x.shape[1:])]) for x in inputs]
        return fast(*padded)[:n]

    return run


def largest_batch(fits: Callable[[int], None], device: str, latent_elements: int, useful: int) -> int:
    """The largest power of two that fits, and is not more than `useful` needs.

    fits(n) runs the network on n inputs and raises torch.OutOfMemoryError when they are too many. On a CPU, where nothing says
    that memory is short before the process is killed, the caches decide.
    """
    most = min(MOST, 1 << (useful - 1).bit_length())
    if not device.startswith("cuda"):
        return min(most, max(1, CACHE_ELEMENTS // latent_elements))
    size = 1
    while size < most:
        try:
            fits(2 * size)
        except torch.OutOfMemoryError:
            break
        size *= 2
    torch.cuda.empty_cache()
    return size
