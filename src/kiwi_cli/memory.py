"""The plan for a card: which parts are on the device at which stage, and in how many strips the VAE works.

Levels, from most memory to least; all but the last give the same result to the bit:

    resident   every part stays
    release    the language model leaves after it has read the instruction
    swap       one part at a time
    stream     one part at a time, and the transformer and the language model layer by layer
    tiled      as stream, decoding in the library's blended tiles: NOT exact, never chosen by itself

Weights are summed; activations come from the counts below. residency.py carries a plan out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast, get_args

from kiwi_cli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

Level = Literal["resident", "release", "swap", "stream", "tiled"]
LEVELS: tuple[Level, ...] = get_args(Level)
EXACT: tuple[Level, ...] = LEVELS[:-1]

Stage = Literal["instruction", "encode", "denoise", "decode"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Unit = Literal["mllm", "vae_encoder", "transformer", "vae_decoder"]
NEEDED: dict[Stage, Unit] = {
    "instruction": "mllm",
    "encode": "vae_encoder",
    "denoise": "transformer",
    "decode": "vae_decoder",
}
UNITS: tuple[Unit, ...] = tuple(NEEDED.values())

STRIPS = (1, 2, 4)
"""Numbers of vertical strips. More would need more: each strip remembers what its halo saw as well."""

# Peak of live activations, counted over all tensors on `meta` at full size (tests/test_memory.py counts again).
# VAE: bytes for each pixel, channel of the coder's base width and byte of precision, by number of strips.
DECODE = {1: 13.1, 2: 12.4, 4: 11.8}
ENCODE = {1: 7.6, 2: 6.1, 4: 5.6}
# Transformer: times tokens, width and bytes of precision.
DENOISE = 15.5
# Language model: times tokens, hidden plus feed-forward width, and bytes of precision; its vision tower: times patches
# likewise, by bytes of precision, for in half precision it turns queries and keys in fp32.
PROMPT = 3.3
VISION = {2: 4.6, 4: 3.3}

# The library's blended tiles: one tile of its default size, in the unit of DECODE; all tiles of a clip, and the joined
# clip with its copies, in bytes for each pixel of each frame, in half precision.
TILE, TILE_PIXELS = 21.2, 256 * 256
TILES, JOINED = 10.7, 30.2

RESERVE = 600_000_000
"""Bytes kept free for what is not a tensor of ours: the CUDA context's growth, kernels' workspaces, fragments."""

GB = 1e9


def prompt_bytes(patches: int, vision: int, tokens: int, text: int, item: int) -> int:
    """Peak bytes of the language model's activations, beside the pixels it is given.

    Args:
        patches: of the vision tower in its largest call; a video and a picture are seen one after the other.
        vision, text: hidden plus feed-forward width of the vision tower and of the language model.
        tokens: of the prompt. item: bytes of precision.
    """
    return int(max(VISION[item] * patches * vision, PROMPT * tokens * text) * item)


@dataclass(frozen=True)
class Weights:
    """Bytes of each unit's weights, and what of them is on the device at once when it is streamed."""

    whole: dict[Unit, int]
    streamed: dict[Unit, int]


@dataclass(frozen=True)
class Work:
    """What an edit asks of the device, in counted bytes for each stage.

    Attributes:
        width, height: of a frame, pixels. frames: of the clip, padded.
        tokens: of the video and its references.
        encoder_width, decoder_width: the VAE's base widths times bytes of precision.
        transformer: bytes of one token: width times bytes of precision.
        prompt: bytes of the language model's activations.
        latent_bytes: what latents and context take through all stages.
    """

    width: int
    height: int
    frames: int
    tokens: int
    encoder_width: int
    decoder_width: int
    transformer: int
    prompt: int
    latent_bytes: int

    def activations(self, stage: Stage, strips: int, tiled: bool = False) -> int:
        """Peak bytes of a stage beside the weights."""
        pixels = self.width * self.height
        counts: dict[Stage, float] = {
            "instruction": self.prompt,
            "encode": ENCODE[strips] * pixels * self.encoder_width,
            "denoise": DENOISE * self.tokens * self.transformer,
            "decode": DECODE[strips] * pixels * self.decoder_width,
        }
        if tiled:  # they are blended when all frames of all tiles are there; the encoder has none
            tile = TILE * min(pixels, TILE_PIXELS) * self.decoder_width
            counts["decode"] = max(tile + TILES * pixels * self.frames, JOINED * pixels * self.frames)
        return int(counts[stage]) + self.latent_bytes

    def resized(self, scale: float) -> Work:
        """The same edit at another size, in multiples of 32."""
        width, height = (max(32, math.floor(side * scale / 32) * 32) for side in (self.width, self.height))
        share = width * height / (self.width * self.height)
        return replace(self._scaled(share), width=width, height=height)

    def shortened(self, frames: int) -> Work:
        """The same edit with fewer frames."""
        return replace(self._scaled(frames / self.frames), frames=frames)

    def _scaled(self, share: float) -> Work:
        tokens, latent_bytes = math.ceil(self.tokens * share), math.ceil(self.latent_bytes * share)
        return replace(self, tokens=tokens, latent_bytes=latent_bytes)


@dataclass(frozen=True)
class Plan:
    """How an edit is carried out.

    Attributes:
        level: which parts are on the device when.
        encode_strips, decode_strips: vertical strips of the VAE's high-resolution half.
        peak: counted bytes at the worst stage. budget: bytes there were to plan with; None was not limited.
    """

    level: Level
    encode_strips: int = 1
    decode_strips: int = 1
    peak: int = 0
    budget: int | None = None

    @property
    def exact(self) -> bool:
        """Whether the result is the one of level 'resident', to the bit."""
        return self.level in EXACT

    def describe(self) -> str:
        """One line for the person."""
        strips = f", decode in {self.decode_strips} strips" if self.decode_strips > 1 else ""
        warning = "" if self.exact else "; blended tiles, NOT exact"
        room = "" if self.budget is None else f" of {self.budget / GB:.1f} GB"
        needed = f"about {self.peak / GB:.1f} GB" if self.peak > 0.1 * GB else "under 0.1 GB"
        return f"memory: {self.level}{strips}{warning}; {needed}{room}"


def resident_units(level: Level, stage: Stage) -> tuple[Unit, ...]:
    """Units that are, or stay, on the device during a stage."""
    needed = NEEDED[stage]
    if level == "resident":
        return UNITS
    if level == "release":
        return (needed,) if needed == "mllm" else tuple(unit for unit in UNITS if unit != "mllm")
    return (needed,)


def peak(level: Level, encode_strips: int, decode_strips: int, weights: Weights, work: Work) -> int:
    """Counted bytes at the worst stage."""
    tiled = level == "tiled"
    strips: dict[Stage, int] = {"encode": encode_strips, "decode": decode_strips}

    def at(stage: Stage) -> int:
        table = weights.streamed if level in ("stream", "tiled") else weights.whole
        held = sum(table[unit] for unit in resident_units(level, stage))
        return held + work.activations(stage, strips.get(stage, 1), tiled)

    return max(at(stage) for stage in STAGES)


def plan(weights: Weights, work: Work, budget: int | None, level: str = "auto") -> Plan:
    """The first level, and the fewest strips, that fit.

    Args:
        budget: bytes that may be used on the device; None does not limit.
        level: one of `LEVELS` holds it to that one, in as few strips as fit; 'auto' tries the exact ones in order.

    Raises:
        UsageError: an unknown level.
        DeviceError: nothing fits, with what is needed, what there is, and what would fit.
    """
    check_level(level)
    levels = EXACT if level == "auto" else (cast(Level, level),)
    candidates = [candidate for each in levels for candidate in _candidates(each, weights, work, budget)]
    for candidate in candidates:
        if budget is None or candidate.peak + RESERVE <= budget:
            return candidate
    assert budget is not None
    least = min(candidates, key=lambda candidate: candidate.peak)
    raise DeviceError(
        f"this edit needs {(least.peak + RESERVE) / GB:.1f} GB on the device with --memory {least.level}, "
        f"and {budget / GB:.1f} GB may be used",
        _advice(weights, work, budget, level),
    )


def check_level(level: str) -> None:
    """Raises UsageError for anything but 'auto' and the levels."""
    if level not in ("auto", *LEVELS):
        raise UsageError(f"unknown memory level: '{level}'", f"use auto, {', '.join(LEVELS)}")


def step_down(current: Plan, weights: Weights, work: Work) -> Plan | None:
    """The next smaller exact plan after running out of memory, or None."""
    smaller = [
        candidate
        for level in EXACT
        for candidate in _candidates(level, weights, work, current.budget)
        if candidate.peak < current.peak and EXACT.index(level) >= EXACT.index(current.level)
    ]
    return smaller[0] if smaller and current.exact else None


def _candidates(level: Level, weights: Weights, work: Work, budget: int | None) -> Iterable[Plan]:
    """A level's plans from few strips to many; both coders take as few as the other's need allows."""
    for strips in STRIPS:
        decode = 1 if level == "tiled" else strips
        whole = peak(level, 1, decode, weights, work)
        encode = 1 if budget is None or whole + RESERVE <= budget else strips
        yield Plan(level, encode, decode, peak(level, encode, decode, weights, work), budget)


def _advice(weights: Weights, work: Work, budget: int, level: str) -> str:
    """What the person can do: the largest size, or number of frames, that would fit."""

    def fits(smaller: Work) -> bool:
        return any(
            candidate.peak + RESERVE <= budget
            for each in (EXACT if level == "auto" else (cast(Level, level),))
            for candidate in _candidates(each, weights, smaller, budget)
        )

    for percent in range(95, 15, -5):
        smaller = work.resized(percent / 100)
        if fits(smaller):
            return f"use a smaller size, such as --size {smaller.width}x{smaller.height}"
    for frames in range(work.frames - 4, 0, -4):
        if fits(work.shortened(frames)):
            return f"use fewer frames, such as --frames {frames}"
    return "use a device with more memory, or --memory tiled (not exact)"


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
