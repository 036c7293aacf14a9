"""Array jobs: the i-th of n parts of a list, as typed, or as the scheduler that started this process says it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from kiwi_cli.errors import UsageError

T = TypeVar("T")


def parse_shard(text: str) -> tuple[int, int]:
    """'2/4' -> (2, 4).

    Raises:
        UsageError: not i/n with 1 <= i <= n.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"shard not understood: '{text}'", "pass i/n, such as --shard 1/4 to --shard 4/4")
    return int(match[1]), int(match[2])


def shard_of_scheduler(environment: Mapping[str, str] = os.environ) -> tuple[tuple[int, int], str] | None:
    """The part that falls to this process of a SLURM array or of SkyPilot's jobs, and who says so; None elsewhere.

    Raises:
        UsageError: an array whose numbers leave gaps.
    """
    for name, rank, count, least, step in (
        ("SLURM", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
        ("SkyPilot", "SKYPILOT_JOB_RANK", "SKYPILOT_NUM_JOBS", "", ""),
    ):
        if rank not in environment or count not in environment:
            continue
        try:
            of = int(environment[count])
            number, rest = divmod(
                int(environment[rank]) - int(environment.get(least, "0")), int(environment.get(step) or "1")
            )
        except ValueError:
            continue
        if rest or not 0 <= number < of:
            raise UsageError(
                f"{name} says that this is number {environment[rank]} of {of} jobs, whose numbers leave gaps",
                "say which part this is with --shard i/n",
            )
        return (number + 1, of), name
    return None


def part_of(items: Sequence[T], shard: tuple[int, int] | None) -> list[T]:
    """Every n-th item from the i-th on; all of them without a shard."""
    return list(items if shard is None else items[shard[0] - 1 :: shard[1]])
