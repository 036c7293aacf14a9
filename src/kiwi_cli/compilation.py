"""Compilation of what repeats: the transformer's blocks, compiled once for all layers, steps and clips of a shape.

The VAE's decoder is left as it is: its causal caches change with every call, and its norms, compiled alone, need a
graph for every resolution and chunk length.
"""

from __future__ import annotations

from typing import Any

from kiwi_cli.errors import UsageError


def compile_model(transformer: Any, backend: str = "inductor") -> None:
    """Compile in place; the work happens at the first step.

    The result differs from the eager one by the rounding of fused operations.

    Args:
        backend: of torch.compile.

    Raises:
        UsageError: this torch cannot compile here.
    """
    try:
        transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    except RuntimeError as error:
        raise UsageError(f"cannot compile here: {error}", "leave --compile out") from error
