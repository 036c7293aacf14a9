"""Schedule and Euler loop against the library's scheduler and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from kiwi_cli.sampling import SIGMA_MIN, denoise, flow_sigmas, make_noise


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_sigmas_are_the_released_schedulers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, SIGMA_MIN, steps + 1)[:-1].tolist())
    assert torch.equal(flow_sigmas(steps), scheduler.sigmas)


def test_the_loop_is_the_librarys() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, SIGMA_MIN, 8)[:-1].tolist())
    start = make_noise((1, 4, 2, 3, 3), 0)
    velocities = [torch.randn(start.shape, generator=torch.Generator().manual_seed(n)) for n in range(7)]
    expected = start
    for step, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.step(velocities[step], timestep, expected).prev_sample
    assert torch.equal(denoise(lambda x, sigma, step: velocities[step], start, flow_sigmas(7)), expected)


def test_a_true_velocity_field_is_followed_to_the_clean_latents() -> None:
    clean, noise = torch.full((1, 2, 1, 2, 2), 3.0), make_noise((1, 2, 1, 2, 2), 1)
    got = denoise(lambda x, sigma, step: noise - clean, noise, flow_sigmas(6))
    assert torch.allclose(got, clean, atol=1e-5)


def test_latents_stay_fp32_whatever_the_model_computes_in() -> None:
    seen = []

    def velocity(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        seen.append((latents.dtype, sigma.dtype, step))
        return latents.to(torch.bfloat16)

    assert denoise(velocity, make_noise((1, 1, 1, 1, 1), 0), flow_sigmas(2)).dtype == torch.float32
    assert seen == [(torch.float32, torch.float32, 0), (torch.float32, torch.float32, 1)]


def test_noise_depends_on_the_seed_alone() -> None:
    shape = (1, 2, 3, 4, 5)
    state = torch.get_rng_state()
    assert torch.equal(make_noise(shape, 7), make_noise(shape, 7))
    assert not torch.equal(make_noise(shape, 7), make_noise(shape, 8))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        flow_sigmas(0)
