"""Frames leave the device in order, whole, and as soon as they can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kiwi_cli.model.pixels import to_bytes, to_host, to_pixels


class HostTensors(TorchDispatchMode):
    """Notes the precision of every tensor that comes about on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.dtypes |= {tensor.dtype for tensor in made if tensor.device.type == "cpu"}
        return result


def chunks(made: list[int], device: str) -> Iterator[torch.Tensor]:
    for number in range(3):
        made.append(number)
        yield torch.full((1 + number, 2, 2, 3), number, dtype=torch.uint8, device=device)


def test_bytes_come_back_as_they_were() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    assert np.array_equal(to_bytes(to_pixels(frames)).numpy(), frames)


def test_frames_travel_as_bytes_and_are_converted_where_they_arrive() -> None:
    frames = np.zeros((4, 6, 8, 3), np.uint8)
    with HostTensors() as here:
        pixels = to_pixels(frames, "meta")
    assert pixels.shape == (1, 3, 4, 6, 8) and pixels.dtype == torch.float32 and pixels.device.type == "meta"
    assert here.dtypes == {torch.uint8}


@pytest.mark.gpu
def test_conversion_on_cuda_is_the_hosts_to_the_bit() -> None:
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_pixels(frames, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(there.cpu(), to_pixels(frames))


def test_on_the_cpu_a_chunk_is_handed_over_before_the_next_is_made() -> None:
    made: list[int] = []
    for number, chunk in enumerate(to_host(chunks(made, "cpu"))):
        assert made == list(range(number + 1)) and len(chunk) == number + 1 and (chunk == number).all()
    assert len(made) == 3


@pytest.mark.gpu
def test_on_cuda_a_chunk_is_handed_over_when_the_next_is_queued() -> None:
    made: list[int] = []
    for number, chunk in enumerate(to_host(chunks(made, "cuda"))):
        assert len(made) == min(number + 2, 3) and len(chunk) == number + 1 and (chunk == number).all()
    assert len(made) == 3
