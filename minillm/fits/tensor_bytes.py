"""Bytes of all tensors that are alive, and their peak: of real tensors, and of fake ones without values.

Unlike resident memory it has no libraries, no compiled kernels and nothing that an allocator keeps.  A
storage counts from the operation that makes it, or first reads it, to its end.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorBytes(TorchDispatchMode):
    """Inside, `now` and `peak` are bytes that are alive; storages of exactly `apart` bytes are left out.

    Without `inputs` only what operations make is counted, and what is given to `follow`: faster.
    `operations` counts those by name that make a storage: a GPU starts about one kernel for each.
    """

    def __init__(self, apart: tuple[int, ...] = (), inputs: bool = True) -> None:
        super().__init__()
        self.inputs = inputs
        self.now = self.peak = 0
        self.apart: Counter[int] = Counter(dict.fromkeys(apart, 0))
        self.operations: Counter[str] = Counter()
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.inputs:
            self._follow((args, kwargs))
        result = func(*args, **(kwargs or {}))
        before = len(self._alive)
        self._follow(result)
        mutates = func._schema.is_mutable
        if len(self._alive) > before or mutates:
            self.operations[str(func)] += 1
        self.peak = max(self.peak, self.now)
        return result

    def follow(self, values: Any) -> None:
        """Count all tensors in a nested structure, which were made before."""
        self._follow(values)
        self.peak = max(self.peak, self.now)

    def restart(self) -> int:
        """Take the peak from here on; returns what is alive."""
        self.peak = self.now
        return self.now

    def _follow(self, values: Any) -> None:
        for leaf in [values] if isinstance(values, torch.Tensor) else tree_leaves(values):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self._add(leaf)

    def _add(self, tensor: torch.Tensor) -> None:
        # Weights that oneDNN has laid out have no storage.
        laid_out = tensor.layout == torch._mkldnn  # type: ignore[attr-defined]
        owner: Any = tensor if laid_out else tensor.untyped_storage()
        size = tensor.numel() * tensor.itemsize if laid_out else owner.nbytes()
        if not size or id(owner) in self._alive:
            return
        if size in self.apart:
            self.apart[size] += 1
            return
        self._alive.add(id(owner))
        self.now += size
        weakref.finalize(owner, self._ended, id(owner), size)

    def _ended(self, owner: int, size: int) -> None:
        self._alive.discard(owner)
        self.now -= size
