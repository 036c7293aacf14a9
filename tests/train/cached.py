"""Edits to cache, and what two caches have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import Item
from kiwi_cli.data.shards import ShardReader, read_index

from ..conftest import random_frames

TOLERANCE = 2e-5
"""Largest difference of a latent (of order 1) encoded among others and alone: convolutions sum in another order."""


def edits(count: int = 6) -> list[Item]:
    """Clips of two lengths and two sizes, pairs of which share a source; a third has a reference, half have masks."""
    rows = []
    for number in range(count):
        frames, width = (5, 64) if number % 4 < 2 else (1, 96)
        source = random_frames(frames, 64, width, seed=number // 2)
        reference = Image.fromarray(random_frames(1, 40, 70, seed=number)[0]) if number % 3 == 0 else None
        mask = source[..., 0] > 128 if number % 2 else None
        rows.append(
            Item(source, 255 - np.roll(source, number), f"edit {number}", reference, mask, kind=f"k{number % 2}")
        )
    return rows


def tensors(out: Path) -> list[dict[str, torch.Tensor]]:
    """Every row's tensors, in the index's order."""
    reader = ShardReader(out)
    return [
        {name: reader.tensor(reader.place(key)) for name, key in row["tensors"].items()}
        for row in read_index(out)["rows"]
    ]


def same(first: Path, second: Path) -> bool:
    """Whether two caches say the same: the same index, the same tensors within `TOLERANCE`."""
    indexes = [{**read_index(folder), "name": ""} for folder in (first, second)]
    pairs = zip(tensors(first), tensors(second), strict=True)
    return indexes[0] == indexes[1] and all(
        torch.allclose(one[name], two[name], rtol=0, atol=TOLERANCE) for one, two in pairs for name in one
    )


def single(encoder: Encoder) -> Any:
    """The same encoder, clip by clip: shards are written as the rows come."""

    class Single:
        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def batch_size(self, frames: np.ndarray) -> int:
            return 1

    return Single()
