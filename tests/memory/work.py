"""An edit's demand at full size, and a device that is seen on a CPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from kiwi_cli.engine.demand import Demand, demand_of
from kiwi_cli.engine.residency import Residency

from ..conftest import random_frames

GB = 1e9
FULL = (81, 704, 1280, 3)
FRAMES = random_frames(5)


def work_of(pipe: Any, shape: tuple[int, ...] = FULL, references: int = 1) -> Demand:
    """An edit's demand, with the prompt of a full clip."""
    frames = np.broadcast_to(np.zeros(1, np.uint8), shape)
    return demand_of(pipe, frames, references, prompt_of(pipe, shape[1:]))


@cache
def prompt_of(pipe: Any, shape: tuple[int, ...]) -> Any:
    return pipe.inputs(np.zeros((16, *shape), np.uint8), "make it snowy")


class Watched(Residency):
    """A residency whose device is a second copy in the same memory: on a CPU, moving is seen this way."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()
