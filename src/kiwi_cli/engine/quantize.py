"""Weights in 8 bits: half the memory of bf16 for the transformer and the language model. NOT exact.

    int8          torchao: int8 with a scale for each output row, multiplied in the pipeline's precision
    fp8           torchao: float8 e4m3 with a scale for each row; on a GPU that multiplies in fp8 (Ada, Hopper and
                  later) and in bf16 the activations too, scaled as they come; elsewhere the weights alone
    fp8-storage   the library's layerwise casting: e4m3 without a scale, cast back for each call; needs no package

Only the matrices of the repeated blocks change: nearly all of the weights. What is small and sensitive stays: patch
and condition embedders, time embedder, norms, output projection; in the language model the embeddings, the vision
tower's patch embedding and merger, the queries and the connectors. The VAE stays whole.

Merge LoRAs before: a quantised matrix cannot take one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from diffusers.hooks.layerwise_casting import apply_layerwise_casting_hook
from torch import nn

from kiwi_cli.engine.demand import Products
from kiwi_cli.engine.memory import GB
from kiwi_cli.engine.residency import Residency, stored_bytes, weigh
from kiwi_cli.engine.streaming import put_tensor, tensors_of
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.engine.pipeline import KiwiPipeline

Mode = Literal["int8", "fp8", "fp8-storage"]
MODES: tuple[Mode, ...] = get_args(Mode)

FP8_COMPUTE = (8, 9)
"""Compute capability from which tensor cores multiply in fp8: Ada; Hopper is 9.0."""


def quantize(pipe: KiwiPipeline, mode: str) -> str:
    """Put the large matrices of a pipeline's transformer and language model into 8 bits, in place and for good.

    Each goes to the pipeline's device for it and comes back: there is room for one on any.

    Args:
        pipe: with its own weights, on the CPU or wherever they are.
        mode: one of `MODES`.

    Returns:
        What was done, one line for the person; it joins `pipe.alterations`.

    Raises:
        UsageError: an unknown mode, a missing package, or a pipeline that is quantised already.
    """
    config, how = choose(mode, pipe.device, pipe.compute_dtype)
    residency = pipe.residency
    layers = [layer for _, layer in large_layers(pipe)]
    if is_quantized(pipe):
        raise UsageError(f"the weights are in 8 bits already; cannot make them {mode}", "quantise once, after loading")
    if residency is not None:
        for unit in tuple(residency.on_device):
            residency.evict(unit)

    before = _total(pipe)
    for layer in layers:
        with on_device(layer, residency):
            if config is None:
                apply_layerwise_casting_hook(layer, torch.float8_e4m3fn, pipe.compute_dtype, non_blocking=False)
            else:
                _convert(layer, config)
    pipe.transformer.products = products(mode, pipe.device, pipe.compute_dtype)
    if residency is not None:
        residency.weights = weigh(residency.units)  # plans are made with what there is now
    line = (
        f"{mode} weights: NOT exact, {how}; transformer and language model {before / GB:.2f} -> "
        f"{_total(pipe) / GB:.2f} GB"
    )
    pipe.alterations.append(line)
    return line


@contextmanager
def on_device(layer: nn.Linear, residency: Residency | None) -> Iterator[None]:
    """Weights on the device that they are for, and afterwards where they were: a GPU rounds five thousand million of
    them in seconds, a core of the host in more than a minute."""
    homes = {name: tensor.device for name, tensor in layer.named_parameters()}
    if residency is not None:
        for (module, name), tensor in list(tensors_of(layer)):
            put_tensor(module, name, residency.copy(tensor))
    yield
    for name, tensor in list(layer.named_parameters()):
        if tensor.device != homes[name]:
            put_tensor(layer, name, tensor.to(homes[name]))


def choose(mode: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, str]:
    """What a mode means on a device.

    Args:
        dtype: the pipeline's precision.

    Returns:
        torchao's config, or None for the library's casting; and words for it.

    Raises:
        UsageError: an unknown mode or a missing package.
    """
    precision = str(dtype).removeprefix("torch.")
    if mode not in MODES:
        raise UsageError(f"unknown weight format: '{mode}'", f"use {', '.join(MODES)}")
    if mode == "fp8-storage":
        return None, f"stored as e4m3 without a scale, computed in {precision}"
    if find_spec("torchao") is None:
        raise UsageError(
            f"{mode} weights need the package 'torchao'",
            "pip install 'kiwi-cli[quantize]', or use fp8-storage, which needs none",
        )
    from torchao import quantization as ao

    # set_inductor_config would change how the whole process compiles.
    if mode == "int8":
        return (
            ao.Int8WeightOnlyConfig(set_inductor_config=False),
            f"int8 with a scale for each row, computed in {precision}",
        )
    if products(mode, device, dtype) == "fp8":
        granularity = ao.PerRow()
        config = ao.Float8DynamicActivationFloat8WeightConfig(granularity=granularity, set_inductor_config=False)
        return config, "weights and activations e4m3 with a scale for each row, computed in fp8"
    return (
        ao.Float8WeightOnlyConfig(set_inductor_config=False),
        f"e4m3 with a scale for each row, computed in {precision}",
    )


def products(mode: str, device: torch.device, dtype: torch.dtype) -> Products:
    """How a transformer multiplies whose weights are kept as `mode` says: in fp8 its activations are rounded, too."""
    if mode == "fp8" and multiplies_fp8(device) and dtype == torch.bfloat16:
        return "fp8"
    return "int8" if mode == "int8" else "plain"


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device has matrix units for fp8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_COMPUTE


def large_layers(pipe: KiwiPipeline) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices of the repeated blocks, with their names."""
    qwen = pipe.mllm_encoder.qwen
    stacks = {
        "transformer.blocks": pipe.transformer.blocks,
        "mllm_encoder.qwen.visual.blocks": qwen.visual.blocks,
        "mllm_encoder.qwen.language_model.layers": qwen.language_model.layers,
    }
    for prefix, stack in stacks.items():
        for name, layer in stack.named_modules():
            if isinstance(layer, nn.Linear):
                yield f"{prefix}.{name}", layer


def is_quantized(pipe: KiwiPipeline) -> bool:
    """Whether the large matrices are in 8 bits."""
    return any(stored_bytes(layer.weight) < 2 * layer.weight.numel() for _, layer in large_layers(pipe))


def _convert(layer: nn.Linear, config: Any) -> None:
    from torchao.quantization import quantize_

    quantize_(layer, config)


def _total(pipe: KiwiPipeline) -> int:
    parts = (pipe.transformer, pipe.mllm_encoder)
    return sum(stored_bytes(tensor) for part in parts for tensor in part.state_dict().values())
