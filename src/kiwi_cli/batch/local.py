"""Several workers on this machine: a process each, restarted when one dies, and one account of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from kiwi_cli.batch.heartbeat import Watch
from kiwi_cli.batch.jobs import Job
from kiwi_cli.batch.records import Records, Tally, Waiting
from kiwi_cli.batch.serve import Order
from kiwi_cli.batch.worker import Told, Worker
from kiwi_cli.errors import EXIT_FAILED, DeviceError, KiwiError, UsageError

POLL = 0.25  # seconds
RESTARTS = 3
"""A process that dies so often with no job settled meanwhile is not started again."""
PATIENCE = 30.0  # seconds for workers to end after an interruption


def parse_gpus(text: str) -> list[str]:
    """'all', '0,1' or device names such as 'cuda:0,cpu' -> devices.

    Raises:
        UsageError: not understood. DeviceError: 'all' and there is none.
    """
    if text == "all":
        import torch

        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if not devices:
            raise DeviceError("no GPU here for --gpus all", "name devices: --gpus cpu, or leave it out")
        return devices
    devices = [f"cuda:{part}" if part.isdigit() else part for part in (p.strip() for p in text.split(",")) if part]
    if not devices:
        raise UsageError(f"devices not understood: '{text}'", "pass --gpus all, or --gpus 0,1")
    return devices


class Process:
    """One worker's process, and those that took its place."""

    def __init__(self, order: Order, device: str | None, index: int, environment: dict[str, str]) -> None:
        said = {"order": order.as_plain(), "device": device, "index": index, "parent": os.getpid()}
        self.command = [sys.executable, "-m", "kiwi_cli.batch.process", json.dumps(said)]
        self.environment, self.name = environment, device or f"worker {index + 1}"
        self.starts, self.settled = 0, -1
        self.trouble: str | None = None
        self.start()

    def start(self) -> None:
        self.starts += 1
        # Not a pipe: nobody reads it meanwhile.
        self.log: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=self.log, env=self.environment, stdin=subprocess.DEVNULL
        )

    def is_over(self, settled: int) -> bool:
        """Whether it has ended for good; one that died is started again."""
        code = self.process.poll()
        if code is None:
            return False
        if code == 0 or self.trouble is not None:
            return True
        words = self._last_words()
        if settled > self.settled:
            self.settled, self.starts = settled, 1
        if code != EXIT_FAILED and self.starts <= RESTARTS:
            self.start()
            return False
        self.trouble = words or f"it ended with {code}"
        return True

    def _last_words(self) -> str:
        self.log.seek(0)
        words = self.log.read()
        self.log.close()
        lines = [line for line in words.splitlines() if line.startswith("error: ")]
        return lines[-1].removeprefix("error: ") if lines else words[-300:].strip()

    def end(self, deadline: float) -> None:
        """Wait for one that was told to end; not for ever."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Account:
    """What others do with a list of jobs, as it is written down.

    Args:
        told: of each job that is settled from now on.
    """

    def __init__(self, order: Order, jobs: Sequence[Job], told: Told) -> None:
        self.jobs, self.told = jobs, told
        self._by_id = {job.id: job for job in jobs}
        self._mine: set[str] = set()  # not settled when this began
        self.records = Records(order.store.journal, heard=self._heard)
        self.waiting, self.watch = Waiting(jobs, self.records), Watch(order.store.workers)
        self._mine.update(self.waiting.jobs)

    def _heard(self, record: dict[str, Any]) -> None:
        if record["id"] in self._mine:
            self.told.ended(self._by_id[record["id"]], record)

    @property
    def settled(self) -> int:
        return len(self.jobs) - len(self.waiting.jobs)

    def look(self) -> None:
        """Read and tell what is new."""
        self.waiting.refresh()
        self.told.settled(*self.waiting.counts)
        here = (said for said in self.watch.workers().values() if not said["gone"])
        self.told.at_work([said for said in here if said.get("job")])

    def tally(self) -> Tally:
        self.waiting.refresh()
        self.told.settled(*self.waiting.counts)
        return Tally.of(self.jobs, self.records, made=sum(map(self.records.is_done, self._mine)))


def run_processes(
    order: Order, jobs: Sequence[Job], devices: Sequence[str | None], told: Told | None = None
) -> tuple[Tally, list[str]]:
    """Do an order's jobs with a process for each device.

    Args:
        devices: None in it leaves the device to the settings.

    Returns:
        what became of the jobs, and which of the workers could not go on, in words.
    """
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(devices))))
    account = Account(order, jobs, told or Told())
    processes = [Process(order, device, index, environment) for index, device in enumerate(devices)]
    try:
        while not all([each.is_over(account.settled) for each in processes]):
            time.sleep(POLL)
            account.look()
    except KeyboardInterrupt:
        account.told.interrupted()
        raise
    finally:
        for each in processes:
            each.process.terminate()
        deadline = time.monotonic() + PATIENCE
        for each in processes:
            each.end(deadline)
        tidy(order)
    return account.tally(), [f"{each.name}: {each.trouble}" for each in processes if each.trouble is not None]


def tidy(order: Order) -> None:
    """Remove what workers left that died; on a disk that is full, the next run does it."""
    with suppress(OSError, KiwiError), Worker(order.store, order.lease) as worker:
        worker.sweep()
