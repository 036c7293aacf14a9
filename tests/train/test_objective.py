"""Timesteps, noise, targets and weights of the training loss."""

from __future__ import annotations

import math

import torch

from kiwi_cli.model.sampling import SHIFT, flow_sigmas
from kiwi_cli.train.objective import Timesteps, draw, loss_weights, noised, training_sigmas, velocity_loss


def test_schedule_is_the_shifted_one_from_one_down() -> None:
    sigmas = training_sigmas(SHIFT)
    assert len(sigmas) == 1000 and sigmas[0] == 1.0
    assert bool((sigmas.diff() < 0).all())
    even = 0.75  # step 250 of the unwarped schedule
    assert math.isclose(float(sigmas[250]), 5 * even / (1 + 4 * even), rel_tol=1e-6)
    assert torch.equal(sigmas, flow_sigmas(1000, 5.0, 0.0)[:-1])


def test_weights_by_hand() -> None:
    sigmas = [5 * s / (1 + 4 * s) for s in (1 - k / 1000 for k in range(1000))]
    bell = [math.exp(-2 * ((1000 * s - 500) / 1000) ** 2) for s in sigmas]
    bell = [value - min(bell) for value in bell]
    mean = sum(bell) / len(bell)
    weights = loss_weights(SHIFT)
    assert math.isclose(float(weights[0]), bell[0] / mean, abs_tol=1e-6)
    # 1000 * sigma of step 700 is 681.8, which bfloat16 rounds to 680: the nearest step to that is another one.
    rounded = torch.tensor(1000 * sigmas[700]).to(torch.bfloat16).item()
    nearest = min(range(1000), key=lambda k: abs(1000 * sigmas[k] - rounded))
    assert rounded == 680 and nearest != 700
    assert math.isclose(float(weights[700]), bell[nearest] / mean, rel_tol=1e-5)
    assert abs(float(weights.mean()) - 1) < 0.01


def test_draws_depend_on_seed_and_position_alone() -> None:
    first = draw(3, 17, 2, (4, 1, 2, 2))
    again = draw(3, 17, 2, (4, 1, 2, 2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for other in (draw(4, 17, 2, (4, 1, 2, 2)), draw(3, 18, 2, (4, 1, 2, 2))):
        assert not torch.equal(first[2], other[2])
    steps, weights, noise = draw(0, 0, 20000, (2,))
    assert torch.equal(weights, loss_weights(SHIFT)[steps])
    assert steps.min() == 0 and steps.max() == 999 and abs(float(steps.float().mean()) - 499.5) < 10
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02


def test_the_true_velocity_costs_nothing_and_leads_back() -> None:
    clean, noise = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4)
    sigma = torch.tensor([0.3, 0.9])
    velocity = noise - clean
    assert velocity_loss(velocity, clean, noise, torch.ones(2)).abs().max() == 0
    back = noised(clean, noise, sigma) - sigma.view(-1, 1, 1, 1, 1) * velocity
    assert torch.allclose(back, clean, atol=1e-6)


def test_place_weights_of_mean_one_move_the_loss_to_the_region() -> None:
    clean, noise = torch.zeros(1, 3, 1, 2, 2), torch.zeros(1, 3, 1, 2, 2)
    velocity = torch.zeros_like(clean)
    velocity[..., 0, 0] = 2.0  # wrong in one place of four: mean squared error 1
    even = velocity_loss(velocity, clean, noise, torch.tensor([0.5]))
    assert float(even) == 0.5
    weight = torch.tensor([[[[2.5, 0.5], [0.5, 0.5]]]])
    assert float(velocity_loss(velocity, clean, noise, torch.tensor([0.5]), weight)) == 1.25


def test_timesteps_drawn_by_their_weight_have_the_same_expected_loss() -> None:
    def mean(timesteps: Timesteps, of: torch.Tensor) -> float:
        steps, weights, _ = draw(0, 1, 200_000, (1,), timesteps)
        return float((of[steps] * weights).mean())

    for some in (torch.ones(1000), torch.linspace(0, 1, 1000), torch.sin(torch.arange(1000) / 90) + 2):
        assert math.isclose(mean("uniform", some), mean("weighted", some), rel_tol=0.01)


def test_a_model_with_another_shift_is_trained_on_its_own_schedule() -> None:
    steps, weights, _ = draw(0, 0, 64, (1,), shift=2.0)
    assert torch.equal(weights, loss_weights(2.0)[steps]) and not torch.equal(weights, loss_weights(SHIFT)[steps])
    even = 0.75
    assert math.isclose(float(training_sigmas(2.0)[250]), 2 * even / (1 + even), rel_tol=1e-6)
