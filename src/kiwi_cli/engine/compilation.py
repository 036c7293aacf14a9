"""Compilation of what repeats: the transformer's blocks, and the VAE's decoder from the second latent frame on.

A transformer block is one whole graph for all layers, steps and clips of a shape. The decoder's chunks all have the
same shapes but the first, and what its convolutions saw before is updated in place (vae_layers.py): so the decoder is
one whole graph for a size, or in strips one for the low-resolution half and one for each width of a strip. Weights
are inputs of the graphs: moving them on and off the device (residency.py) compiles nothing anew. A block's `forward` is
what is compiled, not its call: hooks that bring its weights to the device run around the graph.

The encoder is left as it is: it is a fifth of the decoder's work, and its graph would cost as much to make. The first
latent frame of a clip, and the library's blended tiles (`--memory tiled`), run as without compilation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kiwi_cli.errors import UsageError
from kiwi_cli.model.vae_layers import Frames, run

if TYPE_CHECKING:
    from kiwi_cli.engine.pipeline import KiwiPipeline
    from kiwi_cli.model.transformer import KiwiTransformer3DModel

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
        blocks = [torch.compile(block.forward, fullgraph=True, backend=backend) for block in pipe.transformer.blocks]
        compiled = torch.compile(run, fullgraph=True, dynamic=False, backend=backend)
    except RuntimeError as error:
        raise UsageError(f"cannot compile here: {error}", "leave --compile out") from error
    for block, forward in zip(pipe.transformer.blocks, blocks, strict=True):
        block.forward = forward
    pipe.transformer.compiled = True

    def steady(layers: Sequence[nn.Module], x: Tensor, frames: Frames) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=DECODER_GRAPHS):
            return compiled(layers, x, frames)

    pipe.decode_steady = steady


def use_eager_blocks(transformer: KiwiTransformer3DModel) -> None:
    """Take the graphs of the transformer's blocks off again."""
    for block in transformer.blocks:
        block.__dict__.pop("forward", None)  # the class's own shows again
    transformer.compiled = False


@contextmanager
def graphs_off(transformer: KiwiTransformer3DModel) -> Iterator[None]:
    """A context in which the transformer's blocks run as they are written; their graphs are there again afterwards."""
    graphs = [(block, block.__dict__.pop("forward", None)) for block in transformer.blocks]
    try:
        yield
    finally:
        for block, graph in graphs:
            if graph is not None:
                block.forward = graph
