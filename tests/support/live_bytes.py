"""Counts the bytes of tensors that live, as a caching allocator would: on the meta device, so for any size of model."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING = 512
"""Bytes to which torch's CUDA allocator rounds a tensor."""


class LiveBytes(TorchDispatchMode):
    """While it is active, every operation's new tensors count until nothing holds them.

    Args:
        before: tensors that are there already and never count, nor do views of them.
        workspace: bytes that an operation, called with these arguments, has inside while its result is there.

    Attributes:
        now: bytes that live.
        peak: the most there were.
    """

    def __init__(self, before: Iterable[torch.Tensor], workspace: Callable[[str, Any], int]) -> None:
        super().__init__()
        self._workspace = workspace
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now + self._workspace(str(func), args))
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._seen.discard(key)
