"""What a long edit keeps on the host: its tables, in memory or mapped from files, and its state on disk.

    .out.mp4.kiwi-work/
        state.json              what made it (`made`), where it is, and which of the files below it stands on
        N.safetensors           contexts and references; later what the step under way has summed up
        0-source, 0-even, 0-odd the tables, where they are mapped; a memory's tables are in N.safetensors

`state.json` is replaced in one step when all that it names is on the disk, so a run that was killed leaves the last
state or the one before. The tables of even and odd steps take turns: a step never writes what the state stands on.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kiwi_cli.base.text import format_bytes
from kiwi_cli.base.whole import whole_file, write_text
from kiwi_cli.engine.joint import JointDenoising
from kiwi_cli.engine.layout import HOST_BYTES, table_bytes
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.weights.tensorfile import read_header, read_pieces

Progress = Callable[[str, int, int], None]

FORMAT = 1
STATE = "state.json"
OURS = "kiwi-work"
TABLES = ("source", "even", "odd")


@dataclass
class Tables:
    """Rows of a clip on the host, fp32.

    Attributes:
        source: (rows, C, h, w). states: two of (rows, states, C, h, w).
    """

    source: torch.Tensor
    states: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Saved:
    """What an earlier run left.

    Attributes:
        step, window: what is computed next. fixed: contexts and references. pending: sums of the step under way.
    """

    step: int
    window: int
    fixed: dict[str, torch.Tensor]
    pending: dict[int, torch.Tensor]


@dataclass
class Workspace:
    """The tables and the state of one long edit.

    Args:
        folder: made when it is needed; None keeps all in memory and saves nothing.
        made: what the edit is made from, as JSON has it; a state of anything else is not gone on with.
        every: seconds between two saved states; 0 saves none.
        limit: bytes of tables that may be in memory.
        rank: of this process. Only the first one's state is saved, and all go on from it.
        clock: seconds that pass.
        elsewhere: folders for a denoised clip whose state `folder` has no room for.
    """

    folder: Path | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    every: float = 0.0
    limit: int = HOST_BYTES
    rank: int = 0
    clock: Callable[[], float] = time.monotonic
    elsewhere: tuple[Path, ...] = ()

    done: JointDenoising | None = None  # when all steps are made: what may be rescued

    _tables: Tables | None = None
    _maps: tuple[np.memmap, ...] = ()
    _fixed: dict[str, torch.Tensor] = field(default_factory=dict)
    _fixed_name: str | None = None
    _saves: int = 0
    _last: float | None = None
    _parts: list[Workspace] = field(default_factory=list)

    @property
    def mapped(self) -> bool:
        """Whether the tables lie in files."""
        return bool(self._maps)

    # -- tables -------------------------------------------------------------------------------------------------

    def tables(self, rows: int, states: int, shape: tuple[int, int, int]) -> Tables:
        """New tables, or those of the state that `load` found.

        Args:
            states: tensors that a row holds. shape: (C, h, w).

        Raises:
            KiwiError: no room on the disk.
        """
        if self._tables is None:
            shapes = ((rows, *shape), (rows, states, *shape), (rows, states, *shape))
            if table_bytes(rows, states, int(np.prod(shape))) <= self.limit or self.folder is None:
                source, even, odd = (torch.zeros(each) for each in shapes)
            else:
                self._maps = tuple(self._map(name, each) for name, each in zip(TABLES, shapes, strict=True))
                source, even, odd = (torch.from_numpy(each) for each in self._maps)
            self._tables = Tables(source, (even, odd))
        return self._tables

    def _map(self, name: str, shape: tuple[int, ...]) -> np.memmap:
        assert self.folder is not None
        self._make()
        path, size = self.folder / f"{self.rank}-{name}", 4 * int(np.prod(shape))
        mode = "r+" if path.exists() and path.stat().st_size == size else "w+"
        try:
            if mode == "w+":
                with path.open("wb") as file:
                    _reserve(file.fileno(), size)  # or writing to the map would end the process where the disk ends
            return np.memmap(path, np.float32, "r+", shape=shape)
        except OSError as error:
            raise _no_room(self.folder, size, error) from error

    def _make(self) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=self.folder in self.elsewhere, exist_ok=True)
        except OSError as error:
            raise KiwiError(
                f"cannot make the working folder '{self.folder}': {error}", "pass another --output"
            ) from error

    def let_go(self) -> None:
        """Take mapped tables out of this process's memory: they stay in their files, and come back as they are read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for each in self._maps:
                each._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def watched(self, progress: Progress) -> Progress:
        """`progress`, with what was read and written until then let go."""

        def told(stage: str, done: int, total: int) -> None:
            self.let_go()
            progress(stage, done, total)

        return told

    def for_part(self) -> Workspace:
        """One for tables beside these; it saves no state, and goes when this one is cleared or its parts are."""
        number = len(self._parts) + 1
        folder = None if self.folder is None else self.folder.with_name(f"{self.folder.name}-part{number}")
        self._parts.append(Workspace(folder, limit=self.limit, rank=self.rank))
        return self._parts[-1]

    def clear_parts(self) -> None:
        """Remove the tables of `for_part`."""
        for part in self._parts:
            part.clear()
        self._parts.clear()

    # -- state --------------------------------------------------------------------------------------------------

    def found(self) -> list[str] | None:
        """Names in `made` that an earlier run's state has otherwise: empty when it can be gone on with, None when there
        is no state.

        Raises:
            UsageError: the folder is there and not of this kind.
        """
        if self.folder is None or not self.folder.exists():
            return None
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
            if state.get("of") != OURS:
                raise ValueError(OURS)
        except FileNotFoundError:
            if any(entry.name.partition("-")[2] not in TABLES for entry in self.folder.iterdir()):
                raise _foreign(self.folder) from None
            return None  # killed before its first state
        except (OSError, ValueError, AttributeError) as error:
            raise _foreign(self.folder) from error
        if state.get("format") != FORMAT:
            return ["format"]
        before, now = state.get("made", {}), json.loads(json.dumps(dict(self.made)))
        return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))

    def load(self, rows: int, states: int, shape: tuple[int, int, int]) -> Saved | None:
        """The state of an earlier run of the same edit, its tables filled; None when there is none to go on with.

        Every process of a team calls it before the first one saves again.
        """
        if self.found() != []:
            return None
        assert self.folder is not None
        state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        fixed = load_file(self.folder / state["fixed"])
        tables = self.tables(rows, states, shape)
        if state["mapped"]:
            self._take_maps(tables)
        held = _read(self.folder / state["held"], dict(zip(TABLES, (tables.source, *tables.states), strict=True)))
        self._fixed, self._fixed_name, self._saves = fixed, state["fixed"], state["saves"]
        pending = {int(row): value for row, value in held.items() if row.isdigit()}
        return Saved(state["step"], state["window"], fixed, pending)

    def _take_maps(self, tables: Tables) -> None:
        """In a process that is not the first: the first one's tables."""
        if self.rank == 0:
            return
        assert self.folder is not None
        for name, own in zip(TABLES, (tables.source, *tables.states), strict=True):
            path = self.folder / f"0-{name}"
            own.copy_(torch.from_numpy(np.array(np.memmap(path, np.float32, "r", shape=tuple(own.shape)))))

    def keep(self, fixed: dict[str, torch.Tensor]) -> None:
        """Remember what does not change any more; it is saved with the first state."""
        self._fixed, self._fixed_name = fixed, None

    def due(self, run: JointDenoising) -> bool:
        """Whether it is time to save. Mapped tables have to be at the end of every step, before they are written to."""
        if self.folder is None or self.every <= 0 or self.rank:
            return False
        now = self.clock()
        if self._last is None:
            self._last = now
        return now - self._last >= self.every or (self.mapped and run.window == 0)

    def save(self, run: JointDenoising) -> None:
        """Save where a run is, so that it can be gone on with.

        Raises:
            KiwiError: no room on the disk. The state before stays.
        """
        assert self.folder is not None and self._tables is not None
        self._make()
        self._saves += 1
        held = {str(row): value.contiguous() for row, value in run.pending.items()}
        if not self.mapped:
            held["source"] = self._tables.source
            held["even" if run.step % 2 == 0 else "odd"] = self._tables.states[run.step % 2]
            if run.window:
                held["odd" if run.step % 2 == 0 else "even"] = self._tables.states[(run.step + 1) % 2]
        name, fixed = f"{self._saves}.safetensors", self._fixed_name or f"fixed-{self._saves}.safetensors"
        try:
            for each in self._maps:
                each.flush()
            if self._fixed_name is None:
                _write(self.folder / fixed, self._fixed)
            _write(self.folder / name, held)
            state = {
                "of": OURS,
                "format": FORMAT,
                "made": dict(self.made),
                "step": run.step,
                "window": run.window,
                "saves": self._saves,
                "mapped": self.mapped,
                "fixed": fixed,
                "held": name,
            }
            write_text(self.folder / STATE, json.dumps(state))
        except OSError as error:
            raise _no_room(self.folder, sum(value.nbytes for value in held.values()), error) from error
        self._fixed_name = fixed
        for path in self.folder.glob("*.safetensors"):
            if path.name not in (fixed, name):
                path.unlink(missing_ok=True)
        self._last = self.clock()

    def rescue(self) -> None:
        """Save a denoised clip that could not be written; without an error where that cannot be either."""
        if self.done is None or self.folder is None or self.rank:
            return
        beside = self.folder
        for folder in (beside, *(() if self.mapped else self.elsewhere)):
            there = folder.exists()
            if folder != beside:
                self.folder, self._fixed_name = folder, None
            with contextlib.suppress(KiwiError):
                self.save(self.done)
                if folder != beside:  # what lies there is older, or a part
                    shutil.rmtree(beside, ignore_errors=True)
                return
            if not there:
                shutil.rmtree(folder, ignore_errors=True)
        self.folder = beside

    @property
    def has_state(self) -> bool:
        """Whether a state lies on the disk."""
        return self.folder is not None and (self.folder / STATE).is_file()

    def clear(self) -> None:
        """Remove the folder, with everything in it that is ours."""
        self.clear_parts()
        self._tables, self._maps = None, ()
        if self.folder is not None and self.folder.is_dir() and self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path, into: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fp32 tensors of a file, but those that `into` has: they are read into that, a piece at a time."""
    found: dict[str, torch.Tensor] = {}
    for name, info in read_header(path).items():
        tensor = into[name] if name in into else found.setdefault(name, torch.empty(info.shape))
        values, done = tensor.view(-1).view(torch.uint8).numpy(), 0
        for piece in read_pieces(path, info, 1 << 20):
            values[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
    return found


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with whole_file(path, synced=True) as part:
        try:
            save_file(tensors or {"nothing": torch.zeros(1)}, part)
        except SafetensorError as error:  # the library's own word for a disk that is full
            raise OSError(str(error)) from error


def _reserve(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def _foreign(folder: Path) -> UsageError:
    return UsageError(
        f"'{folder}' is in the way, and no working folder of kiwi", "move it away, or pass another --output"
    )


def _no_room(folder: Path, size: int, error: OSError) -> KiwiError:
    return KiwiError(
        f"cannot write {format_bytes(size)} to the working folder '{folder}': {error.strerror or error}",
        "make room there, pass an --output on another disk, or edit less of the clip at a time (--duration)",
    )
