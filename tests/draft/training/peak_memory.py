"""Peak bytes of the tensors that a computation makes, counted by their storages.

Sees every tensor that a torch operator returns, on any device, the meta device included, where
full-size shapes cost nothing; not the scratch inside one operator.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """``with PeakMemory() as memory: ...``; then ``memory.peak``."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            if id(storage) in before or storage in self._seen:
                continue
            size = storage.nbytes()
            self._seen.add(storage)
            self.live += size
            self.largest = max(self.largest, size)
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, size)
        return result

    def _freed(self, size: int) -> None:
        self.live -= size
