"""The plain library path on the same weights, in turn with ours: one step, one encode and one decode after the other.

The library's own transformer forward (its default attention, no compilation, no conditions: a little less work than
ours, on as many tokens), and its whole-clip VAE coders, which hold all frames at once. The two alternate, so that what
a machine does beside falls on both, and what counts is the median of the ratios of neighbours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from kiwi_cli.engine.attention import set_attention
from kiwi_cli.engine.compilation import graphs_off
from kiwi_cli.model.pixels import to_pixels

if TYPE_CHECKING:
    from kiwi_cli.bench.speed.clock import Clock
    from kiwi_cli.engine.pipeline import KiwiPipeline

LEAST = 5
"""Pairs of a stage that are timed at least: a ratio of fewer says little."""

SHORT = 2.0
"""Seconds below which a stage is timed more often, up to `MOST` pairs."""

MOST = 15


@dataclass(frozen=True)
class Compared:
    """A stage of ours beside the library's.

    Attributes:
        seconds: the library's, median. ratio: ours to the library's, median of the pairs; least, most: of the ratios.
        pairs: how many there were.
    """

    seconds: float
    ratio: float
    least: float
    most: float
    pairs: int


@torch.no_grad()
def compare(
    pipe: KiwiPipeline, frames: np.ndarray, references: int, context_tokens: int, attention: str, clock: Clock
) -> dict[str, Compared]:
    """'step', 'encode' and 'decode' beside the library's. Both have everything on the device.

    A stage that does not fit the device is left out.

    Args:
        frames: (F, H, W, 3). references: how many pictures. attention: the kernel of our steps.
    """
    device = pipe.device
    pipe.to(device)
    found = {}
    for name, (ours, theirs) in _stages(pipe, frames, references, context_tokens, attention).items():
        try:
            found[name] = paired(ours, theirs, clock)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return found


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], clock: Clock) -> Compared:
    """Two ways of doing the same, timed in turn after one run of each; who begins alternates, too."""

    def timed(work: Callable[[], Any]) -> float:
        clock.synchronise()
        begin = time.perf_counter()
        work()
        clock.synchronise()
        return time.perf_counter() - begin

    first = timed(ours) + timed(theirs)
    pairs = LEAST if first > 2 * SHORT else MOST
    mine, library = [], []
    for turn in range(pairs):
        if turn % 2:
            library.append(timed(theirs))
            mine.append(timed(ours))
        else:
            mine.append(timed(ours))
            library.append(timed(theirs))
    ratios = [a / b for a, b in zip(mine, library, strict=True)]
    return Compared(statistics.median(library), statistics.median(ratios), min(ratios), max(ratios), pairs)


def _stages(
    pipe: KiwiPipeline, frames: np.ndarray, references: int, context_tokens: int, attention: str
) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Of each stage, ours and the library's."""
    device, dtype, transformer = pipe.device, pipe.compute_dtype, pipe.transformer
    pixels = to_pixels(frames).to(device, pipe.vae.encoder.conv_in.weight.dtype)
    latent_frames = 1 + (frames.shape[0] - 1) // pipe.frames_per_latent
    scale = pipe.vae.config.scale_factor_spatial
    area = (frames.shape[1] // scale, frames.shape[2] // scale)
    drawn = torch.randn(1, pipe.vae.config.z_dim, latent_frames + references, *area, device=device)
    video = drawn[:, :, :latent_frames]
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    context = torch.randn(1, context_tokens, width, device=device).to(dtype)
    sigma = torch.full((1,), 0.75, device=device)
    source = pipe.source_embedder(video)
    pictures = pipe.ref_embedder(drawn[:, :, latent_frames:]) if references else None
    latents, all_latents = video.to(dtype), drawn.to(dtype)

    def step() -> Any:
        set_attention(transformer, attention)
        return transformer(latents, 1000 * sigma, context, source_embeds=source, reference_embeds=pictures, sigma=sigma)

    def library_step() -> Any:
        set_attention(transformer, "sdpa")
        embedder = transformer.condition_embedder
        embedder.text_embedder = torch.nn.Identity()  # the library's forward calls it
        try:
            with graphs_off(transformer):
                return WanTransformer3DModel.forward(transformer, all_latents, 1000 * sigma, context)
        finally:
            embedder.text_embedder = None

    def encode() -> Any:
        return pipe.encode_source(frames)

    def library_encode() -> Any:
        return pipe.vae.encode(pixels).latent_dist.mode()

    def decode() -> Any:
        return list(pipe.decode(video, frames.shape[0]))

    def library_decode() -> Any:
        return pipe.vae.decode(video.to(pipe.vae.decoder.conv_in.weight.dtype)).sample

    return {
        "step": (step, library_step),
        "encode": (encode, library_encode),
        "decode": (decode, library_decode),
    }
