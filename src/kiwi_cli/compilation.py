"""Compilation of what repeats: the transformer's blocks, and the VAE's decoder from the second latent frame on.

A transformer block is one whole graph for all layers, steps and clips of a shape. The decoder's chunks all have the
same shapes but the first, and what its convolutions saw before is updated in place (coders.py): so the decoder is one
whole graph for a size, or in strips one for the low-resolution half and one for each width of a strip. Weights are
inputs of the graphs: moving them on and off the device (residency.py) compiles nothing anew.

The encoder is left as it is: it is a fifth of the decoder's work, and its graph would cost as much to make. The first
latent frame of a clip, and the library's blended tiles (`--memory tiled`), run as without compilation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kiwi_cli.coders import Frames, run
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.pipeline import KiwiPipeline

DECODER_GRAPHS = 64
"""Sizes and widths of strips that one process compiles the decoder for, before it refuses; torch's own limit is 8."""


def compile_model(pipe: KiwiPipeline, backend: Any = "inductor") -> None:
    """Compile in place; the work happens at the first step, and at the second latent frame that is decoded.

    The result differs from the eager one by the rounding of fused operations.

    Args:
        backend: of torch.compile.

    Raises:
        UsageError: this torch cannot compile here.
    """
    try:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
        compiled = torch.compile(run, fullgraph=True, dynamic=False, backend=backend)
    except RuntimeError as error:
        raise UsageError(f"cannot compile here: {error}", "leave --compile out") from error

    def steady(layers: Sequence[nn.Module], x: Tensor, frames: Frames) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=DECODER_GRAPHS):
            return compiled(layers, x, frames)

    pipe.decode_steady = steady
