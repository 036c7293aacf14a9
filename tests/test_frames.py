"""Frames leave the device in order, whole, and as soon as they can."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kiwi_cli.frames import to_bytes, to_host, to_pixels


def chunks(made: list[int], device: str) -> Iterator[torch.Tensor]:
    for number in range(3):
        made.append(number)
        yield torch.full((1 + number, 2, 2, 3), number, dtype=torch.uint8, device=device)


def test_bytes_come_back_as_they_were() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    assert np.array_equal(to_bytes(to_pixels(frames)).numpy(), frames)


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
