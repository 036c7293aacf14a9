"""The average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kiwi_cli.errors import CheckpointError
from kiwi_cli.train.ema import Ema


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(3, 4, generator=generator)) for name in ("a", "b")}


def test_it_is_the_average_it_says() -> None:
    weights = parameters()
    ema = Ema(weights, 0.9)
    expected = {name: value.detach().double().clone() for name, value in weights.items()}
    for update in range(200):
        with torch.no_grad():
            for value in weights.values():
                value.add_(0.1)
        ema.update()
        decay = min(0.9, (1 + update) / (10 + update))
        for name, value in weights.items():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
    for name, value in ema.tensors().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        lag = float((weights[name].detach() - value).mean())
        assert lag == pytest.approx(0.9, rel=0.05)  # 1 / (1 - decay) - 1 = 9 steps of 0.1 behind


def test_swapping_is_exact_and_survives_an_error() -> None:
    weights = parameters()
    ema = Ema(weights, 0.5)
    with torch.no_grad():
        weights["a"].mul_(1.2345)
    ema.update()
    raw = {name: value.detach().clone() for name, value in weights.items()}
    average = {name: value.clone() for name, value in ema.tensors().items()}
    places = {name: value.data_ptr() for name, value in weights.items()}
    with pytest.raises(ZeroDivisionError), ema.swapped():
        assert all(torch.equal(weights[name], average[name]) for name in weights)
        assert not torch.equal(weights["a"], raw["a"])
        raise ZeroDivisionError
    assert all(torch.equal(weights[name], raw[name]) for name in weights)
    assert all(torch.equal(ema.tensors()[name], average[name]) for name in weights)
    assert places == {name: value.data_ptr() for name, value in weights.items()}  # optimisers hold on to them


def test_going_on_from_a_saved_average() -> None:
    weights = parameters()
    one = Ema(weights, 0.99)
    saved = [one]
    for step in range(6):
        if step == 3:
            copy = Ema(parameters(9), 0.99)
            copy.parameters = weights
            copy.load({name: value.clone() for name, value in one.tensors().items()}, one.updates)
            saved.append(copy)
        with torch.no_grad():
            weights["a"].add_(step)
        for ema in saved:
            ema.update()
    assert all(torch.equal(one.tensors()[name], saved[1].tensors()[name]) for name in weights)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="decay"):
        Ema(parameters(), 1.0)
    with pytest.raises(ValueError, match="must be fp32"):
        Ema({"a": nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))}, 0.9)
    ema = Ema(parameters(), 0.9)
    with pytest.raises(CheckpointError, match=r"average of 'a' is \(2, 4\), not \(3, 4\)"):
        ema.load({"a": torch.zeros(2, 4)}, 1)
    with pytest.raises(CheckpointError, match="average of 'b' is missing"):
        ema.load({"a": torch.zeros(3, 4)}, 1)
