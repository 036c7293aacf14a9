"""The loss on rows that are not trained on, at fixed timesteps and noises: one evaluation compares with the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kiwi_cli.train.feed import Rows

SEED = 0
"""Of timesteps and noises, the same in every run, so that runs can be compared as well."""


class HeldOut:
    """Chosen rows of each data set, in batches of one bucket.

    Args:
        datasets: name -> held-out rows; empty ones are left out.
        rows: how many of each, spread over the whole data set.
        micro_batch: samples computed at a time.
    """

    def __init__(self, datasets: Mapping[str, Rows], rows: int, micro_batch: int) -> None:
        self.datasets = {name: held for name, held in datasets.items() if len(held)}
        self.batches: list[tuple[str, list[int]]] = []
        for name, held in self.datasets.items():
            count = min(rows, len(held))
            buckets: dict[Any, list[int]] = {}
            for row in (number * len(held) // count for number in range(count)):
                buckets.setdefault(held.bucket(row), []).append(row)
            for chosen in buckets.values():
                self.batches += [(name, chosen[k : k + micro_batch]) for k in range(0, len(chosen), micro_batch)]

    @torch.no_grad()
    def losses(
        self, model: torch.nn.Module, accelerator: Any, make: Callable[[list[Any], list[int]], Any]
    ) -> dict[str, float]:
        """Mean loss of each data set and, as 'all', of all rows. The processes share the work.

        Args:
            model: batch -> losses (B,).
            make: (samples, positions) -> batch on the CPU. The position is the row's number.
        """
        names = list(self.datasets)
        sums = torch.zeros(len(names), 2, dtype=torch.float64)
        processes, rank = accelerator.num_processes, accelerator.process_index
        training = model.training
        model.eval()
        for turn in range(math.ceil(len(self.batches) / processes)):
            number = turn * processes + rank
            # Every process calls the model equally often: sharded models wait for each other.
            name, rows = self.batches[min(number, len(self.batches) - 1)]
            batch = make([self.datasets[name][row] for row in rows], rows)
            with accelerator.autocast():
                values = model(batch.to(accelerator.device)).to(torch.float64)
            if number < len(self.batches):
                sums[names.index(name)] += torch.tensor([float(values.sum()), values.numel()], dtype=torch.float64)
        model.train(training)
        if processes > 1:
            sums = accelerator.reduce(sums.to(torch.float32).to(accelerator.device), "sum").cpu().double()
        result = {name: float(total / count) for name, (total, count) in zip(names, sums, strict=True)}
        if len(names) > 1:
            result["all"] = float(sums[:, 0].sum() / sums[:, 1].sum())
        return result
