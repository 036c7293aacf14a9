"""Live memory, counted: the peak bytes of all tensors that exist at one time, on any device.

On `meta` nothing is computed or allocated, so the full size can be counted on a laptop in seconds. What a kernel
needs inside itself (workspaces) and what an allocator holds back are not in the count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the storages made under it, and forgets them when they die.

    Args:
        device: the kind of device whose storages are counted, such as 'cpu'; None is any.

    Attributes:
        live: bytes that exist now. peak: the most there were.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return result

    def ignore(self, module: torch.nn.Module) -> None:
        """Leave a module's own tensors out."""
        self._known.update(t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers()))

    def count(self, tensor: torch.Tensor) -> None:
        """Add a tensor's storage, if it is new and on the device."""
        if self.device is not None and tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        if key in self._known:
            self._known.remove(key)
            self.live -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as the fused kernels hold it: a result of the query's shape and nothing of sequence squared.

    On `meta`, torch would decompose it into the two products and count their matrix.
    """

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kw: Any) -> torch.Tensor:
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attention):
        yield


def count_peak(work: Callable[[], Any], *modules: torch.nn.Module) -> int:
    """Peak bytes of the tensors that `work` makes; not of the modules' weights, which views would bring in."""
    memory = LiveMemory()
    for module in modules:
        memory.ignore(module)
    with torch.no_grad(), fused_attention(), memory:
        work()
    return memory.peak
