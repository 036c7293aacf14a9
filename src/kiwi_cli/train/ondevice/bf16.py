"""A training step in bf16: on CUDA with the weights of its products cast together, on a CPU compiled.

Autocast casts each weight on its own, and each gradient back: some 300 launches of a step that computes a few hundred
products. On CUDA it is a handful, and the numbers are the same. On a CPU launches cost little, and the passes between
the products take the time; there the layers are compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kiwi_cli.train.model import KiwiTrainModel

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules whose parameters autocast casts."""

SHAPES = 64
"""Of batches, at most, for each of which layers are compiled."""

Result = TypeVar("Result")


class Bf16:
    """Carries out work of a `KiwiTrainModel` under autocast to bf16.

    On a CPU the layers of the transformer and of the language model become C++, once for each shape; the compiler's
    results stay in torch's cache on the disk.

    Args:
        model: its parameters must be trained by now.
    """

    def __init__(self, model: KiwiTrainModel, device: torch.device) -> None:
        self._device = device.type
        self._narrow = Narrow(model, torch.bfloat16) if self._device == "cuda" else None
        if self._narrow is None:
            for layer in (*model.transformer.blocks, *model.mllm_encoder.qwen.language_model.layers):
                layer.compile(dynamic=False)

    def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns."""
        with torch.autocast(self._device, torch.bfloat16):
            if self._narrow is not None:
                return self._narrow.call(work)
            # The fused attention of a CPU takes twice as long backwards as the plain products, at a hundred tokens.
            with sdpa_kernel(SDPBackend.MATH), torch._dynamo.config.patch(recompile_limit=SHAPES):
                return work()


class Narrow:
    """Carries out work with a model's weights cast.

    Args:
        model: its trained fp32 parameters are cast, where they are a product's. They must be trained by now.
        dtype: autocast's.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        found = {
            f"model.{name}.{kind}": value
            for name, module in model.named_modules()
            if isinstance(module, PRODUCTS)
            for kind, value in module.named_parameters(recurse=False)
            if value.requires_grad and value.dtype == torch.float32
        }
        self._names, self._parameters = list(found), list(found.values())
        self._holder = _Holder(model)

    def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns; within it the model has the cast weights. Gradients reach the fp32 parameters."""
        narrow = _Cast.apply(self.dtype, *self._parameters)
        weights = dict(zip(self._names, narrow, strict=True))
        return torch.func.functional_call(self._holder, weights, (work,), tie_weights=False)


class _Holder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)  # what a form of batches does not use gets no gradient
        return tuple(_cast(list(parameters), dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        wide = iter(_cast([value for value in gradients if value is not None], torch.float32))
        return None, *(None if value is None else next(wide) for value in gradients)


def _cast(values: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    found = [torch.empty_like(value, dtype=dtype) for value in values]
    torch._foreach_copy_(found, values)
    return found
