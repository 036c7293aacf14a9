"""Weights that come piece by piece: two pieces on the device at a time, and the result of weights that stay."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

from kiwi_cli.engine.streaming import ALIGNMENT, WeightStream, packed_size, tensors_of

CPU = torch.device("cpu")


class Layer(nn.Module):
    """A linear layer with a buffer; all layers but the first are a little larger."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("scale", torch.tensor([1.0 + index]))
        self.extra = nn.Parameter(torch.randn(8, 1 + 50 * (index % 2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(x) * self.scale + self.extra.sum(dim=1))


@pytest.fixture
def layers() -> list[Layer]:
    torch.manual_seed(0)
    return [Layer(index).requires_grad_(False) for index in range(5)]


def walk(layers: list[Layer], order: list[int], rounds: int = 2) -> torch.Tensor:
    x = torch.linspace(-1, 1, 16).reshape(2, 8)
    for index in order * rounds:
        x = layers[index](x)
    return x


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 0, 3, 1, 1, 4, 0], [2]], ids=["usual", "back", "mixed", "one"]
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_order_of_any_number_gives_the_same(layers: list[Layer], order: list[int], count: int) -> None:
    order = [index % count for index in order]
    expected = walk(layers, order)
    host = [id(tensor) for layer in layers for _, tensor in tensors_of(layer)]
    stream = WeightStream(layers[:count], CPU)
    for _ in range(2):
        stream.open()
        assert torch.equal(walk(layers, order), expected)
        stream.close()
        assert [id(tensor) for layer in layers for _, tensor in tensors_of(layer)] == host
        assert torch.equal(walk(layers, order), expected)


def test_there_is_room_for_two_of_the_largest_and_no_more(layers: list[Layer]) -> None:
    """At work, a layer's tensors lie in one of two places, aligned as tensors of their own would be."""
    places: set[int] = set()
    ends: list[int] = []

    def look(layer: nn.Module, args: Any, result: Any) -> None:
        found = [tensor for _, tensor in tensors_of(layer)]
        begin = found[0].untyped_storage().data_ptr()
        places.add(begin)
        ends.append(found[0].untyped_storage().nbytes())
        assert all((tensor.data_ptr() - begin) % ALIGNMENT == 0 for tensor in found)

    hooks = [layer.register_forward_hook(look) for layer in layers]
    stream = WeightStream(layers, CPU)
    stream.open()
    walk(layers, [0, 1, 2, 3, 4], rounds=3)
    largest = max(packed_size(tensor for _, tensor in tensors_of(layer)) for layer in layers)
    assert len(places) == 2 and set(ends) == {largest}
    stream.close()
    for hook in hooks:
        hook.remove()


def test_the_device_has_its_room_back_at_once(layers: list[Layer]) -> None:
    """Not when Python looks for circles: the next stage begins before that, and needs the memory."""
    size = packed_size(tensor for _, tensor in tensors_of(layers[1]))

    def rooms() -> int:
        tensors = (found for found in gc.get_objects() if isinstance(found, torch.Tensor))
        return sum(tensor.dtype == torch.uint8 and tensor.numel() == size for tensor in tensors)

    stream = WeightStream(layers, CPU)
    gc.collect()
    gc.disable()
    try:
        before = rooms()  # of other tests
        stream.open()
        walk(layers, [0, 1, 2, 3, 4])
        assert rooms() == before + 2
        stream.close()
        assert rooms() == before
    finally:
        gc.enable()


def test_after_an_error_the_weights_are_the_hosts(layers: list[Layer]) -> None:
    host = [id(tensor) for _, tensor in tensors_of(layers[1])]
    stream = WeightStream(layers, CPU)
    stream.open()
    with pytest.raises(RuntimeError):
        layers[1](torch.zeros(1, 3))
    assert [id(tensor) for _, tensor in tensors_of(layers[1])] == host
    stream.close()


def test_weights_that_were_replaced_are_streamed_as_they_are(layers: list[Layer]) -> None:
    stream = WeightStream(layers, CPU)
    stream.open()
    walk(layers, [0, 1])
    stream.close()
    layers[1].linear.weight = nn.Parameter(torch.full((8, 8), 0.25), requires_grad=False)
    expected = walk(layers, [0, 1, 2])
    stream.open()
    assert torch.equal(walk(layers, [0, 1, 2]), expected)
    stream.close()
