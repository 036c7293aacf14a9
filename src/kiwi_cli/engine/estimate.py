"""What an edit will take, before anything is loaded: tokens, operations and memory counted from shapes, and time
from recorded rates. No torch.

The counts are those of demand.py and of `kiwi bench speed`; what is not known exactly before the prompt is built
(the language model's tokens) is rounded up, and everything shown from here is called an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kiwi_cli.engine import memory
from kiwi_cli.engine.demand import Demand, Products, Stage, context_tokens, demand, expected_prompt
from kiwi_cli.engine.layout import HOST_BYTES, STATES, Layout, table_bytes
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.errors import DeviceError
from kiwi_cli.model.shape import RELEASED_5B, Shape
from kiwi_cli.video import Size, latent_frame_count

# TFLOP for a latent frame of 1280x704, counted with the released VAE; the language model's for a full prompt.
ENCODE_TFLOP, DECODE_TFLOP, PROMPT_TFLOP = 256 / 21, 1348 / 21, 33.0
FULL_PIXELS = 1280 * 704


@dataclass(frozen=True)
class Estimate:
    """What an edit takes.

    Attributes:
        tokens: of the transformer, references included. context: tokens of the instruction encoder.
        step_tflop: one denoising step. stages: each stage of the edit, TFLOP.
        weights, demand: what memory is counted from.
        mode: how the weights are kept, as the option, and whether the model is compiled.
    """

    latent_frames: int
    tokens: int
    context: int
    step_tflop: float
    stages: dict[Stage, float]
    weights: memory.Weights
    demand: Demand
    mode: tuple[str, bool]

    @property
    def tflop(self) -> float:
        """Everything."""
        return sum(self.stages.values())

    @property
    def levels(self) -> dict[str, int]:
        """Exact memory level -> bytes on the device, in as many strips as help; from the most to the least."""
        return {
            level.name: min(each.peak for each in memory.candidates(level, self.weights, self.demand, 0))
            for level in memory.exact_levels()
        }

    def place(self, room: int | None, level: str = "auto") -> memory.Placement | None:
        """How `room` bytes on the device would be used, at any level or that one; None when they are too few.

        Args:
            room: None does not limit.
        """
        try:
            return memory.place(self.weights, self.demand, room, level)
        except DeviceError:
            return None

    def times(self, windows: int) -> Estimate:
        """As many of these edits, one after the other."""
        return replace(self, stages={stage: windows * tflop for stage, tflop in self.stages.items()})

    def joined(self, layout: Layout, contexts: int, references: int) -> Estimate:
        """A long clip of which this is the longest window: each latent frame is encoded and decoded once.

        Args:
            contexts: how often the instruction is read. references: pictures, encoded once.
        """
        decoded = sum(len(segment.rows) for shot in layout.shots for segment in shot.segments)
        encoded = layout.rows + references
        by = {
            "instruction": contexts,
            "encode": encoded / (self.latent_frames + references),
            "denoise": layout.evaluations / layout.longest,
            "decode": decoded / self.latent_frames,
        }
        return replace(self, stages={stage: by[stage] * tflop for stage, tflop in self.stages.items()})

    def part(self, layout: Layout, part: PartRows, contexts: int, references: int) -> Estimate:
        """A part of such a clip made anew, and what decoding it takes beside the rest.

        Args:
            contexts: how often the instruction is read. references: pictures, encoded again.
        """
        seen = sum(len(layout.windows[number].rows) for number in part.windows)
        by = {
            "instruction": contexts,
            "encode": references / (self.latent_frames + references),
            "denoise": seen / layout.longest,
            "decode": len(part.rows) / self.latent_frames,
        }
        return replace(self, stages={stage: by[stage] * tflop for stage, tflop in self.stages.items()})

    def decoding(self) -> Estimate:
        """Its last stage alone."""
        return replace(self, stages={stage: tflop * (stage == "decode") for stage, tflop in self.stages.items()})

    def plus(self, other: Estimate) -> Estimate:
        """Another such edit after it."""
        return replace(self, stages={stage: tflop + other.stages[stage] for stage, tflop in self.stages.items()})


@dataclass(frozen=True)
class Recorded:
    """Measured rates.

    Attributes:
        device: as the driver names it. source: where and how it was measured.
        steps, decode: TFLOP/s by how the weights are kept and whether the model is compiled; decode by the latter.
        encode, instruction: TFLOP/s.
    """

    device: str
    source: str
    steps: dict[tuple[str, bool], float]
    decode: dict[bool, float]
    encode: float
    instruction: float

    def seconds(self, found: Estimate) -> float | None:
        """How long an edit takes at these rates, from a loaded model to frames; None where its kind has none."""
        rate = self.steps.get(found.mode)
        if rate is None:
            return None
        rates: dict[Stage, float] = {
            "instruction": self.instruction,
            "encode": self.encode,
            "denoise": rate,
            "decode": self.decode[found.mode[1]],
        }
        return sum(tflop / rates[stage] for stage, tflop in found.stages.items())


RECORDED: tuple[Recorded, ...] = (
    Recorded(
        # benchmarks/results/h100-2026-11-26.jsonl: a step of 290.4 TFLOP in 0.6539, 0.5127 and 0.4347 s, the encode of
        # 256 in 2.06, the decode of 1348 in 2.94 and 2.43, the prompt, taken as 33, in 0.14 s.
        device="NVIDIA H100 80GB HBM3",
        source="an H100's rates at 1280x704, 2026-11-26",
        steps={("as-stored", False): 444.1, ("as-stored", True): 566.5, ("fp8", True): 668.0},
        decode={False: 459.0, True: 554.8},
        encode=124.4,
        instruction=234.6,
    ),
)
"""Measured on the devices of docs/performance.md, and nothing guessed."""


def estimate(
    shape: Shape,
    size: Size,
    frames: int,
    references: int,
    steps: int,
    item: int = 2,
    quantize: str = "as-stored",
    compiled: bool = False,
    round_trip: bool = False,
) -> Estimate:
    """An edit, counted.

    Args:
        frames: given to the model. references: how many pictures. item: bytes of the compute precision.
        quantize: how the weights are kept, as the option. compiled: whether the model runs as graphs.
        round_trip: the source is decoded as well, before the edit is.
    """
    prompt = expected_prompt(shape, size, frames, references)
    kinds: dict[str, Products] = {"int8": "int8", "fp8": "fp8"} if item == 2 else {"int8": "int8"}  # fp8 as on a Hopper
    asked = demand(shape, size, frames, references, prompt, item, compiled, kinds.get(quantize, "plain"))
    latent_frames, context = latent_frame_count(frames), context_tokens(shape, frames, references)
    step = step_operations(shape.width, shape.ffn, shape.layers, asked.tokens, context) / 1e12
    scale = size.width * size.height / FULL_PIXELS * (shape.decoder / RELEASED_5B.decoder) ** 2
    stages: dict[Stage, float] = {
        "instruction": PROMPT_TFLOP * shape.units["mllm"].total / RELEASED_5B.units["mllm"].total,
        "encode": scale * (latent_frames + references) * ENCODE_TFLOP,
        "denoise": steps * step,
        "decode": scale * latent_frames * DECODE_TFLOP * (2 if round_trip else 1),
    }
    weights = weights_of(shape, item, quantize)
    return Estimate(latent_frames, asked.tokens, context, step, stages, weights, asked, (quantize, compiled))


@dataclass(frozen=True)
class OnHost:
    """What a long clip keeps on the host, in bytes.

    Attributes:
        tables: latents of the source and of two steps. contexts: what was read of the instruction.
    """

    tables: int
    contexts: int

    @property
    def total(self) -> int:
        """In memory or in files."""
        return self.tables + self.contexts

    @property
    def mapped(self) -> bool:
        """Whether the tables lie in files."""
        return self.tables > HOST_BYTES

    def on_disk(self, saved: bool) -> int:
        """The most that lies in the working folder at once: a state is written whole beside the one before.

        Args:
            saved: whether states are.
        """
        states = self.contexts if self.mapped else 2 * self.tables + self.contexts
        return (self.tables if self.mapped else 0) + (states if saved else 0)


def on_host(
    shape: Shape,
    size: Size,
    layout: Layout,
    solver: str,
    contexts: int,
    references: int,
    item: int,
    rows: int | None = None,
) -> OnHost:
    """What a long clip keeps on the host.

    Args:
        contexts: how often the instruction is read. references: pictures. item: bytes of the compute precision.
        rows: of the tables; None is all of the layout's.
    """
    channels, height, width = latent_shape(shape, size)
    context = context_tokens(shape, layout.longest, references) * shape.width * item
    tables = table_bytes(layout.rows if rows is None else rows, STATES[solver], channels * height * width)
    return OnHost(tables, contexts * context)


def latent_shape(shape: Shape, size: Size) -> tuple[int, int, int]:
    """(C, h, w) of a latent frame."""
    side = shape.grid // shape.patch
    return shape.latent_channels, size.height // side, size.width // side


def step_operations(width: int, ffn: int, layers: int, tokens: int, context: int) -> float:
    """Floating-point operations of one forward of the transformer's blocks.

    Args:
        width, ffn, layers: of the transformer. tokens: of the video and its references. context: tokens.
    """
    linear = 12 * tokens * width**2 + 4 * context * width**2 + 4 * tokens * width * ffn
    attention = 4 * tokens**2 * width + 4 * tokens * context * width
    return float(layers * (linear + attention))


def seconds(found: Estimate, device: str) -> tuple[float, Recorded] | None:
    """How long an edit takes on a device whose rates are recorded, and the record; None for any other."""
    for recorded in RECORDED:
        if recorded.device in device and (taken := recorded.seconds(found)) is not None:
            return taken, recorded
    return None


def weights_of(shape: Shape, item: int, quantize: str) -> memory.Weights:
    """Bytes of each unit, whole and streamed; the VAE's encoder is kept in fp32."""
    extra = {"transformer": shape.rotary_bytes}
    whole: dict[memory.Unit, int] = {
        unit: shape.units[unit].stored(4 if unit == "vae_encoder" else item, quantize) + extra.get(unit, 0)
        for unit in memory.UNITS
    }
    streamed: dict[memory.Unit, int] = {
        unit: shape.pieces[unit].stored(item, quantize) + extra.get(unit, 0) if unit in shape.pieces else size
        for unit, size in whole.items()
    }
    return memory.Weights(whole, streamed)


def describe(found: Estimate) -> dict[str, Any]:
    """For `--json`."""
    return {
        "latent_frames": found.latent_frames,
        "tokens": found.tokens,
        "context_tokens": found.context,
        "step_tflop": round(found.step_tflop, 3),
        "tflop": round(found.tflop, 3),
        "memory_bytes": found.levels,
    }
