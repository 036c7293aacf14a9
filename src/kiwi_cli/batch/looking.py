"""The files of many edits, opened before the first edit: each once, several at a time, and not for ever."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kiwi_cli.base.events import Events
from kiwi_cli.editing.references import notices as open_reference
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import KiwiError
from kiwi_cli.video import probe, select

PATIENCE = 60.0
"""Seconds; files that were not opened by then are opened when it is their turn to be edited."""
THREADS = 8


class File(NamedTuple):
    """One that is read; a picture that is a reference has other faults than one that is edited."""

    path: Path
    is_reference: bool = False
    allow_truncated: bool = False


Part = tuple[Any, ...]
"""Start, duration, frames and rate: what is taken of a clip."""
WHOLE: Part = (0.0, None, None, None)


@dataclass
class Looked:
    """What was found.

    Attributes:
        files: how many there are. unopened: of them, when the time was over.
    """

    files: int = 0
    unopened: int = 0
    _faults: dict[tuple[File, Part], KiwiError] = field(default_factory=dict)

    def check(self, request: EditRequest) -> None:
        """Raises KiwiError where a file of the request cannot be read, or has nothing of what is to be taken."""
        for key in _reads(request):
            if key in self._faults:
                raise self._faults[key]


def look(requests: Sequence[EditRequest], events: Events, patience: float = PATIENCE) -> Looked:
    """Open every file of some requests.

    Args:
        patience: seconds.
    """
    wanted: dict[File, set[Part]] = {}
    for request in requests:
        for file, part in _reads(request):
            wanted.setdefault(file, {WHOLE}).add(part)
    looked, deadline = Looked(len(wanted)), time.monotonic() + patience
    pool = ThreadPoolExecutor(min(THREADS, 2 * (os.cpu_count() or 1)), thread_name_prefix="open")
    opened: list[Future[bool]] = []
    try:
        # Readers of pictures set filters of warnings, which threads share: whatever is left of them ends here.
        with warnings.catch_warnings(), events.stages({"open": "open the files"}) as stages:
            opened = [pool.submit(_open, file, parts, looked, deadline) for file, parts in wanted.items()]
            for number, done in enumerate(as_completed(opened), start=1):
                looked.unopened += not done.result()
                stages("open", number, len(wanted))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return looked


def _reads(request: EditRequest) -> list[tuple[File, Part]]:
    """What a request reads."""
    settled = request.settled
    part = (settled.start, settled.duration, settled.frames, settled.fps)
    found = [(File(request.input, allow_truncated=request.allow_truncated), part)]
    found += [(File(path, is_reference=True), WHOLE) for path in request.references]
    if request.mask is not None and Path(request.mask).exists():
        found.append((File(Path(request.mask)), WHOLE))
    return found


def _open(file: File, parts: set[Part], looked: Looked, deadline: float) -> bool:
    """Open a file once, for all that is wanted of it, and note its faults; False when the time is over."""
    if time.monotonic() >= deadline:
        return False
    try:
        if file.is_reference:
            open_reference(file.path)
            return True
        clip = probe(file.path, allow_truncated=file.allow_truncated)
    except KiwiError as error:
        for part in parts:
            looked._faults[file, part] = error
        return True
    for start, duration, frames, fps in parts - {WHOLE}:
        try:
            select(clip, start=start, duration=duration, frames=frames, fps=fps)
        except KiwiError as error:
            looked._faults[file, (start, duration, frames, fps)] = error
    return True
