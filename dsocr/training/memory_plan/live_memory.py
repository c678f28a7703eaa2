"""Count the bytes of live tensors, real or fake: a step's exact need, independent of the allocator."""

import weakref
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class LiveMemory(TorchDispatchMode):
    """Count every storage created while this mode is active, until it is freed.

    Tensors on the meta device have no memory and do not count; temporaries inside one operation are not seen. It works
    under `FakeTensorMode`, which allocates nothing.

    Attributes:
        live: Bytes alive now.
        peak: Most bytes alive at once since `restart_peak`.
    """

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def _release(self, size: int) -> None:
        self.live -= size

    def follow(self, tensors: Iterable[torch.Tensor]) -> int:
        """Count tensors that already exist (weights, inputs); returns the added bytes."""
        before = self.live
        for tensor in tensors:
            if tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            if storage not in self._known:
                size = storage.nbytes()
                self._known[storage] = size
                weakref.finalize(storage, self._release, size)
                self.live += size
        self.peak = max(self.peak, self.live)
        return self.live - before

    def restart_peak(self) -> None:
        """Begin a new phase: forget the peak."""
        self.peak = self.live

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, lambda tensor: self.follow([tensor]), result)
        return result
