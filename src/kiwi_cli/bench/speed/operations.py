"""Floating-point operations of each stage of an edit, counted: what its time can be read against.

The coders are counted whole, on `meta`: strips compute their halos twice, and that is a cost, not work to be done.
The transformer's are summed from its shapes; the language model's by torch's counter while it reads a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from kiwi_cli.engine import estimate
from kiwi_cli.model import vae as wan_vae


def step_operations(config: Any, tokens: int, context_tokens: int) -> float:
    """Operations of one forward of the transformer's blocks.

    Args:
        config: the transformer's (`num_layers`, `num_attention_heads`, `attention_head_dim`, `ffn_dim`).
        tokens: video and reference tokens. context_tokens: of the instruction encoder.
    """
    width = config.num_attention_heads * config.attention_head_dim
    return estimate.step_operations(width, config.ffn_dim, config.num_layers, tokens, context_tokens)


def coder_operations(config: Any, latent_frames: int, height: int, width: int, references: int) -> tuple[float, float]:
    """Operations of encoding a clip and its reference pictures, and of decoding it.

    Args:
        config: the VAE's. latent_frames: of the clip. height, width: pixels, as the coders work.
    """
    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(dict(config)).eval()
    stride, scale = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial

    def chunk(frames: int) -> torch.Tensor:
        return torch.empty(1, 3, frames, height, width, device="meta")

    latents = torch.empty(1, vae.config.z_dim, latent_frames, height // scale, width // scale, device="meta")
    first = counted(lambda: list(wan_vae.encode_stream(vae, [chunk(1)])))
    clip = [chunk(1), *(chunk(stride) for _ in range(latent_frames - 1))]
    encode = counted(lambda: list(wan_vae.encode_stream(vae, clip)))
    return encode + references * first, counted(lambda: list(wan_vae.decode_stream(vae, latents)))


@torch.no_grad()
def counted(work: Callable[[], Any]) -> float:
    """Operations of matrix products, convolutions and attention that run in `work`."""
    with FlopCounterMode(display=False, custom_mapping=_FUSED_ATTENTION) as counter:
        work()
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    """Operations of one fused attention call, from the shapes (B, heads, tokens, width) of its operands.

    Every query head does the whole work, also where several share a key head: torch's own formula refuses those.
    """
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


_FUSED_ATTENTION = {
    operator: _attention
    for name in (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
    )
    if (operator := getattr(torch.ops.aten, name, None)) is not None
}
"""torch's counter leaves the CPU's fused attention out, and in some versions stops at shared key heads."""
