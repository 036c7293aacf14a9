"""The released 5B without data, its weights counted, and the small checkpoint under a level."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import memory as mem
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.engine.residency import weigh

from ..conftest import CHECKPOINT
from .work import Watched


@pytest.fixture(scope="session")
def full() -> Any:
    """The released 5B in bf16 on `meta`: shapes and precisions, no data."""
    return random_pipeline("5b", torch.device("meta"), torch.bfloat16)


@pytest.fixture(scope="session")
def weights(full: Any) -> mem.Weights:
    return weigh(full.units)


@pytest.fixture
def managed() -> Any:
    """A pipeline, and a function that puts it under a level."""
    pipe = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")

    def under(placement: mem.Placement) -> Any:
        pipe.residency = Watched(pipe.units, torch.device("cpu"), placement.level.name)
        pipe.residency.choose = lambda demand, say: pipe.residency.adopt(placement)
        return pipe

    return under
