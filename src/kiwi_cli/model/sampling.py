"""Noise, schedule, solvers and the denoising loop: tensors in, tensors out.

Flow matching: latents at sigma are `(1 - sigma) * clean + sigma * noise`, the model predicts the velocity
`noise - clean`, and a solver moves along it. No classifier-free guidance: the released model has none.

`euler` is what the model is released with. `unipc` reaches the same path's end in fewer steps, and at the same
number of steps gives another result: it is NOT exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from kiwi_cli.errors import UsageError
from kiwi_cli.model.transfer import send

SIGMA_MIN = 0.003 / 1.002
"""Lowest sigma before the shift, of the released inference code. Its training and benchmark code use 0."""

SHIFT = 5.0
"""Released scheduler config: moves the steps towards the noisy end, `s -> 5 s / (1 + 4 s)`."""

TIMESTEPS = 1000
"""Timestep = 1000 * sigma."""

Solver = Literal["euler", "unipc"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
APPROXIMATE_SOLVERS: dict[str, str] = {
    "unipc": "solver unipc: NOT exact, another path than the released Euler steps",
}
"""Solvers that are not the released one, and the line that says so."""

Velocity = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(latents fp32, sigma () fp32, step number) -> velocity of the latents' shape, any precision."""


def flow_sigmas(steps: int, shift: float = SHIFT, sigma_min: float = SIGMA_MIN) -> torch.Tensor:
    """The noise levels of a run.

    Args:
        steps: number of model evaluations, at least 1.
        shift: the schedule's warp; 1 leaves it even.
        sigma_min: where the unwarped schedule would end; the last step always goes to 0.

    Returns:
        (steps + 1,) fp32 on the CPU, from 1 down to 0.
    """
    even = even_sigmas(steps, sigma_min)
    warped = shift * even / (1 + (shift - 1) * even)
    return torch.cat([warped, torch.zeros(1)])


def even_sigmas(steps: int, sigma_min: float = SIGMA_MIN) -> torch.Tensor:
    """The noise levels of a run before the shift, without the last 0: (steps,) fp32 on the CPU."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return torch.linspace(1.0, sigma_min, steps + 1, dtype=torch.float64)[:-1].to(torch.float32)


def make_noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal fp32 on the CPU, the same for a seed on every device and at every precision."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def check_run(steps: int, seed: int, solver: str) -> None:
    """Refuse what cannot be denoised with.

    Raises:
        UsageError: steps below 1, a seed that does not fit into 64 bits, or none of `SOLVERS`.
    """
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}", "50 is what the model is released with")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed must be from 0 to 2**64 - 1, not {seed}", "any such number will do")
    if solver not in SOLVERS:
        raise UsageError(f"unknown solver: '{solver}'", f"use {' or '.join(SOLVERS)}")


def velocity_of(model: Any, dtype: torch.dtype, context: torch.Tensor, **conditions: Any) -> Velocity:
    """A transformer and what stays the same at every step -> its velocity at any latents and sigma.

    Args:
        model: called as `KiwiTransformer3DModel` is.
        dtype: of its work. The latents are rounded to it; the sigma that scales the source is not.
        context: (1, N, D) tokens.
        conditions: embeddings and their order, handed on.
    """

    def velocity(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        batch = latents.shape[0]
        timestep = (sigma * TIMESTEPS).expand(batch)
        scale = sigma.expand(batch)
        return model(latents.to(dtype), timestep, context, sigma=scale, return_dict=False, **conditions)[0]

    return velocity


def denoise(
    velocity: Velocity,
    latents: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: Callable[[int, int], None] | None = None,
    solver: str = "euler",
) -> torch.Tensor:
    """Steps along the predicted velocity, one model evaluation each.

    Args:
        velocity: the model. It is given the schedule's own sigma, whichever the solver.
        latents: starting noise. Kept in fp32 between the steps, whatever the model computes in.
        sigmas: (steps + 1,) as `flow_sigmas` gives them.
        on_step: called with (steps done, steps) after each.
        solver: one of `SOLVERS`.

    Returns:
        The denoised latents, fp32.
    """
    latents = latents.to(torch.float32)
    move = euler_step if solver == "euler" else UniPC(sigmas.tolist())
    sigmas = send(sigmas, latents.device)  # indexed on the device: no synchronisation inside the loop
    steps = len(sigmas) - 1
    for step in range(steps):
        prediction = velocity(latents, sigmas[step], step).to(torch.float32)
        latents = move(latents, prediction, sigmas, step)
        if on_step is not None:
            on_step(step + 1, steps)
    return latents


def euler_step(latents: torch.Tensor, velocity: torch.Tensor, sigmas: torch.Tensor, step: int) -> torch.Tensor:
    """Straight on to the next sigma. All tensors fp32 on one device."""
    return latents + velocity * (sigmas[step + 1] - sigmas[step])


class UniPC:
    """UniPC of order 2 in its B2 form, predicting clean latents (Zhao et al. 2023, arXiv 2302.04867, algorithms 1-4).

    Each step first corrects the latents it arrived at with the model's answer there, then predicts the next ones from
    the last two answers: a second order for the price of one evaluation. The first step and the last are of order 1.
    The library's `UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)` is the same
    solver; here the coefficients are plain numbers, so a step never waits for the device, and the model is not fed
    the library's truncated timesteps.

    Args:
        sigmas: steps + 1 of them, from 1 to 0.
    """

    EDGE = 1e-6
    """The library's distance from sigma 1, where the half log-SNR is infinite. Only lambda sees it."""

    def __init__(self, sigmas: list[float]) -> None:
        self.sigmas = sigmas
        clipped = [min(sigma, 1 - self.EDGE) for sigma in sigmas]
        self.lambdas = [math.log((1 - sigma) / sigma) if sigma > 0 else math.inf for sigma in clipped]
        self.start: torch.Tensor | None = None  # corrected latents of the last step
        self.clean: list[torch.Tensor] = []  # predictions of the clean latents, newest last, at most two
        self.order = 1

    def __call__(self, latents: torch.Tensor, velocity: torch.Tensor, sigmas: torch.Tensor, step: int) -> torch.Tensor:
        """Latents and velocity at `step` -> predicted latents at the next; to be called for 0, 1, 2, ... in order."""
        clean = latents - self.sigmas[step] * velocity
        if self.start is not None:
            latents = self.correct(self.start, clean, step)
        self.clean = [*self.clean[-1:], clean]
        self.order = min(2, step + 1, len(self.sigmas) - 1 - step)
        self.start = latents
        return self.predict(latents, step)

    def restore(self, start: torch.Tensor, clean: list[torch.Tensor], step: int) -> None:
        """Go on before `step` as one that made all steps up to there: with its `start` and `clean`."""
        self.start, self.clean = start, clean
        self.order = min(2, step, len(self.sigmas) - step)

    def predict(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """UniP: from `step` to `step + 1`."""
        alpha, shrink, width = self._coefficients(step, step + 1)
        newest = self.clean[-1]
        result = shrink * latents - alpha * width * newest
        if self.order == 2:
            ratio = self._ratio(step, step + 1)
            result = result - alpha * width * 0.5 / ratio * (self.clean[-2] - newest)
        return result

    def correct(self, start: torch.Tensor, clean: torch.Tensor, step: int) -> torch.Tensor:
        """UniC: the step from `step - 1` to `step` once more, now that the model has answered at its end."""
        alpha, shrink, width = self._coefficients(step - 1, step)
        newest = self.clean[-1]
        result = shrink * start - alpha * width * newest
        if self.order == 1:
            return result - alpha * width * 0.5 * (clean - newest)
        # Two equations: rho_1 + rho_2 = b_1, ratio * rho_1 + rho_2 = b_2 (eq. 9 of the paper for p = 2).
        back = -(self.lambdas[step] - self.lambdas[step - 1])
        first = (width / back - 1) / width
        second = ((width / back - 1) / back - 0.5) * 2 / width
        ratio = self._ratio(step - 1, step)
        rho_1 = (first - second) / (1 - ratio)
        rho_2 = first - rho_1
        return result - alpha * width * (rho_1 / ratio * (self.clean[-2] - newest) + rho_2 * (clean - newest))

    def _coefficients(self, start: int, end: int) -> tuple[float, float, float]:
        """alpha at the end, sigma's ratio, and expm1(-h), h the way in lambda."""
        return (
            1 - self.sigmas[end],
            self.sigmas[end] / self.sigmas[start],
            math.expm1(self.lambdas[start] - self.lambdas[end]),
        )

    def _ratio(self, start: int, end: int) -> float:
        """The way back to the answer before, in units of the way ahead."""
        return (self.lambdas[start - 1] - self.lambdas[start]) / (self.lambdas[end] - self.lambdas[start])
