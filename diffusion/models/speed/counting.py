"""Memory that a call takes, counted operator by operator: on any device, also on tensors without data."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Context manager: counts the bytes of storages that operators inside make, from then until nobody holds them.

    Attributes:
        now, peak: their sum, and its largest value.
    """

    def __init__(self, *before: torch.Tensor):
        """before: tensors that were there, whose views are no new memory."""
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, int] = {_key(tensor): 0 for tensor in before}

    def __torch_dispatch__(self, func, types, inputs=(), named=None):
        output = func(*inputs, **(named or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and _key(tensor) not in self.alive:
                self._add(tensor)
        return output

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.alive[_key(tensor)] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, _key(tensor))

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def _key(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
