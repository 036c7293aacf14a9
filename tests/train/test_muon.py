"""Muon's direction, and that the optimiser learns and keeps what it must be resumed from."""

from __future__ import annotations

import torch

from kiwi_cli.train.muon import MuonAdamW, is_hidden_matrix, orthogonalised


def test_directions_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((16, 64), (64, 16), (32, 32)):
        # Of very different singular values to begin with.
        update = torch.randn(shape) @ torch.diag(torch.logspace(0, -2, shape[1]))
        values = torch.linalg.svdvals(orthogonalised(update).float())
        assert values.max() < 1.3 and values.median() > 0.6
        aligned = (orthogonalised(update).float() * update).sum()
        assert aligned > 0  # downhill


def test_directions_of_many_matrices_are_at_least_as_near_to_the_exact_ones() -> None:
    torch.manual_seed(0)
    updates = torch.randn(6, 24, 64)
    exact = updates.double() / torch.linalg.matrix_norm(updates.double(), keepdim=True)
    for _ in range(5):
        gram = exact @ exact.mT
        exact = 3.4445 * exact + (-4.7750 * gram + 2.0315 * gram @ gram) @ exact
    alone = torch.stack([orthogonalised(update) for update in updates])
    ways = [float((found.double() - exact).norm() / exact.norm()) for found in (orthogonalised(updates), alone)]
    assert ways[0] < 0.02 and ways[1] < 0.05  # what is added to a product is not rounded before
    assert ways[0] < ways[1]


def test_which_parameters_are_hidden_matrices() -> None:
    matrix = torch.zeros(4, 4)
    assert is_hidden_matrix("transformer.blocks.0.attn1.to_q.weight", matrix)
    assert is_hidden_matrix("encoder.mid_block.resnets.0.conv1.weight", torch.zeros(4, 4, 3, 3, 3))
    for name in ("transformer.patch_embedding.weight", "transformer.proj_out.weight", "mllm_encoder.image_queries"):
        assert not is_hidden_matrix(name, matrix)
    assert not is_hidden_matrix("transformer.blocks.0.norm2.weight", torch.zeros(4))


def run(steps: int, state: dict | None = None, weights: dict | None = None) -> tuple[torch.nn.Module, MuonAdamW, float]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    inputs = torch.randn(64, 8)
    wanted = torch.tanh(inputs @ torch.randn(8, 4))
    if weights is not None:
        model.load_state_dict(weights)
    optimiser = MuonAdamW(model.named_parameters(), lr=0.02)
    if state is not None:
        optimiser.load_state_dict(state)
    for _ in range(steps):
        loss = (model(inputs) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model, optimiser, (model(inputs) - wanted).square().mean().item()


def test_it_learns_and_resumes_to_the_same_bits() -> None:
    _, _, before = run(0)
    whole, _, after = run(60)
    assert after < before / 5
    half, optimiser, _ = run(30)
    rest, _, _ = run(30, optimiser.state_dict(), half.state_dict())
    for first, second in zip(whole.parameters(), rest.parameters(), strict=True):
        assert torch.equal(first, second)


def stepped(grouped: bool, lr: float | torch.Tensor, between: bool = False) -> list[torch.Tensor]:
    """Weights after six steps with given gradients; `between` goes on from a saved state in the middle."""
    torch.manual_seed(1)
    shapes = {"a": (8, 24), "b": (24, 8), "c": (8, 24), "square": (8, 8), "kernel": (6, 4, 3, 3), "queries": (5, 8)}
    named = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in (*shapes.items(), ("bias", (7,)))}
    optimiser = MuonAdamW(named, 0.01, grouped=grouped)
    for step in range(6):
        if between and step == 3:
            saved = optimiser.state_dict()
            optimiser = MuonAdamW(named, 0.01, grouped=grouped)
            optimiser.load_state_dict(saved)
        for group in optimiser.param_groups:
            group["lr"] = lr
        for value in named.values():
            value.grad = torch.randn(value.shape) * (1 + step)
        optimiser.step()
    return [value.detach() for value in named.values()]


def test_by_groups_of_a_shape_it_steps_as_one_by_one() -> None:
    alone = stepped(False, 0.01)
    for lr in (0.01, torch.tensor(0.01)):
        for first, second in zip(alone, stepped(True, lr), strict=True):
            # Alone, a direction is rounded to bfloat16 more often, by some hundredths; a step moves a weight by 0.01.
            assert torch.allclose(first, second, atol=8e-4)
    for first, second in zip(stepped(True, 0.01), stepped(True, 0.01, between=True), strict=True):
        assert torch.equal(first, second)
