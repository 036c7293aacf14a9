"""The small checkpoint as a diffusers pipeline: one to call, one to change, and what the call gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from .calls import call, load


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """Hundreds of calls of a tiny model: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ours() -> Any:
    """Only called, never changed."""
    return load()


@pytest.fixture
def fresh(ours: Any) -> Any:
    """The same model in a pipeline of its own, to be changed."""
    return load()


@pytest.fixture(scope="module")
def expected(ours: Any) -> np.ndarray:
    return call(ours)
