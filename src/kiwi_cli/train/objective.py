"""What training minimises: timesteps, noise, velocity target and loss weights of the released recipe.

Flow matching. At noise level sigma the model sees `(1 - sigma) * clean + sigma * noise` and predicts the velocity
`noise - clean`; the squared error is weighted by the timestep. Released training code (showlab/Kiwi-Edit at 223572d):
the timestep's number is uniform over 1000 steps of the shifted schedule, from sigma 1 down towards 0.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from kiwi_cli.model.sampling import SHIFT, TIMESTEPS, flow_sigmas

STEPS = 1000
"""Steps of the training schedule."""


@lru_cache
def training_sigmas(shift: float) -> torch.Tensor:
    """(1000,) fp32 noise levels, from 1 down; training ends the unwarped schedule at 0."""
    return flow_sigmas(STEPS, shift, sigma_min=0.0)[:-1]


@lru_cache
def loss_weights(shift: float) -> torch.Tensor:
    """(1000,) fp32: `exp(-2 ((t - 500) / 1000)^2)` minus its least value, scaled to a mean of 1 over the schedule.

    The weight is looked up with the timestep as the model sees it, rounded to bfloat16: the step whose own timestep
    is nearest to that.
    """
    timesteps = training_sigmas(shift) * TIMESTEPS
    bell = torch.exp(-2.0 * ((timesteps - STEPS / 2) / STEPS) ** 2)
    bell = bell - bell.min()
    bell = bell * (STEPS / bell.sum())
    rounded = timesteps.to(torch.bfloat16).to(torch.float32)
    nearest = (timesteps[None] - rounded[:, None]).abs().argmin(dim=1)
    return bell[nearest]


Timesteps = Literal["uniform", "weighted"]
"""How timesteps are drawn: evenly and weighted in the loss, as released; or as often as they weigh, and all alike in
the loss. The expected loss is the same, and none of the work goes into timesteps that hardly count."""


@lru_cache
def _cumulative(shift: float) -> np.ndarray:
    """Share of the loss's weight up to each step, (1000,)."""
    weights = loss_weights(shift).double().numpy()
    return np.cumsum(weights) / weights.sum()


def draw(
    seed: int,
    position: int,
    draws: int,
    shape: tuple[int, ...],
    timesteps: Timesteps = "uniform",
    shift: float = SHIFT,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Timesteps and noises of one sample: a pure function of the seed and its position in the run.

    So a run that was interrupted, split among processes or cut into smaller batches draws the same.

    Args:
        position: global number of the sample, from 0. draws: how many timesteps and noises.
        shape: of the latents. shift: of the schedule.

    Returns:
        Numbers of the steps (draws,) int64 in 0..999; their weights in the loss (draws,) fp32; and noises
        (draws, *shape), standard normal fp32.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    if timesteps == "uniform":
        steps = generator.integers(0, STEPS, draws)
        weights = loss_weights(shift)[torch.from_numpy(steps)]
    else:
        steps = np.searchsorted(_cumulative(shift), generator.random(draws), side="right").clip(0, STEPS - 1)
        weights = loss_weights(shift).mean().expand(draws)
    noise = generator.standard_normal((draws, *shape), np.float32)
    return torch.from_numpy(steps), weights, torch.from_numpy(noise)


def noised(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """`(1 - sigma) * clean + sigma * noise`; (B, C, T, h, w) fp32 each, sigma (B,)."""
    level = sigma.view(-1, 1, 1, 1, 1)
    return (1.0 - level) * clean + level * noise


def velocity_loss(
    velocity: torch.Tensor,
    clean: torch.Tensor,
    noise: torch.Tensor,
    timestep_weight: torch.Tensor,
    place_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared error of the velocity in fp32, a value for each sample.

    Args:
        velocity, clean, noise: (B, C, T, h, w).
        timestep_weight: (B,). place_weight: (B, T, h, w) of mean 1, or None.

    Returns:
        (B,) fp32.
    """
    error = (velocity.to(torch.float32) - (noise - clean)).square().mean(dim=1)
    if place_weight is not None:
        error = error * place_weight
    return error.flatten(1).mean(dim=1) * timestep_weight
