"""A model, data and settings small enough to train hundreds of steps in a test; noise follows the position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kiwi_cli.train.config import TrainConfig, from_dict

WIDTH = 6


@dataclass
class ToyBatch:
    clean: torch.Tensor
    noise: torch.Tensor
    kind: str

    def to(self, device: Any) -> ToyBatch:
        return ToyBatch(self.clean.to(device), self.noise.to(device), self.kind)


def collate(samples: Sequence[tuple[str, torch.Tensor]], positions: Sequence[int], seed: int, draws: int) -> ToyBatch:
    noise = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed * 10**6 + k)) for k in positions]
    kinds = {kind for kind, _ in samples}
    assert len(kinds) == 1, "one bucket a batch"
    return ToyBatch(torch.stack([value for _, value in samples]), torch.stack(noise), kinds.pop())


class ToyRows:
    """Vectors of one kind, which is their bucket."""

    def __init__(self, kind: str, count: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind, self.values = kind, torch.randn(count, WIDTH, generator=generator)
        self.used: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[str, torch.Tensor]:
        self.used.append(index)
        return self.kind, self.values[index]

    def bucket(self, index: int) -> str:
        return self.kind


class Toy(nn.Module):
    """Recovers a vector from itself and noise. `image` is used for images alone, as the image queries are; `frozen` is
    not trained; `dropout` takes random numbers."""

    def __init__(self, width: int = 16, dropout: float = 0.0, checkpointing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(WIDTH, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, WIDTH))
        self.image = nn.Parameter(torch.randn(width) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.checkpointing = checkpointing
        self.frozen.requires_grad_(False)

    def forward(self, batch: ToyBatch) -> torch.Tensor:
        hidden = self.frozen(batch.clean + batch.noise)
        if batch.kind == "image":
            hidden = hidden + self.image
        hidden = self.dropout(hidden)
        result = checkpoint(self.body, hidden, use_reentrant=False) if self.checkpointing else self.body(hidden)
        return (result - batch.clean).square().mean(-1)


def settings(out: Path, **changes: Any) -> TrainConfig:
    """Twelve steps of eight samples in fp32."""
    tree: dict[str, Any] = {
        "stage": "instruction",
        "model": "toy",
        "out": str(out),
        "steps": 12,
        "global_batch": 8,
        "micro_batch": 4,
        "precision": "fp32",
        "optimiser": {"lr": 0.01},
        "validate": {"every": 4, "rows": 16},
        "save": {"every": 100},
        "log_every": 1,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and key in tree else value
    return from_dict(tree)


def rows() -> dict[str, ToyRows]:
    """Images and videos to train on."""
    return {"images": ToyRows("image", 24, 1), "videos": ToyRows("video", 40, 2)}


def held_out() -> dict[str, ToyRows]:
    """Images and videos that are not trained on."""
    return {"images": ToyRows("image", 10, 3), "videos": ToyRows("video", 20, 4)}
