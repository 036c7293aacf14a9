"""Which rows a training step sees: mixed data sets at fixed ratios, one bucket a batch, shuffled epochs.

Everything is a function of the seed and the step's number. There is no state to save: a run that resumes at step n
sees what an unbroken one sees, and every process works out its own part.

Two even interleavings decide. The batches are dealt out among the buckets, each by its share of all samples; the
slots of a bucket's batches are dealt out among the (data set, bucket) cells that have rows in it. A cell hands out its
rows in shuffled epochs, every row once before any comes again. So each data set's share of the samples is its ratio,
never off by more than a few batches at any step, whatever the buckets' sizes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from kiwi_cli.errors import UsageError

_FIRST_HORIZON = 1024  # slots that are worked out at first; doubled when more are asked for


class Sampler:
    """Batches of (data set, row), one bucket each.

    Args:
        datasets: name -> the bucket of each row. Anything that can be compared will do for a bucket; data sets
            whose rows have equal buckets are mixed within a batch.
        ratios: name -> its share of the samples, relative to the others', from 0 (left out).
        global_batch: samples of a batch, at least 1.
        seed: of the shuffling, from 0.

    Raises:
        UsageError: no rows, a ratio for no data set or none for one, a ratio that is no number from 0.
    """

    def __init__(
        self, datasets: Mapping[str, Sequence[Any]], ratios: Mapping[str, float], global_batch: int, seed: int
    ) -> None:
        if global_batch < 1:
            raise UsageError(f"a batch has at least 1 sample, not {global_batch}", "set a larger batch")
        self.global_batch, self.seed = global_batch, seed
        self.shares = shares_of(datasets, ratios)
        self.sizes = {name: len(datasets[name]) for name in self.shares}

        # Rows of each (bucket, data set), in an order that depends on neither the dict's nor the hash's.
        rows: dict[Any, dict[str, list[int]]] = {}
        for name in self.shares:
            for row, bucket in enumerate(datasets[name]):
                rows.setdefault(bucket, {}).setdefault(name, []).append(row)
        self.buckets = sorted(rows)
        self._cells: list[list[_Cell]] = []
        for bucket in self.buckets:
            self._cells.append(
                [
                    _Cell(name, np.array(found), self.shares[name] * len(found) / self.sizes[name], seed, str(bucket))
                    for name, found in sorted(rows[bucket].items())
                ]
            )
        weights = [sum(cell.weight for cell in cells) for cells in self._cells]
        self._order = Interleaving(weights)
        self._slots = [Interleaving([cell.weight for cell in cells]) for cells in self._cells]

    def batch(self, step: int) -> list[tuple[str, int]]:
        """The (data set, row) of each slot of batch number `step` (from 0)."""
        bucket, turn = self._order[step]
        cells, slots = self._cells[bucket], self._slots[bucket]
        chosen: list[tuple[str, int]] = []
        for slot in range(turn * self.global_batch, (turn + 1) * self.global_batch):
            number, count = slots[slot]
            chosen.append((cells[number].name, cells[number].row(count)))
        return chosen

    def bucket(self, step: int) -> Hashable:
        """The bucket that batch number `step` is from."""
        return self.buckets[self._order[step][0]]

    def epochs(self, step: int) -> dict[str, float]:
        """How often each data set has been gone through after `step` batches, by its ratio."""
        seen = step * self.global_batch
        return {name: seen * share / self.sizes[name] for name, share in self.shares.items()}

    def describe(self) -> list[str]:
        """A line for each data set: its rows, its share of the samples, and its epochs in a thousand batches."""
        passes = self.epochs(1000)
        return [
            f"{name}: {self.sizes[name]} rows, {100 * share:.4g} % of the samples, "
            f"{passes[name]:.3g} epochs in 1000 batches"
            for name, share in self.shares.items()
        ]


def shares_of(datasets: Mapping[str, Sequence[Any]], ratios: Mapping[str, float]) -> dict[str, float]:
    """Name -> fraction of the samples, in order of the names; data sets with ratio 0 are left out.

    Raises:
        UsageError: as `Sampler`.
    """
    if unknown := sorted(set(ratios) - set(datasets)):
        raise UsageError(f"a ratio for no data set: '{unknown[0]}'", f"the data sets are {', '.join(sorted(datasets))}")
    if missing := sorted(set(datasets) - set(ratios)):
        raise UsageError(f"no ratio for the data set '{missing[0]}'", "give each data set one, 0 to leave it out")
    for name, ratio in ratios.items():
        if not math.isfinite(ratio) or ratio < 0:
            raise UsageError(f"the ratio of '{name}' is {ratio}", "a ratio is a number from 0")
    total = sum(ratios.values())
    if not total:
        raise UsageError("no data set has a ratio above 0", "give one a ratio of 1")
    used = {name: ratios[name] / total for name in sorted(datasets) if ratios[name]}
    for name in used:
        if not len(datasets[name]):
            raise UsageError(f"the data set '{name}' has no rows", "leave it out, or give it the ratio 0")
    return used


class _Cell:
    """The rows of one data set in one bucket, as an endless row of shuffled epochs."""

    def __init__(self, name: str, rows: np.ndarray, weight: float, seed: int, bucket: str) -> None:
        self.name, self.rows, self.weight = name, rows, weight
        # A stream of its own for each cell, whatever other cells there are.
        self._seed = [seed, zlib.crc32(name.encode()), zlib.crc32(bucket.encode())]
        self._epoch, self._shuffled = -1, rows

    def row(self, count: int) -> int:
        """The row that is handed out after `count` others."""
        epoch, place = divmod(count, len(self.rows))
        if epoch != self._epoch:
            order = np.random.default_rng([*self._seed, epoch]).permutation(len(self.rows))
            self._epoch, self._shuffled = epoch, self.rows[order]
        return int(self._shuffled[place])


class Interleaving:
    """An endless sequence of the numbers 0 to n - 1, each as often as its weight says and as evenly as can be.

    Number i's turns stand at the times (k + 1/2) / weight_i, k = 0, 1, 2, ..., and the sequence takes them in order,
    the lower number first where two are equal. Up to any point each number has had its share within n / 2 + 1 turns.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = np.asarray(weights, np.float64) / sum(weights)
        self._numbers = np.empty(0, np.int32)
        self._turns = np.empty(0, np.int64)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(number, how many turns it has had before) at `position`."""
        if position >= len(self._numbers):
            self._extend(max(_FIRST_HORIZON, 2 * position))
        return int(self._numbers[position]), int(self._turns[position])

    def _extend(self, horizon: int) -> None:
        # All turns up to a time by which there are more than `horizon`, cut there: a longer sequence begins so too.
        end = horizon + 2 * len(self.weights)
        counts = np.ceil(end * self.weights - 0.5).astype(np.int64).clip(0)
        numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        turns = np.concatenate([np.arange(count) for count in counts])
        order = np.argsort((turns + 0.5) / self.weights[numbers], kind="stable")
        self._numbers, self._turns = numbers[order[:horizon]], turns[order[:horizon]]
