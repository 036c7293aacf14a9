"""Schedule and solvers against the library's schedulers and against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file

from kiwi_cli.errors import UsageError
from kiwi_cli.model.sampling import SIGMA_MIN, denoise, flow_sigmas, make_noise, velocity_of

from .conftest import DATA, random_frames, relative_error


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Hundreds of steps of a tiny model: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


# -- solvers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_unipc_is_the_librarys(steps: int) -> None:
    """On a field that bends: within 1e-5 (the library rounds its coefficients to fp32); 6e-6 is measured."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, SIGMA_MIN, steps + 1)[:-1])

    def field(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        return torch.sin(3 * latents + 2 * sigma) + latents * sigma

    start = make_noise((1, 4, 2, 3, 3), 0)
    expected = start
    for step, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.step(field(expected, scheduler.sigmas[step], step), timestep, expected).prev_sample
    got = denoise(field, start, flow_sigmas(steps), solver="unipc")
    assert relative_error(got, expected) <= 1e-5
    assert steps < 3 or relative_error(denoise(field, start, flow_sigmas(steps)), expected) > 1e-3


def test_every_solver_feeds_the_schedules_own_sigma_once_a_step() -> None:
    for solver in ("euler", "unipc"):
        fed: list[torch.Tensor] = []

        def velocity(latents: torch.Tensor, sigma: torch.Tensor, step: int, fed: Any = fed) -> torch.Tensor:
            fed.append(sigma)
            return latents

        denoise(velocity, make_noise((1, 1, 1, 2, 2), 0), flow_sigmas(7), solver=solver)
        assert torch.equal(torch.stack(fed), flow_sigmas(7)[:-1])


def test_unipc_is_of_second_order_on_gaussian_latents() -> None:
    """Latents N(0.5, 0.3): velocity and path are known. Twice the steps: a quarter of the error, Euler half."""
    spread = 0.3

    def velocity(latents: torch.Tensor, sigma: torch.Tensor, step: int) -> torch.Tensor:
        off = latents - (1 - sigma) * 0.5
        return off * (sigma - (1 - sigma) * spread**2) / ((1 - sigma) ** 2 * spread**2 + sigma**2) - 0.5

    noise = make_noise((1, 4, 2, 8, 8), 0)
    errors = {
        (solver, steps): relative_error(denoise(velocity, noise, flow_sigmas(steps), solver=solver), 0.5 + 0.3 * noise)
        for solver in ("euler", "unipc")
        for steps in (32, 64, 128)
    }
    for steps in (32, 64):
        assert errors["unipc", steps] < errors["euler", steps]
        assert errors["unipc", steps * 2] < errors["unipc", steps] / 3
        assert errors["euler", steps * 2] > errors["euler", steps] / 2.3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["instruct", "reference"])
def test_unipc_is_nearer_to_the_end_of_the_path(pipe: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformer's own field against 400 Euler steps, the time embedding held at one timestep.

    Held, because random weights have no smooth dependence on time: from timestep 802 to 810 the small checkpoint's
    velocity changes by 20 %, and no order of a solver helps against that. 20 steps: 2.2e-2 (Euler) and 7e-3 (UniPC);
    50 steps: 8e-3 and 7e-4.
    """
    embed = pipe.transformer.embed_timestep
    monkeypatch.setattr(
        pipe.transformer, "embed_timestep", lambda timestep, dtype: embed(torch.full_like(timestep, 500.0), dtype)
    )
    recorded = load_file(DATA / "golden" / f"{name}.safetensors")
    inputs = [recorded.get(key) for key in ("noise", "context", "source_latents", "reference_latents")]
    path_end = pipe.denoise(*inputs, steps=400)
    for steps, nearer in ((8, 1.2), (20, 2.5), (50, 8)):
        ends = (pipe.denoise(*inputs, steps=steps, solver=solver) for solver in ("euler", "unipc"))
        euler, unipc = (relative_error(end, path_end) for end in ends)
        assert unipc * nearer < euler, (steps, euler, unipc)


def test_an_unknown_solver_is_refused_before_any_work(pipe: Any) -> None:
    with pytest.raises(UsageError, match="'heun'") as error:
        pipe.edit(random_frames(1), "make it snowy", steps=1, solver="heun")
    assert "unipc" in error.value.hint


def test_the_solver_says_what_it_is(pipe: Any) -> None:
    said: list[str] = []
    pipe.edit(random_frames(1), "make it snowy", steps=2, solver="unipc", output="latents", notify=said.append)
    assert said == pipe.approximations and "NOT exact" in said[0] and "unipc" in said[0]
    pipe.edit(random_frames(1), "make it snowy", steps=2, output="latents", notify=said.append)
    assert pipe.approximations == [] and len(said) == 1


def test_sigma_is_not_rounded_with_the_latents() -> None:
    seen: dict[str, Any] = {}

    def model(latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, **rest: Any) -> Any:
        seen.update(rest, latents=latents, timestep=timestep)
        return (latents,)

    sigma = flow_sigmas(50)[7]
    velocity_of(model, torch.bfloat16, torch.zeros(1))(make_noise((2, 1, 1, 1, 1), 0), sigma, 7)
    assert seen["latents"].dtype == torch.bfloat16
    assert torch.equal(seen["sigma"], sigma.expand(2)) and torch.equal(seen["timestep"], sigma.expand(2) * 1000)
