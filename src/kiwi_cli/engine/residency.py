"""Carries a placement out: which units are on the device during a stage.

The weights on the host stay where they are, mapped from the files; a unit on the device is a second set of
parameters, and taking it off only drops that set. Nothing is ever copied back. streaming.py brings a unit in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from kiwi_cli.engine.demand import Demand, Stage
from kiwi_cli.engine.memory import (
    Placement,
    Unit,
    Weights,
    allowed,
    free_memory,
    place,
    step_down,
)
from kiwi_cli.engine.streaming import Slot, WeightStream, plain_parts, put_tensor, tensors_of
from kiwi_cli.model.vae_layers import ordered

STREAMED: dict[Unit, tuple[str, ...]] = {
    "transformer": ("blocks",),
    "mllm": ("qwen.visual.blocks", "qwen.language_model.layers"),
}
"""Units that can come piece by piece: the stacks, within the first module, whose layers are the pieces."""


CODERS: tuple[Unit, ...] = ("vae_encoder", "vae_decoder")


class Residency:
    """Moves units on to a device and off again, by a placement made for each edit.

    Args:
        units: the modules of each, on the CPU.
        device: where work happens.
        level: 'auto', or the level that every placement is held to.
        limit: bytes to use at most, or None for what is free.

    Attributes:
        placement: in force.
        on_device: units that are on the device now.
        at: the stage that was begun last, or None.
    """

    def __init__(
        self,
        units: Mapping[Unit, Iterable[nn.Module]],
        device: torch.device,
        level: str = "auto",
        limit: int | None = None,
    ) -> None:
        self.units = {unit: list(modules) for unit, modules in units.items()}
        self.device, self.level, self.limit = device, level, limit
        self.weights = weigh(self.units)
        self.placement = Placement(allowed(level)[0])
        self.on_device: set[Unit] = set()
        self._streams: dict[Unit, WeightStream] = {}
        self._host: dict[Unit, list[tuple[Slot, torch.Tensor]]] = {}
        self._demand: Demand | None = None
        self.at: Stage | None = None
        self._say: Callable[[str], None] = lambda line: None

    def choose(self, demand: Demand, say: Callable[[str], None] | None = None) -> Placement:
        """The placement of an edit, from now on in force.

        Args:
            demand: what the edit asks of the device.
            say: told of the placement, where there was something to choose, and of a step down later.

        Raises:
            UsageError, DeviceError: as `memory.place`.
        """
        self._demand, self._say = demand, say or (lambda line: None)
        self.adopt(place(self.weights, demand, self.budget(), self.level))
        if self.placement.budget is not None or self.level != "auto":
            self._say(self.placement.describe())
        return self.placement

    def budget(self) -> int | None:
        """Bytes that may be used now, with what is used already; None when nothing limits them."""
        limits = [limit for limit in (self.limit, free_memory(self.device)) if limit is not None]
        return min(limits, default=None)

    def step_down(self) -> bool:
        """After a stage ran out of memory: a placement that needs less there, by what is free when all units are off
        the device. False when there is none; a level that was asked for is kept."""
        for unit in tuple(self.on_device):
            self.evict(unit)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._demand is None or self.at is None:
            return False
        smaller = step_down(self.placement, self.weights, self._demand, self.budget(), self.at, self.level)
        if smaller is None:
            return False
        self.adopt(smaller)
        self._say(f"out of memory on {self.device}; going on with less: {smaller.describe()}")
        return True

    def adopt(self, placement: Placement) -> None:
        """Work by a placement from the next stage on."""
        if placement.level.streamed != self.placement.level.streamed:
            for unit in tuple(self.on_device & set(STREAMED)):
                self.evict(unit)
        self.placement = placement

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[torch.device]:
        """The device, with what the level has there in this stage, and all else gone."""
        self.at = stage
        units = self.placement.level.on_device(stage)
        for unit in self.on_device - set(units):
            self.evict(unit)
        for unit in units:
            self.load(unit)
        yield self.device

    def load(self, unit: Unit) -> None:
        """Put a unit on the device, if it is not there; of a streamed one, what its pieces leave over."""
        if unit in self.on_device:
            return
        pieces = pieces_of(unit, self.units[unit]) if self.placement.level.streamed else []
        coming = {slot for piece in pieces for slot, _ in tensors_of(piece)}
        tensors = (found for module in self.units[unit] for found in tensors_of(module))
        slots = [(slot, tensor) for slot, tensor in tensors if slot not in coming]
        self._host[unit] = slots
        self.on_device.add(unit)  # from here on there is something to take off
        if pieces:
            if unit not in self._streams:
                self._streams[unit] = WeightStream(pieces, self.device)
            self._streams[unit].open()
        for (module, name), tensor in slots:
            moved = self.copy(tensor)
            if unit in CODERS and self.device.type == "cuda":  # else cuDNN would order it anew in each call
                moved = ordered(moved, self.device)
            put_tensor(module, name, moved)

    def evict(self, unit: Unit) -> None:
        """Take a unit off the device, if it is there."""
        if unit not in self.on_device:
            return
        if unit in self._streams:
            self._streams[unit].close()
        for (module, name), tensor in self._host.pop(unit):
            put_tensor(module, name, tensor)
        self.on_device.discard(unit)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host on the device."""
        return tensor.to(self.device, non_blocking=True)


def pieces_of(unit: Unit, modules: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers that a streamed unit comes in, in the order of their work; of a unit that is not streamed, none."""
    return [layer for stack in STREAMED.get(unit, ()) for layer in modules[0].get_submodule(stack).children()]


def weigh(units: Mapping[Unit, Iterable[nn.Module]]) -> Weights:
    """Bytes of each unit, whole and streamed (all but the pieces, and two of the largest)."""
    whole: dict[Unit, int] = {}
    streamed: dict[Unit, int] = {}
    for unit, modules in units.items():
        modules = list(modules)
        whole[unit] = sum(_bytes(module) for module in modules)
        streamed[unit] = whole[unit]
        pieces = [_bytes(piece) for piece in pieces_of(unit, modules)]
        if pieces:
            streamed[unit] += 2 * max(pieces) - sum(pieces)
    return Weights(whole, streamed)


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes a tensor takes. A quantised one says the precision it stands for: its parts are counted."""
    return sum(part.numel() * part.element_size() for part in plain_parts(tensor))


def _bytes(module: nn.Module) -> int:
    return sum(stored_bytes(tensor) for _, tensor in tensors_of(module))
