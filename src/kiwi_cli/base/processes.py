"""The processes that torchrun started, as their environment says."""

from __future__ import annotations

import os


def team_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that writes the result and talks to the person."""
    return int(os.environ.get("RANK", "0")) == 0 or team_size() == 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0")) if team_size() > 1 else 0
