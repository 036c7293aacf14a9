"""What an edit asks of the device beside the weights: bytes of each stage, by the model's widths and its own shape.

There is one count, `demand`, behind the plan of a loaded model, the dry run and the doctor. They differ in one thing:
a loaded model has built its prompt (`built_prompt`); before that it is estimated (`expected_prompt`). No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from kiwi_cli.model.vision_sizes import frame_sizes, picture_size
from kiwi_cli.video import Size, latent_frame_count, padded_frame_count

if TYPE_CHECKING:
    import numpy as np
    import torch

    from kiwi_cli.model.prompt import MLLMInputs
    from kiwi_cli.model.shape import Shape, Widths

Stage = Literal["instruction", "encode", "denoise", "decode"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Products = Literal["plain", "int8", "fp8"]
"""How the transformer multiplies: in its precision, with int8 weights, or in fp8."""

STRIPS = (1, 2, 4)
"""Numbers of vertical strips. More would need more: each strip remembers what its halo saw as well."""

# Peaks beside the weights. The whole coders, the compiled decoder and the transformer were measured on an H100 at the
# full shape (benchmarks/results/), kernels' workspaces included; the count of live tensors on `meta`, 1 to 3 % less,
# gives the shares of the strips (tests/memory/test_plan.py counts again).
# VAE: bytes for each pixel, channel of the coder's base width and byte of precision, by number of strips.
DECODE = {1: 13.5, 2: 12.8, 4: 12.2}
ENCODE = {1: 7.9, 2: 6.4, 4: 5.8}
# What the compiled decoder's graph keeps beside that, in the same unit: measured without strips; in strips counted, by
# their share of the width, halos included. The blocks' graph needs less than the blocks.
DECODE_GRAPH = {1: 7.0, 2: 3.8, 4: 2.3}
# Transformer: times tokens, width and bytes of precision.
DENOISE = 15.8
# The same by how it multiplies and whether in a graph, where that is more: activations are rounded to fp8 by way of
# fp32, which a graph does not keep; a graph of int8 weights keeps products before and after they are scaled.
DENOISE_8_BITS = {("fp8", False): 41.0, ("int8", True): 22.0}
# Language model, counted: times tokens, hidden plus feed-forward width, and bytes of precision; its vision tower: times
# patches likewise, by bytes of precision, for in half precision it turns queries and keys in fp32.
PROMPT = 3.3
VISION = {2: 4.6, 4: 3.3}

# The library's blended tiles, counted: one tile of its default size, in the unit of DECODE; all tiles of a clip, and
# the joined clip with its copies, in bytes for each pixel of each frame, in half precision.
TILE, TILE_PIXELS = 21.2, 256 * 256
TILES, JOINED = 10.7, 30.2

ENCODER_ITEM = 4
"""Bytes of the encoder's precision: it stays fp32."""

PATCH_PIXELS = 14 * 14
PATCH_BYTES = 4 * 2 * 3 * PATCH_PIXELS  # of two frames, fp32
MERGED_PATCHES = 4  # patches to a token
PROMPT_TOKENS = 80  # system prompt, template and an instruction of ordinary length
CONTEXT_TOKENS = 1024  # that there is room for through all stages
TOKEN_LATENTS = 2  # latent pixels a token, each way


@dataclass(frozen=True)
class Prompt:
    """What the language model reads. `patches`: of all pictures; `seen`: in the vision tower's largest call."""

    tokens: int
    patches: int
    seen: int


def expected_prompt(shape: Shape, size: Size, frames: int, references: int) -> Prompt:
    """What a prompt will be, rounded up: its words are not known, and a reference picture may be of any size."""
    still = frames == 1 and not references
    sight = picture_size(*size, shape.bounds) if still else frame_sizes(*size, shape.bounds)[1]
    patches = seen = -(-min(frames, shape.bounds.max_frames) // 2) * sight[0] * sight[1] // PATCH_PIXELS
    if references:
        picture = MERGED_PATCHES * shape.bounds.max_reference_tokens  # a reference picture, at most
        patches, seen = patches + picture, max(patches, picture)
    tokens = patches // MERGED_PATCHES + context_tokens(shape, frames, references) + PROMPT_TOKENS
    return Prompt(tokens, patches, seen)


def context_tokens(shape: Shape, frames: int, references: int) -> int:
    """Tokens that the language model hands to the transformer, at most."""
    if references:
        return shape.queries[2] + shape.bounds.max_reference_tokens
    return shape.queries[1 if frames > 1 else 0]


def built_prompt(inputs: MLLMInputs) -> Prompt:
    """What a prompt is."""
    pixels = [values for values in (inputs.pixel_values_videos, inputs.pixel_values) if values is not None]
    patches = [len(values) for values in pixels]  # a video and a picture are seen one after the other
    return Prompt(inputs.input_ids.numel(), sum(patches), max(patches))


@dataclass(frozen=True)
class Demand:
    """What an edit asks of the device beside the weights.

    Attributes:
        width, height: of a frame, pixels. frames: of the clip, padded.
        tokens: of the video and its references.
        encoder_width, decoder_width: the VAE's base widths times bytes of precision.
        transformer: bytes of one token: width times bytes of precision.
        prompt: bytes of the language model's activations.
        latent_bytes: what latents and context take through all stages.
        compiled: whether the decoder and the transformer's blocks run as graphs.
        products: how the transformer multiplies.
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
    compiled: bool = False
    products: Products = "plain"

    def activations(self, stage: Stage, strips: int, tiled: bool = False) -> int:
        """Peak bytes of a stage beside the weights."""
        pixels = self.width * self.height
        decode = DECODE[strips] + (DECODE_GRAPH[strips] if self.compiled else 0)
        step = DENOISE_8_BITS.get((self.products, self.compiled), DENOISE)
        counts: dict[Stage, float] = {
            "instruction": self.prompt,
            "encode": ENCODE[strips] * pixels * self.encoder_width,
            "denoise": step * self.tokens * self.transformer,
            "decode": decode * pixels * self.decoder_width,
        }
        if tiled:  # they are blended when all frames of all tiles are there; the encoder has none
            tile = TILE * min(pixels, TILE_PIXELS) * self.decoder_width
            counts["decode"] = max(tile + TILES * pixels * self.frames, JOINED * pixels * self.frames)
        return int(counts[stage]) + self.latent_bytes

    def resized(self, scale: float) -> Demand:
        """The same edit at another size, in multiples of 32."""
        width, height = (max(32, math.floor(side * scale / 32) * 32) for side in (self.width, self.height))
        share = width * height / (self.width * self.height)
        return replace(self._scaled(share), width=width, height=height)

    def shortened(self, frames: int) -> Demand:
        """The same edit with fewer frames."""
        return replace(self._scaled(frames / self.frames), frames=frames)

    def _scaled(self, share: float) -> Demand:
        tokens, latent_bytes = math.ceil(self.tokens * share), math.ceil(self.latent_bytes * share)
        return replace(self, tokens=tokens, latent_bytes=latent_bytes)


def demand(
    model: Widths,
    size: Size,
    frames: int,
    references: int,
    prompt: Prompt,
    item: int,
    compiled: bool = False,
    products: Products = "plain",
) -> Demand:
    """What an edit asks of the device, in counted bytes for each stage.

    Args:
        frames: given to the model. references: how many pictures. prompt: what the language model reads.
        item: bytes of the compute precision. compiled, products: as in `Demand`.
    """
    latent_frames = latent_frame_count(frames)
    grid = (size.width // model.grid) * (size.height // model.grid)
    token = model.width * item
    reading = max(VISION[item] * prompt.seen * model.vision, PROMPT * prompt.tokens * model.text) * item
    # Source, noise and result in fp32, once more while they change.
    latents = 4 * 4 * model.latent_channels * grid * TOKEN_LATENTS**2 * (latent_frames + references)
    return Demand(
        width=size.width,
        height=size.height,
        frames=padded_frame_count(frames),
        tokens=(latent_frames + references) * grid,
        encoder_width=model.encoder * ENCODER_ITEM,
        decoder_width=model.decoder * item,
        transformer=token,
        prompt=int(reading) + prompt.patches * PATCH_BYTES,
        latent_bytes=latents + CONTEXT_TOKENS * token,
        compiled=compiled,
        products=products,
    )


class Parts(Protocol):
    """Of a pipeline, what the counts are made from: its modules with their configs."""

    transformer: Any
    vae: Any
    mllm_encoder: Any

    @property
    def size_multiple(self) -> int: ...

    @property
    def compute_dtype(self) -> torch.dtype: ...


def widths_of(pipe: Parts) -> Widths:
    """The widths of a loaded model, from the configs of its parts."""
    dit, vae, qwen = pipe.transformer.config, pipe.vae.config, pipe.mllm_encoder.qwen.config
    from kiwi_cli.model.shape import Widths  # only here: the command line asks for levels before it needs models

    return Widths(
        width=dit.num_attention_heads * dit.attention_head_dim,
        latent_channels=vae.z_dim,
        encoder=vae.base_dim,
        decoder=vae.decoder_base_dim or vae.base_dim,
        text=qwen.text_config.hidden_size + qwen.text_config.intermediate_size,
        vision=qwen.vision_config.hidden_size + qwen.vision_config.intermediate_size,
        grid=pipe.size_multiple,
    )


def demand_of(pipe: Parts, frames: np.ndarray, references: int, inputs: MLLMInputs) -> Demand:
    """What an edit of these frames asks of the device of a loaded model.

    Args:
        frames: (F, H, W, 3). references: how many pictures. inputs: the prompt.
    """
    count, height, width = frames.shape[:3]
    return demand(
        widths_of(pipe),
        Size(width, height),
        count,
        references,
        built_prompt(inputs),
        pipe.compute_dtype.itemsize,
        pipe.transformer.compiled,
        pipe.transformer.products,
    )
