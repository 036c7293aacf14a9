"""Where the parts are: which of them are on the device at which stage, and in how many strips the VAE works.

A level is a row of `LEVELS`, from most memory to least, and a new one is a row more: nothing asks for a name. All
that are not tiled give the same result to the bit. Weights are summed, activations come from demand.py, and `place`
takes the first level that fits. residency.py carries the placement out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from kiwi_cli.engine.demand import STAGES, STRIPS, Demand, Stage
from kiwi_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

Unit = Literal["mllm", "vae_encoder", "transformer", "vae_decoder"]
UNITS: tuple[Unit, ...] = get_args(Unit)
NEEDED: dict[Stage, Unit] = dict(zip(STAGES, UNITS, strict=True))
"""The unit that a stage works with."""


@dataclass(frozen=True)
class Level:
    """Which parts are on the device when.

    Attributes:
        name: of `--memory`.
        keeps: units that stay beside one another; any other has the device for itself.
        streamed: the transformer and the language model come layer by layer.
        tiled: the VAE decodes in the library's blended tiles: NOT exact, and never chosen by itself.
    """

    name: str
    keeps: tuple[Unit, ...] = ()
    streamed: bool = False
    tiled: bool = False

    @property
    def exact(self) -> bool:
        """Whether the result is the one of all parts on the device, to the bit."""
        return not self.tiled

    def on_device(self, stage: Stage) -> tuple[Unit, ...]:
        """Units that are on the device during a stage."""
        needed = NEEDED[stage]
        return self.keeps if needed in self.keeps else (needed,)


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level("resident", keeps=UNITS),
        Level("release", keeps=("vae_encoder", "transformer", "vae_decoder")),
        Level("swap"),
        Level("stream", streamed=True),
        Level("tiled", streamed=True, tiled=True),
    )
}

RESERVE = 600_000_000
"""Bytes kept free for what is not in the counts: the CUDA context's growth and fragments."""

GB = 1e9


def is_exact(level: str) -> bool:
    """Whether a choice of `--memory` leaves the result to the bit: 'auto' and the exact levels do."""
    return level == "auto" or LEVELS[level].exact


def exact_levels() -> list[Level]:
    """The levels that may be chosen without being asked for, from most memory to least."""
    return [level for level in LEVELS.values() if level.exact]


@dataclass(frozen=True)
class Weights:
    """Bytes of each unit's weights, and what of them is on the device at once when it is streamed."""

    whole: dict[Unit, int]
    streamed: dict[Unit, int]


@dataclass(frozen=True)
class Placement:
    """Where the parts are in each stage of an edit.

    Attributes:
        encode_strips, decode_strips: vertical strips of the VAE's high-resolution half.
        peak: counted bytes at the worst stage. budget: bytes there were to work with; None was not limited.
    """

    level: Level
    encode_strips: int = 1
    decode_strips: int = 1
    peak: int = 0
    budget: int | None = None

    @property
    def fits(self) -> bool:
        """Whether the peak, and the reserve, fit the budget."""
        return self.budget is None or self.peak + RESERVE <= self.budget

    def describe(self) -> str:
        """One line for the person."""
        counts = (("encode", self.encode_strips), ("decode", self.decode_strips))
        strips = "".join(f", {stage} in {count} strips" for stage, count in counts if count > 1)
        warning = "" if self.level.exact else "; blended tiles, NOT exact"
        room = "" if self.budget is None else f" of {self.budget / GB:.1f} GB"
        needed = f"about {self.peak / GB:.1f} GB" if self.peak > 0.1 * GB else "under 0.1 GB"
        return f"memory: {self.level.name}{strips}{warning}; {needed}{room}"


def need(stage: Stage, placement: Placement, weights: Weights, demand: Demand) -> int:
    """Counted bytes of a stage: the weights that are on the device, and activations."""
    level = placement.level
    table = weights.streamed if level.streamed else weights.whole
    held = sum(table[unit] for unit in level.on_device(stage))
    strips: dict[Stage, int] = {"encode": placement.encode_strips, "decode": placement.decode_strips}
    return held + demand.activations(stage, strips.get(stage, 1), level.tiled)


def counted(placement: Placement, weights: Weights, demand: Demand, budget: int | None) -> Placement:
    """The placement with its peak, the counted bytes at the worst stage, beside a budget."""
    peak = max(need(stage, placement, weights, demand) for stage in STAGES)
    return replace(placement, peak=peak, budget=budget)


def candidates(level: Level, weights: Weights, demand: Demand, budget: int | None) -> Iterator[Placement]:
    """A level's placements from few strips to many; the encoder is cut into strips only when it would not fit whole."""
    for strips in STRIPS:
        decode = 1 if level.tiled else strips
        placement = counted(Placement(level, 1, decode), weights, demand, budget)
        if not placement.fits:
            placement = counted(Placement(level, strips, decode), weights, demand, budget)
        yield placement


def place(weights: Weights, demand: Demand, budget: int | None, level: str = "auto") -> Placement:
    """The first level's placement, in the fewest strips, that fits.

    Args:
        budget: bytes that may be used on the device; None does not limit.
        level: one of `LEVELS` holds it to that one, in as few strips as fit; 'auto' tries the exact ones in order.

    Raises:
        UsageError: an unknown level.
        DeviceError: nothing fits, with what is needed, what there is, and what would fit.
    """
    found = [each for row in allowed(level) for each in candidates(row, weights, demand, budget)]
    for placement in found:
        if placement.fits:
            return placement
    assert budget is not None
    least = min(found, key=lambda placement: placement.peak)
    raise DeviceError(
        f"this edit needs {(least.peak + RESERVE) / GB:.1f} GB on the device with --memory {least.level.name}, "
        f"and {budget / GB:.1f} GB may be used",
        _advice(weights, demand, budget, level),
    )


def check_level(level: str) -> None:
    """Raises UsageError for anything but 'auto' and the levels."""
    if level not in ("auto", *LEVELS):
        raise UsageError(f"unknown memory level: '{level}'", f"use auto, {', '.join(LEVELS)}")


def allowed(level: str) -> list[Level]:
    """The levels that a person's choice leaves: of 'auto' the exact ones, else that one.

    Raises:
        UsageError: an unknown level.
    """
    check_level(level)
    return exact_levels() if level == "auto" else [LEVELS[level]]


def step_down(
    current: Placement, weights: Weights, demand: Demand, budget: int | None, stage: Stage, level: str = "auto"
) -> Placement | None:
    """The first smaller placement after running out of memory, or None when none is smaller.

    Args:
        current: what it happened with. stage: where; the placement returned needs less there.
        budget: bytes that may be used now; where nothing smaller fits them, it is the smallest: counts are cautious.
        level: 'auto' goes on through the exact levels; a level that was asked for can take more strips only.
    """
    rows = allowed(level)
    before = need(stage, current, weights, demand)
    smaller = [
        placement
        for row in rows[rows.index(current.level) :]
        for encode in (current.encode_strips, *STRIPS)
        for decode in (current.decode_strips, *(() if row.tiled else STRIPS))
        if encode >= current.encode_strips and decode >= current.decode_strips
        for placement in [counted(Placement(row, encode, decode), weights, demand, budget)]
        if need(stage, placement, weights, demand) < before
    ]
    fitting = (placement for placement in smaller if placement.fits)
    return next(fitting, None) or min(smaller, key=lambda placement: placement.peak, default=None)


def way_out(level: str) -> str:
    """What is left to a person after even the smallest placement of a level had too little memory, to end a hint with:
    '' when nothing is."""
    if level != "auto" and not LEVELS[level].streamed:
        return ", or --memory auto"
    tiled = next((row.name for row in LEVELS.values() if row.tiled), None)
    if tiled is None or (level != "auto" and LEVELS[level].tiled):
        return ""
    return f", or --memory {tiled} (not exact)"


def _advice(weights: Weights, demand: Demand, budget: int, level: str) -> str:
    """What the person can do: the largest size, or number of frames, that would fit."""

    def fits(smaller: Demand) -> bool:
        return any(each.fits for row in allowed(level) for each in candidates(row, weights, smaller, budget))

    for percent in range(95, 15, -5):
        smaller = demand.resized(percent / 100)
        if fits(smaller):
            return f"use a smaller size, such as --size {smaller.width}x{smaller.height}"
    for frames in range(demand.frames - 4, 0, -4):
        if fits(demand.shortened(frames)):
            return f"use fewer frames, such as --frames {frames}"
    return f"use a device with more memory{way_out(level)}"


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may use on a device, with what it holds already; None for the CPU."""
    import torch

    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    budget = free + torch.cuda.memory_reserved(device)
    # A cap set with set_per_process_memory_fraction counts as the size of the card.
    share = torch.cuda.get_per_process_memory_fraction(device)
    return min(budget, int(share * torch.cuda.get_device_properties(device).total_memory))


def parse_bytes(text: str) -> int:
    """'12GB', '12 GiB', '800MB', '12' (GB) -> bytes.

    Raises:
        UsageError: not a size.
    """
    units = {"": 10**9, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30, "M": 10**6, "G": 10**9}
    number = text.strip().rstrip("BbGgMmIi ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        count = float(number) * units[unit]
    except (ValueError, KeyError):
        raise UsageError(f"not an amount of memory: '{text}'", "write it as 12GB, 12GiB or 800MB") from None
    if not 0 < count < 1e15:
        raise UsageError(f"not an amount of memory: '{text}'", "write it as 12GB, 12GiB or 800MB")
    return int(count)
