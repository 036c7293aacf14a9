"""Noise, schedule and the denoising loop: tensors in, tensors out.

Flow matching: latents at sigma are `(1 - sigma) * clean + sigma * noise`, the model predicts the velocity
`noise - clean`, and an Euler step moves along it. No classifier-free guidance: the released model has none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

SIGMA_MIN = 0.003 / 1.002
"""Lowest sigma before the shift, of the released inference code. Its training and benchmark code use 0."""

SHIFT = 5.0
"""Released scheduler config: moves the steps towards the noisy end, `s -> 5 s / (1 + 4 s)`."""

TIMESTEPS = 1000
"""Timestep = 1000 * sigma."""


def flow_sigmas(steps: int, shift: float = SHIFT, sigma_min: float = SIGMA_MIN) -> torch.Tensor:
    """The noise levels of a run.

    Args:
        steps: number of model evaluations, at least 1.
        shift: the schedule's warp; 1 leaves it even.
        sigma_min: where the unwarped schedule would end; the last step always goes to 0.

    Returns:
        (steps + 1,) fp32 on the CPU, from 1 down to 0.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    even = torch.linspace(1.0, sigma_min, steps + 1, dtype=torch.float64)[:-1].to(torch.float32)
    warped = shift * even / (1 + (shift - 1) * even)
    return torch.cat([warped, torch.zeros(1)])


def make_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal fp32 on the CPU, the same for a seed on every device and at every precision."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def denoise(
    velocity: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    latents: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Euler steps along the predicted velocity.

    Args:
        velocity: (latents fp32, sigma () fp32, step number) -> velocity of the latents' shape, any precision.
        latents: starting noise. Kept in fp32 between the steps, whatever the model computes in.
        sigmas: (steps + 1,) as `flow_sigmas` gives them.
        on_step: called with (steps done, steps) after each.

    Returns:
        The denoised latents, fp32.
    """
    latents = latents.to(torch.float32)
    sigmas = sigmas.to(latents.device)  # indexed on the device: no synchronisation inside the loop
    steps = len(sigmas) - 1
    for step in range(steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        prediction = velocity(latents, sigma, step)
        latents = latents + prediction.to(torch.float32) * (sigma_next - sigma)
        if on_step is not None:
            on_step(step + 1, steps)
    return latents
