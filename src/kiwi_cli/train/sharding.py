"""Tensors that FSDP has spread over the processes, to whole ones and back. Others pass through as they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether each process holds only its part."""
    return hasattr(tensor, "full_tensor")


def gather(tensors: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Whole tensors. Every process must call this, with the same names in the same order.

    Args:
        keep: whether this process wants them, on the CPU where they were spread; others get an empty table.
    """
    found = {}
    for name, value in tensors.items():
        whole = value.full_tensor().cpu() if is_spread(value) else value  # type: ignore[attr-defined]
        if keep:
            found[name] = whole
    return found


def forget_whole(model: torch.nn.Module) -> None:
    """Let go of whole weights that FSDP kept from a forward without a backward: they are not those of the next step."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def like(whole: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor on `model`'s device, spread as `model` is if it has its shape."""
    if not is_spread(model) or whole.shape != model.shape:
        return whole.to(model.device)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = model.device_mesh, model.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(model.device), mesh, placements)
