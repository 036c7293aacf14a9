"""Processes that draw chunks (`drawing.py`) and hand them over in shared memory.

No torch here: the processes start in a second and never see a GPU. A chunk lies in a slot of one mapped file until its
taker has copied it.
"""

from __future__ import annotations

import mmap
import os
import queue
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from kiwi_cli.errors import KiwiError
from kiwi_cli.train.ondevice.drawing import Drawer, Spec, Tools

SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Chunk:
    """A filled slot: its arrays are the taker's until `release`."""

    spec: Spec
    held_out: bool
    arrays: dict[str, np.ndarray]
    release: Callable[[], None]


@dataclass
class Generators:
    """Processes and their slots. A context manager: the processes end with it.

    Args:
        tools, specs: what is drawn.
        workers: processes; 0 draws in this one, when asked.
        seed: number of the first scene.

    Attributes:
        mix: name of a specification -> how many of the chunks (`blend` changes it).
        seed: of the scene that is drawn next.
    """

    tools: Tools
    specs: Mapping[str, Spec]
    workers: int
    mix: dict[str, float]
    seed: int = 0
    _counts: dict[str, int] = field(default_factory=dict)
    _first: list[tuple[str, int]] = field(default_factory=list)

    def __enter__(self) -> Generators:
        self._drawer = None if self.workers else Drawer(self.tools)  # if it fails, there is no file yet
        slots = 2 * self.workers + 2 if self.workers else 1
        self._size = -(-max(self.tools.chunk_bytes(spec) for spec in self.specs.values()) // mmap.PAGESIZE)
        self._size *= mmap.PAGESIZE
        needed = slots * self._size
        room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 1.2 * needed
        handle, self._path = tempfile.mkstemp(prefix="kiwi-chunks-", dir=SHARED_MEMORY if room else None)
        os.truncate(handle, needed)
        os.close(handle)
        self._memory = np.memmap(self._path, np.uint8, "r+", shape=(slots, self._size))
        self._processes: list[Any] = []
        if self.workers:
            context = get_context("spawn")
            self._tasks, self._ready = context.SimpleQueue(), context.Queue()
            shape = (slots, self._size)
            for _ in range(self.workers):
                arguments = (self.tools, dict(self.specs), self._path, shape, self._tasks, self._ready)
                self._processes.append(context.Process(target=_work, args=arguments, daemon=True))
                self._processes[-1].start()
        self._idle = list(range(slots))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        del self._memory
        Path(self._path).unlink()

    def blend(self, mix: Mapping[str, float]) -> None:
        """Draw in other shares from now on."""
        self.mix, self._counts = dict(mix), {}

    def first(self, name: str, seed: int) -> None:
        """Ask for a held-out chunk before anything else."""
        self._first.append((name, seed))

    def take(self, wait: float = 0.0) -> Chunk | None:
        """A chunk, if one is ready within `wait` seconds.

        Raises:
            KiwiError: a process failed.
        """
        if self._drawer is not None:
            name, seed, held_out = self._next()
            self._drawer.fill(self.specs[name], seed, held_out, self._views(name, 0))
            return Chunk(self.specs[name], held_out, self._views(name, 0), lambda: None)
        while self._idle:
            self._tasks.put((self._idle.pop(), *self._next()))
        try:
            slot, name, held_out, failure = self._ready.get(block=wait > 0, timeout=wait or None)
        except queue.Empty:
            if any(process.exitcode is not None for process in self._processes):
                raise KiwiError(
                    "a process that draws scenes ended", "is there memory for all? use fewer --workers"
                ) from None
            return None
        if failure:
            raise KiwiError(f"a process that draws scenes failed:\n{failure}")
        return Chunk(self.specs[name], held_out, self._views(name, slot), lambda: self._idle.append(slot))

    def _views(self, name: str, slot: int) -> dict[str, np.ndarray]:
        return self.tools.views(self.specs[name], np.asarray(self._memory[slot]))

    def _next(self) -> tuple[str, int, bool]:
        if self._first:
            name, seed = self._first.pop(0)
            return name, seed, True
        wanted = {name: weight for name, weight in self.mix.items() if weight > 0}
        name = min(wanted, key=lambda name: (self._counts.get(name, 0) + 0.5) / wanted[name])
        self._counts[name] = self._counts.get(name, 0) + 1
        seed, self.seed = self.seed, self.seed + self.specs[name].scenes
        return name, seed, False


def _work(tools: Tools, specs: Mapping[str, Spec], path: str, shape: tuple[int, int], tasks: Any, ready: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to this one too; the run's process ends it
    try:
        memory, drawer = np.memmap(path, np.uint8, "r+", shape=shape), Drawer(tools)
    except Exception:
        ready.put((0, "", False, traceback.format_exc()))
        return
    while True:
        slot, name, seed, held_out = tasks.get()
        try:
            drawer.fill(specs[name], seed, held_out, tools.views(specs[name], np.asarray(memory[slot])))
            ready.put((slot, name, held_out, ""))
        except Exception:
            ready.put((slot, name, held_out, traceback.format_exc()))
