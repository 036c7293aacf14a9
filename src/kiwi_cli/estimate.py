"""What an edit will take, before anything is loaded: tokens, operations and memory counted from shapes, and time
from a recorded rate. No torch.

The counts are those of memory.py and of `kiwi bench speed`; what is not known exactly before the prompt is built
(the language model's tokens) is rounded up, and everything shown from here is called an estimate.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli import memory, weights
from kiwi_cli.errors import DeviceError
from kiwi_cli.video import Size, latent_frame_count
from kiwi_cli.weights.settings import size_multiple

VISION_AREA = 262_144  # pixels of a frame that the language model sees, at most; 100,352 at least
VISION_AREA_LEAST = 100_352
VISION_FRAMES = 16
VISION_PATCH = 14 * 14  # pixels
MERGED_PATCHES = 4  # patches to a token
VISION_TOKEN = VISION_PATCH * MERGED_PATCHES  # pixels
PROMPT_TOKENS = 80  # system prompt, template and an instruction of ordinary length
TOKEN_LATENTS = 2  # latent pixels a token, each way

# TFLOP for a latent frame of 1280x704, counted with the released VAE; the language model's for a full prompt.
ENCODE_TFLOP, DECODE_TFLOP, PROMPT_TFLOP = 256 / 21, 1348 / 21, 33.0
FULL_PIXELS = 1280 * 704


@dataclass(frozen=True)
class Shape:
    """What the counts need to know of a model.

    Attributes:
        width, ffn, layers: of the transformer. latent_channels, encoder, decoder: of the VAE (base widths).
        text, vision: hidden + feed-forward width of the language model and of its eyes.
        queries: for a picture, a video, a reference.
        parameters: of each unit that is moved; streamed: of each when it comes piece by piece.
        grid: pixels a token, each way. least_area: pixels of a frame that the language model sees, at least.
    """

    width: int
    ffn: int
    layers: int
    latent_channels: int
    encoder: int
    decoder: int
    text: int
    vision: int
    queries: tuple[int, int, int]
    parameters: dict[str, int]
    streamed: dict[str, int]
    grid: int = 32
    least_area: int = VISION_AREA_LEAST


RELEASED_5B = Shape(
    width=3072,
    ffn=14336,
    layers=30,
    latent_channels=48,
    encoder=160,
    decoder=256,
    text=2048 + 11008,
    vision=1280 + 3420,
    queries=(256, 512, 768),
    # Counted from the released checkpoint's keys and shapes.
    parameters={
        "mllm": 3_789_238_272,
        "vae_encoder": 149_637_088,
        "transformer": 5_000_973_504,
        "vae_decoder": 555_051_580,
    },
    streamed={
        "mllm": 2 * 311_164_928,
        "vae_encoder": 149_637_088,
        "transformer": 5_000_973_504 - 28 * 163_656_704,
        "vae_decoder": 555_051_580,
    },
)


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


def read_shape(folder: Path) -> Shape:
    """The shape of a checkpoint in the released layout, from its configs and its files' headers.

    Raises:
        CheckpointError: a part is missing or broken.
    """
    dit = weights.read_json(folder / "transformer" / "config.json")
    vae = weights.read_json(folder / "vae" / "config.json")
    mllm = weights.read_json(folder / "mllm_encoder" / "config.json")
    qwen = weights.read_json(folder / "processor" / "qwen_config.json")
    text, vision = qwen.get("text_config", qwen), qwen.get("vision_config", {})
    base = vae.get("dim", vae.get("base_dim", 160))
    parameters, streamed = _units(folder)
    return Shape(
        width=dit["num_attention_heads"] * dit["attention_head_dim"],
        ffn=dit["ffn_dim"],
        layers=dit["num_layers"],
        latent_channels=vae.get("z_dim", 48),
        encoder=base,
        decoder=vae.get("dec_dim", vae.get("decoder_base_dim")) or 256,
        text=text.get("hidden_size", 2048) + text.get("intermediate_size", 11008),
        vision=vision.get("hidden_size", 1280) + vision.get("intermediate_size", 3420),
        queries=(mllm["num_image_queries"], mllm["num_video_queries"], mllm["num_ref_queries"]),
        parameters=parameters,
        streamed=streamed,
        grid=size_multiple(folder),
        least_area=mllm.get("min_visual_tokens", VISION_AREA_LEAST // VISION_TOKEN) * VISION_TOKEN,
    )


def estimate(shape: Shape, size: Size, frames: int, references: int, steps: int, item: int = 2) -> Estimate:
    """Count an edit.

    Args:
        frames: given to the model. references: how many pictures. item: bytes of the compute precision.
    """
    latent_frames = latent_frame_count(frames)
    tokens = (latent_frames + references) * (size.width // shape.grid) * (size.height // shape.grid)
    area = min(max(size.width * size.height, shape.least_area), VISION_AREA)
    patches = seen = -(-min(frames, VISION_FRAMES) // 2) * area // VISION_PATCH
    context = shape.queries[2 if references else 1 if frames > 1 else 0]
    if references:
        picture = MERGED_PATCHES * shape.queries[2]  # a reference picture, at most
        patches, seen = patches + picture, max(patches, picture)
        context += shape.queries[2]
    prompt = patches // MERGED_PATCHES + context + PROMPT_TOKENS
    step = step_operations(shape, tokens, context) / 1e12
    scale = size.width * size.height / FULL_PIXELS * (shape.decoder / RELEASED_5B.decoder) ** 2
    vae = scale * ((latent_frames + references) * ENCODE_TFLOP + latent_frames * DECODE_TFLOP)
    language = PROMPT_TFLOP * shape.parameters["mllm"] / RELEASED_5B.parameters["mllm"]
    work = memory.Work(
        width=size.width,
        height=size.height,
        frames=4 * latent_frames - 3,
        tokens=tokens,
        encoder_width=shape.encoder * 4,  # the encoder stays fp32
        decoder_width=shape.decoder * item,
        transformer=shape.width * item,
        prompt=memory.prompt_bytes(seen, shape.vision, prompt, shape.text, item),
        latent_bytes=16
        * shape.latent_channels
        * (size.width * TOKEN_LATENTS // shape.grid)
        * (size.height * TOKEN_LATENTS // shape.grid)
        * (latent_frames + references),
    )
    held = _weights(shape, item)
    # Strips cost little: a level that frees parts is shown with as many as help it.
    levels: dict[str, int] = {
        level: min(memory.peak(level, n, n, held, work) for n in (memory.STRIPS if level != "resident" else (1,)))
        for level in memory.EXACT
    }
    return Estimate(latent_frames, tokens, context, step, steps * step + vae + language, levels, held, work)


def step_operations(shape: Shape, tokens: int, context: int) -> float:
    """Floating-point operations of one forward of the transformer's blocks."""
    linear = 12 * tokens * shape.width**2 + 4 * context * shape.width**2 + 4 * tokens * shape.width * shape.ffn
    attention = 4 * tokens**2 * shape.width + 4 * tokens * context * shape.width
    return float(shape.layers * (linear + attention))


def seconds(found: Estimate, device: str) -> tuple[float, Recorded] | None:
    """How long an edit takes on a device whose rate is recorded, and by what; None for any other."""
    for recorded in RECORDED:
        if recorded.device in device:
            return found.tflop / recorded.tflops, recorded
    return None


def _weights(shape: Shape, item: int) -> memory.Weights:
    bytes_of = {unit: 4 if unit == "vae_encoder" else item for unit in memory.UNITS}
    return memory.Weights(
        {unit: shape.parameters[unit] * bytes_of[unit] for unit in memory.UNITS},
        {unit: shape.streamed[unit] * bytes_of[unit] for unit in memory.UNITS},
    )


def _units(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters of each unit that is moved, whole and piece by piece, from the headers."""
    sizes: Counter[str] = Counter()
    blocks: Counter[str] = Counter()
    leaves: Counter[str] = Counter()
    for (part, _), files in weights.open_all(folder).items():
        for key, info in files.infos.items():
            unit = "transformer"
            if part == "mllm_encoder":
                unit = "mllm"
                leaves[key.rpartition(".")[0]] += info.elements
            elif part == "vae":
                decoding = key.startswith(("decoder.", "conv2.", "post_quant_conv."))
                unit = "vae_decoder" if decoding else "vae_encoder"
            elif key.startswith("blocks."):
                blocks[key.split(".")[1]] += info.elements
            sizes[unit] += info.elements
    streamed = dict(sizes)
    streamed["transformer"] += 2 * max(blocks.values(), default=0) - sum(blocks.values())
    streamed["mllm"] = 2 * max(leaves.values(), default=0)
    return dict(sizes), streamed


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
