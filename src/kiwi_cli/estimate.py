"""What an edit will take, before anything is loaded: tokens, operations and memory counted from shapes, and time
from a recorded rate. No torch.

The counts are those of memory.py and of `kiwi bench speed`; what is not known exactly before the prompt is built
(the language model's tokens) is rounded up, and everything shown from here is called an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kiwi_cli import memory
from kiwi_cli.errors import DeviceError
from kiwi_cli.shapes import RELEASED_5B, Shape
from kiwi_cli.sight import frame_sizes, picture_size
from kiwi_cli.video import Size, latent_frame_count

PATCH_PIXELS = 14 * 14
PATCH_BYTES = 4 * 2 * 3 * PATCH_PIXELS  # of two frames, fp32
MERGED_PATCHES = 4  # patches to a token
PROMPT_TOKENS = 80  # system prompt, template and an instruction of ordinary length
CONTEXT_TOKENS = 1024  # that memory.py keeps room for through all stages
TOKEN_LATENTS = 2  # latent pixels a token, each way

# TFLOP for a latent frame of 1280x704, counted with the released VAE; the language model's for a full prompt.
ENCODE_TFLOP, DECODE_TFLOP, PROMPT_TFLOP = 256 / 21, 1348 / 21, 33.0
FULL_PIXELS = 1280 * 704


@dataclass(frozen=True)
class Estimate:
    """What an edit takes.

    Attributes:
        tokens: of the transformer, references included. context: tokens of the instruction encoder.
        step_tflop, tflop: one denoising step, and everything.
        levels: memory level -> bytes on the device, from the most to the least.
        held, work: what those are counted from.
    """

    latent_frames: int
    tokens: int
    context: int
    step_tflop: float
    tflop: float
    levels: dict[str, int]
    held: memory.Weights
    work: memory.Work

    def plan(self, room: int, level: str = "auto") -> memory.Plan | None:
        """How `room` bytes on the device would be used, at any level or that one; None when they are too few."""
        try:
            return memory.plan(self.held, self.work, room, level)
        except DeviceError:
            return None


@dataclass(frozen=True)
class Recorded:
    """A measured rate.

    Attributes:
        device: as the driver names it. tflops: of denoising steps at the full shape, TFLOP/s.
        source: where and how it was measured.
    """

    device: str
    tflops: float
    source: str


RECORDED: tuple[Recorded, ...] = ()
"""Measured on the devices of docs/performance.md, and nothing guessed."""


def estimate(
    shape: Shape,
    size: Size,
    frames: int,
    references: int,
    steps: int,
    item: int = 2,
    quantize: str = "as-stored",
) -> Estimate:
    """Count an edit.

    Args:
        frames: given to the model. references: how many pictures. item: bytes of the compute precision.
        quantize: how the weights are kept, as the option.
    """
    latent_frames = latent_frame_count(frames)
    tokens = (latent_frames + references) * (size.width // shape.grid) * (size.height // shape.grid)
    context = shape.queries[2 if references else 1 if frames > 1 else 0]
    still = frames == 1 and not references
    sight = picture_size(*size, shape.bounds) if still else frame_sizes(*size, shape.bounds)[1]
    patches = seen = -(-min(frames, shape.bounds.max_frames) // 2) * sight[0] * sight[1] // PATCH_PIXELS
    if references:
        picture = MERGED_PATCHES * shape.bounds.max_reference_tokens  # a reference picture, at most
        patches, seen = patches + picture, max(patches, picture)
        context += shape.bounds.max_reference_tokens
    prompt = patches // MERGED_PATCHES + context + PROMPT_TOKENS
    step = step_operations(shape.width, shape.ffn, shape.layers, tokens, context) / 1e12
    scale = size.width * size.height / FULL_PIXELS * (shape.decoder / RELEASED_5B.decoder) ** 2
    vae = scale * ((latent_frames + references) * ENCODE_TFLOP + latent_frames * DECODE_TFLOP)
    language = PROMPT_TFLOP * shape.units["mllm"].total / RELEASED_5B.units["mllm"].total
    work = memory.Work(
        width=size.width,
        height=size.height,
        frames=4 * latent_frames - 3,
        tokens=tokens,
        encoder_width=shape.encoder * 4,  # the encoder stays fp32
        decoder_width=shape.decoder * item,
        transformer=shape.width * item,
        prompt=memory.prompt_bytes(seen, shape.vision, prompt, shape.text, item) + patches * PATCH_BYTES,
        latent_bytes=16
        * shape.latent_channels
        * (size.width * TOKEN_LATENTS // shape.grid)
        * (size.height * TOKEN_LATENTS // shape.grid)
        * (latent_frames + references)
        + CONTEXT_TOKENS * shape.width * item,
    )
    held = _weights(shape, item, quantize)
    # Strips cost little: a level that frees parts is shown with as many as help it.
    levels: dict[str, int] = {
        level: min(memory.peak(level, n, n, held, work) for n in (memory.STRIPS if level != "resident" else (1,)))
        for level in memory.EXACT
    }
    return Estimate(latent_frames, tokens, context, step, steps * step + vae + language, levels, held, work)


def step_operations(width: int, ffn: int, layers: int, tokens: int, context: int) -> float:
    """Floating-point operations of one forward of the transformer's blocks.

    Args:
        width, ffn, layers: of the transformer. tokens: of the video and its references. context: tokens.
    """
    linear = 12 * tokens * width**2 + 4 * context * width**2 + 4 * tokens * width * ffn
    attention = 4 * tokens**2 * width + 4 * tokens * context * width
    return float(layers * (linear + attention))


def seconds(found: Estimate, device: str) -> tuple[float, Recorded] | None:
    """How long an edit takes on a device whose rate is recorded, and by what; None for any other."""
    for recorded in RECORDED:
        if recorded.device in device:
            return found.tflop / recorded.tflops, recorded
    return None


def _weights(shape: Shape, item: int, quantize: str) -> memory.Weights:
    """Bytes of each unit, whole and streamed; the VAE's encoder is kept in fp32."""
    extra = {"transformer": shape.rotary_bytes}
    whole: dict[memory.Unit, int] = {
        unit: shape.units[unit].stored(4 if unit == "vae_encoder" else item, quantize) + extra.get(unit, 0)
        for unit in memory.UNITS
    }
    streamed: dict[memory.Unit, int] = {
        unit: max((piece.stored(item, quantize) for piece in shape.pieces[unit]), default=0) + extra.get(unit, 0)
        if unit in shape.pieces
        else size
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
