"""Micro-batches of the run, made ahead of their use by a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Protocol

from kiwi_cli.train.config import TrainConfig, accumulation
from kiwi_cli.train.sampler import Sampler

AHEAD = 2
"""Micro-batches that wait ready."""


class Rows(Protocol):
    """A data set: samples that can be asked for in any order, and the bucket of each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """A `Sample`."""

    def bucket(self, index: int, /) -> Any:
        """Its `Bucket`."""


def take(rows: Rows, row: int, position: int) -> Any:
    """The sample of a row. Where a row has several views (of its reference), the position in the run chooses one."""
    sample = getattr(rows, "sample", None)
    return rows[row] if sample is None else sample(row, position)


class FeedPlan:
    """Which samples a process computes in which step: a function of the settings and the step alone.

    Args:
        ratios: data set's name -> its share of the samples, relative to the others'; None for equal shares.
        rank, processes: which process of how many this is.

    Raises:
        UsageError: batches that do not come out even, or as `Sampler`.
    """

    def __init__(
        self,
        config: TrainConfig,
        datasets: Mapping[str, Rows],
        ratios: Mapping[str, float] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.config, self.rank, self.processes = config, rank, processes
        self.accumulation = accumulation(config, processes)
        self.group = config.bucket_batch or config.global_batch
        buckets = {name: [rows.bucket(index) for index in range(len(rows))] for name, rows in datasets.items()}
        self.sampler = Sampler(buckets, ratios or dict.fromkeys(buckets, 1.0), self.group, config.seed)

    def micro_batches(self, step: int) -> list[list[tuple[int, str, int]]]:
        """This process's micro-batches of optimiser step `step`: (position, data set, row) of each sample.

        The position numbers all samples of the run; timestep and noise follow from it and the seed.
        """
        size, groups = self.config.global_batch, self.config.global_batch // self.group
        slots = [slot for number in range(groups) for slot in self.sampler.batch(step * groups + number)]
        mine = [(step * size + slot, *slots[slot]) for slot in range(self.rank, size, self.processes)]
        count = self.config.micro_batch
        return [mine[start : start + count] for start in range(0, len(mine), count)]


class Feed:
    """An iterator over the batches of steps `start` to the end, made in the background.

    Used as a context manager: the thread ends with it. What fails in the thread is raised where the batch is taken.

    Args:
        make: (samples, positions) -> batch; runs in the thread.
    """

    def __init__(
        self, plan: FeedPlan, datasets: Mapping[str, Rows], start: int, make: Callable[[list[Any], list[int]], Any]
    ) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(AHEAD)
        self._over = threading.Event()
        self._plan, self._datasets, self._start, self._make = plan, datasets, start, make
        self._thread = threading.Thread(target=self._work, name="kiwi-feed", daemon=True)

    def __enter__(self) -> Iterator[Any]:
        self._thread.start()
        return self._batches()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _batches(self) -> Iterator[Any]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _work(self) -> None:
        try:
            for step in range(self._start, self._plan.config.steps):
                for slots in self._plan.micro_batches(step):
                    samples = [take(self._datasets[name], row, position) for position, name, row in slots]
                    if not self._put(self._make(samples, [position for position, _, _ in slots])):
                        return
            self._put(None)
        except Exception as error:  # whatever it is, it belongs to the thread that trains
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._over.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
