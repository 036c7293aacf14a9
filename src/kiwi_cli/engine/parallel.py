"""One clip on several GPUs: `torchrun --nproc-per-node 4 -m kiwi_cli edit ...`.

The transformer's token sequence is split over the processes (Ulysses: all-to-all around attention, through the
library's context parallelism); everything else each process does for itself. The first process writes the result.

Within a step a process that fails leaves the others waiting for its tokens: so it may try a stage again with less
memory, but not a step.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from kiwi_cli.base.processes import team_size
from kiwi_cli.errors import UsageError


@dataclass(frozen=True)
class Team:
    """The processes that work on one clip.

    Attributes:
        rank: of this one, from 0. size: how many there are.
        device: of this process.
    """

    rank: int
    size: int
    device: str


def join(device: str = "auto") -> Team:
    """Meet the other processes; each takes the GPU of its local rank.

    Args:
        device: 'auto', 'cuda' or 'cpu' (processes on one CPU, through gloo: for tests).

    Raises:
        UsageError: a device that several processes cannot use, or more processes than GPUs.
    """
    import torch
    import torch.distributed as dist

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind not in ("cuda", "cpu"):
        raise UsageError(f"several processes cannot share '{device}'", "use --device cuda, or start one process")
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} has no GPU: there are {torch.cuda.device_count()}",
                "start torchrun with --nproc-per-node of at most that",
            )
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Team(rank, size, f"cuda:{local}" if kind == "cuda" else "cpu")


def share(transformer: Any, team: Team) -> None:
    """Split a transformer's tokens over the team. For good: the library's hooks stay on the model.

    Raises:
        UsageError: its attention heads do not divide by the number of processes.
    """
    from diffusers import ContextParallelConfig

    heads = transformer.config.num_attention_heads
    if heads % team.size:
        raise UsageError(
            f"{heads} attention heads cannot be split over {team.size} processes",
            f"start {max(n for n in range(1, team.size) if heads % n == 0)} processes instead",
        )
    # Sizes, lengths and references differ from clip to clip, so any number of tokens must do. gloo gathers only
    # equal parts: on CPUs the tokens must divide by the number of processes.
    config = ContextParallelConfig(ulysses_degree=team.size, ulysses_anything=team.device != "cpu")
    transformer.enable_parallelism(config=config)


def alone(error: RuntimeError) -> bool:
    """Whether an error says that another process of the team has ended."""
    if team_size() == 1:
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def meet() -> None:
    """Wait until all processes are here."""
    if team_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Let the processes go their ways."""
    if team_size() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
