"""Weights that come to the device piece by piece: while one piece works, the next one is copied.

The device holds two buffers of the size of the largest piece. Before a piece works, its parameters become views of
the buffer that its weights are in, and the copy of the following piece into the other buffer begins, on CUDA on a
stream of its own; afterwards its parameters are those of the host again. Events say when a buffer is full and when it
may be overwritten; the host never waits.

On CUDA the host's weights are moved into page-locked memory when they are first needed, once, and stay there: only
from there does a copy run beside the work. That is host memory of the size of the streamed pieces.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from mmap import PAGESIZE
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kiwi_cli.errors import DeviceError

Slot = tuple[nn.Module, str]
"""A module and the name of one of its own parameters or buffers."""

ALIGNMENT = 512
"""Bytes that a tensor in a buffer begins on a multiple of: torch's own on CUDA, so that a kernel finds what it would
find without streaming, and sums in the same order."""


class WeightStream:
    """Streams modules that work one after the other, in about the order given.

    Args:
        pieces: modules; any other order of calls works, but copies are not ahead then.
        device: where they work.
    """

    def __init__(self, pieces: Sequence[nn.Module], device: torch.device) -> None:
        self.pieces, self.device = list(pieces), device
        self.on_cuda = device.type == "cuda"
        self._host: list[list[tuple[Slot, Tensor]]] = []
        self._buffers: list[_Buffer] = []
        self._copies: Any = None
        self._hooks: list[Any] = []
        self._locked: list[_Locked | None] = [None] * len(self.pieces)

    def open(self) -> None:
        """Make room on the device; from now on the pieces work there.

        Raises:
            DeviceError: the host has no memory to lock.
            torch.OutOfMemoryError: the device has no room for two pieces. Nothing is changed then.
        """
        if self.on_cuda:
            for index, piece in enumerate(self.pieces):
                locked = self._locked[index]
                if locked is None or not locked.holds(piece):
                    self._locked[index] = _Locked(piece)
        self._host = [list(tensors_of(piece)) for piece in self.pieces]
        size = max(packed_size(tensor for _, tensor in slots) for slots in self._host)
        self._buffers = [_Buffer(size, self.device) for _ in range(2)]
        if self.on_cuda:
            self._copies = torch.cuda.Stream(self.device)
            self._copies.wait_stream(torch.cuda.current_stream(self.device))  # the buffers' memory may be in use still
        for index, piece in enumerate(self.pieces):
            self._hooks += [
                piece.register_forward_pre_hook(self._entering(index)),
                piece.register_forward_hook(self._leaving(index), always_call=True),
            ]

    def close(self) -> None:
        """Give the device's memory back; the pieces are on the host again."""
        for hook in self._hooks:
            hook.remove()
        if self.on_cuda and self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)  # before the memory is used again
        self._hooks, self._buffers, self._host, self._copies = [], [], [], None

    def _entering(self, index: int) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            buffer = next((buffer for buffer in self._buffers if buffer.holds == index), None)
            if buffer is None:  # the first of all, or out of order
                buffer = self._buffers[0]
                self._fetch(index, buffer)
            if self.on_cuda:
                torch.cuda.current_stream(self.device).wait_event(buffer.full)
            for (slot, _), tensor in zip(self._host[index], buffer.views[index], strict=True):
                put_tensor(*slot, tensor)
            following = (index + 1) % len(self.pieces)
            if all(buffer.holds != following for buffer in self._buffers):
                self._fetch(following, next(other for other in self._buffers if other is not buffer))

        return enter

    def _leaving(self, index: int) -> Any:
        def leave(module: nn.Module, args: Any, result: Any) -> None:
            for slot, tensor in self._host[index]:
                put_tensor(*slot, tensor)
            if self.on_cuda:
                for buffer in self._buffers:
                    if buffer.holds == index:
                        buffer.done.record(torch.cuda.current_stream(self.device))

        return leave

    @torch.no_grad()
    def _fetch(self, index: int, buffer: _Buffer) -> None:
        """Begin to copy a piece into a buffer, after the work that uses what is in it."""
        buffer.holds = index
        if index not in buffer.views:
            buffer.views[index] = buffer.shaped([tensor for _, tensor in self._host[index]])
        if self.on_cuda:
            self._copies.wait_event(buffer.done)
        with torch.cuda.stream(self._copies):  # None, where there are no streams
            for (_, host), view in zip(self._host[index], buffer.views[index], strict=True):
                for source, target in zip(plain_parts(host), plain_parts(view), strict=True):
                    target.copy_(source, non_blocking=True)
            if self.on_cuda:
                buffer.full.record(self._copies)


class _Buffer:
    """Room for one piece on the device.

    Attributes:
        holds: index of the piece that is in it, or on its way. views: a piece's tensors in it, by index.
        full, done: on CUDA, events: the copy has ended; the work has ended.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self.holds: int | None = None
        self.views: dict[int, list[Tensor]] = {}
        if device.type == "cuda":
            self.full, self.done = torch.cuda.Event(), torch.cuda.Event()

    def shaped(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors like these in this buffer, one behind the other."""
        return laid_out(tensors, self.bytes)


class _Locked:
    """A module's weights, moved into page-locked memory for as long as this object lives."""

    def __init__(self, module: nn.Module) -> None:
        slots = list(tensors_of(module))
        size = packed_size(tensor for _, tensor in slots)
        size += -size % PAGESIZE
        # torch's own page-locked memory comes in powers of two: half as much again. Whole pages, that are ours alone.
        spacious = torch.empty(size + PAGESIZE, dtype=torch.uint8)
        start = -spacious.data_ptr() % PAGESIZE
        pages = spacious[start : start + size]
        if int(torch.cuda.cudart().cudaHostRegister(pages.data_ptr(), size, 0)):
            raise DeviceError(
                f"the host cannot lock {size / 1e9:.1f} GB more of its memory, which streamed weights need",
                "use --memory swap and a smaller --size, or a machine with more memory",
            )
        weakref.finalize(self, _unlock, pages).atexit = False
        with torch.no_grad():
            moved = laid_out([tensor for _, tensor in slots], pages)
            for (slot, tensor), view in zip(slots, moved, strict=True):
                for source, target in zip(plain_parts(tensor), plain_parts(view), strict=True):
                    target.copy_(source)
                put_tensor(*slot, view)
        self._held = [tensor for _, tensor in tensors_of(module)]

    def holds(self, module: nn.Module) -> bool:
        """Whether the module's weights are still these: they may have been replaced."""
        found = [tensor for _, tensor in tensors_of(module)]
        return len(found) == len(self._held) and all(
            ours is theirs for ours, theirs in zip(found, self._held, strict=True)
        )


def _unlock(pages: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(pages.data_ptr())


def tensors_of(module: nn.Module) -> Iterator[tuple[Slot, Tensor]]:
    """Every parameter and buffer, with the module that holds it."""
    for owner in module.modules():
        for table in (owner._parameters, owner._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield (owner, name), tensor


def put_tensor(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Make a tensor a module's parameter or buffer of that name."""
    if name in module._buffers:
        module._buffers[name] = tensor
    elif isinstance(tensor, nn.Parameter):
        module._parameters[name] = tensor
    else:
        module._parameters[name] = nn.Parameter(tensor, requires_grad=False)


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantised one consists of; of any other, itself."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_parts(getattr(tensor, name))
    else:
        yield tensor


def packed_size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors one behind the other, each from a multiple of `ALIGNMENT`."""
    parts = (part for tensor in tensors for part in plain_parts(tensor))
    return sum(size + -size % ALIGNMENT for size in (part.numel() * part.element_size() for part in parts))


def laid_out(tensors: Iterable[Tensor], room: Tensor) -> list[Tensor]:
    """Tensors of the same kinds and shapes, one behind the other in the bytes of `room`; their values are not set."""
    placed, begin = [], int(room.storage_offset())
    for tensor in tensors:
        moved, begin = _placed(tensor, room, begin)
        placed.append(moved)
    return placed


def _placed(like: Tensor, room: Tensor, begin: int) -> tuple[Tensor, int]:
    """A tensor like another in the storage of `room` from byte `begin` on, and where the next one begins.

    A function of its own, not one within another: that would hold itself, and with itself the room, until Python
    looks for circles, which is later than the next stage needs the memory.
    """
    if is_traceable_wrapper_subclass(like):
        names, context = like.__tensor_flatten__()
        parts = {}
        for name in names:
            parts[name], begin = _placed(getattr(like, name), room, begin)
        return type(like).__tensor_unflatten__(parts, context, like.shape, like.stride()), begin
    # Not a view in autograd's sense: torch.compile would look through it to the whole buffer.
    item = like.element_size()
    assert begin % item == 0
    placed = torch.empty(0, dtype=like.dtype, device=room.device)
    placed.set_(room.untyped_storage(), begin // item, like.shape, like.stride())
    size = like.numel() * item
    begin += size + -size % ALIGNMENT
    if type(like) in (Tensor, nn.Parameter):
        return placed, begin
    same = Tensor._make_subclass(type(like), placed, False)  # GGUF's says in attributes how it is packed
    same.__dict__.update(like.__dict__)
    return same, begin
