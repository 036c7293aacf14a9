"""The library's scheduler as a part of the pipeline: which one can be, and the noise levels it gives."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from kiwi_cli.errors import UsageError
from kiwi_cli.model import sampling

UNUSABLE = ("use_dynamic_shifting", "stochastic_sampling", "invert_sigmas")
"""Switches of the library's scheduler that ask for another path than the model was trained on."""


def released_schedule(shift: float = sampling.SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of the released model, with its shift or another."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=sampling.TIMESTEPS, shift=shift)


def check_schedule(scheduler: Any) -> None:
    """Refuse a scheduler that the pipeline would not follow.

    Raises:
        UsageError: another class, or one of the `UNUSABLE` switches.
    """
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise UsageError(
            f"the scheduler cannot be a {type(scheduler).__name__}",
            "use a FlowMatchEulerDiscreteScheduler; edit(..., solver='unipc') takes fewer steps",
        )
    for switch in UNUSABLE:
        if scheduler.config.get(switch):
            raise UsageError(f"the scheduler cannot have {switch}", "leave it at False")


def set_steps(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, sigma_min: float, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The noise levels of a run, (steps + 1,) fp32 from 1 down to 0, as a scheduler gives them.

    It is told the levels before its shift: its own choice for a number of steps is not the released one.
    """
    even = sampling.even_sigmas(steps, sigma_min)
    scheduler.set_timesteps(sigmas=even.tolist(), device=device)
    scheduler.set_begin_index(0)
    return scheduler.sigmas
