"""The plain library path on the same weights, in the same run: what our stages are compared with.

The library's own transformer forward (its default attention, no compilation, no conditions: a little less work than
ours), and its whole-clip VAE coders, which hold all frames at once.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from kiwi_cli.attention import set_attention
from kiwi_cli.frames import to_pixels

if TYPE_CHECKING:
    from kiwi_cli.bench.clock import Clock
    from kiwi_cli.pipeline import KiwiPipeline


@torch.no_grad()
def time_library(
    pipe: KiwiPipeline, frames: np.ndarray, context_tokens: int, clock: Clock, repeats: int
) -> dict[str, float]:
    """Seconds of 'step', 'encode' and 'decode' as the library does them; medians after one warm-up. The pipeline's
    choice of attention is gone afterwards, and so are its compiled blocks.

    A stage that does not fit the device is left out, and all of them are with weights that are streamed: the
    library's hooks cannot be taken back.
    """
    if pipe.residency is not None and pipe.residency.streamed:
        return {}
    device = pipe.device
    pipe.to(device)  # the library keeps everything on the device
    transformer = pipe.transformer
    set_attention(transformer, "sdpa")
    for block in transformer.blocks:
        block._compiled_call_impl = None
    transformer.condition_embedder.text_embedder = torch.nn.Identity()  # the library's forward calls it
    pixels = to_pixels(frames).to(device, pipe.vae.encoder.conv_in.weight.dtype)
    latent_frames = 1 + (frames.shape[0] - 1) // pipe.frames_per_latent
    scale = pipe.vae.config.scale_factor_spatial
    shape = (1, pipe.vae.config.z_dim, latent_frames, frames.shape[1] // scale, frames.shape[2] // scale)
    latents = torch.randn(shape, device=device).to(pipe.compute_dtype)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    context = torch.randn(1, context_tokens, width, device=device).to(pipe.compute_dtype)
    timestep = torch.full((1,), 750.0, device=device)

    def step() -> Any:
        return WanTransformer3DModel.forward(transformer, latents, timestep, context, return_dict=False)

    def encode() -> Any:
        return pipe.vae.encode(pixels).latent_dist.mode()

    def decode() -> Any:
        return pipe.vae.decode(latents.to(pipe.vae.decoder.conv_in.weight.dtype)).sample

    times: dict[str, float] = {}
    try:
        for name, work in (("step", step), ("encode", encode), ("decode", decode)):
            try:
                for turn in range(repeats + 1):
                    clock.keep = turn > 0
                    with clock(f"library {name}"):
                        work()
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                continue
            times[name] = statistics.median(clock.times.pop(f"library {name}"))
    finally:
        transformer.condition_embedder.text_embedder = None
        clock.keep = True
    return times
