"""The files of many edits, opened before the first edit: each once, several at a time, and not for ever.

A clip gets a glance, which is enough for a sound one; whatever is doubtful is opened as an edit opens it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

from kiwi_cli.base.events import Events
from kiwi_cli.base.hardware import cores
from kiwi_cli.editing.references import notices as open_reference
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import KiwiError
from kiwi_cli.video import check_numbers, glance, probe, select

THREADS = 8
"""At most, and no more than there are cores: what is read is in C, which lets other threads go on."""

AT_ONCE = 16
"""Files at most that a thread opens before it tells of them: each telling wakes another thread."""


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


def look(
    requests: Sequence[EditRequest],
    events: Events,
    deadline: float,
    threads: int | None = None,
    besides: Callable[[Path], Any] = lambda path: None,
) -> Looked:
    """Open every file of some requests.

    Args:
        deadline: of `time.monotonic`; files that were not opened by then are opened when it is their turn to be edited.
        threads: None: as many as there are cores.
        besides: what else reads each file in which no fault was found, opened or not; it is told of clips, references
            and masks.
    """
    wanted: dict[File, set[Part]] = {}
    for request in requests:
        for file, part in _reads(request):
            wanted.setdefault(file, {WHOLE}).add(part)
    looked, over = Looked(len(wanted)), Event()

    def open_some(files: Sequence[File]) -> tuple[int, int]:
        """How many these are, and how many of them were not opened."""
        unopened = 0
        for file in files:
            if over.is_set():  # interrupted: the process waits for its threads
                break
            if time.monotonic() >= deadline:
                unopened += 1
            elif not _open(file, wanted[file], looked):
                continue  # a pipe, or a folder of everything, is not read further
            with suppress(KiwiError):  # raised again where it is wanted
                besides(file.path)
        return len(files), unopened

    threads = threads or min(THREADS, cores())
    each_time = max(1, min(AT_ONCE, len(wanted) // (4 * threads)))  # few files are shared evenly
    pool = ThreadPoolExecutor(threads, thread_name_prefix="open")
    try:
        # Readers of pictures set filters of warnings, which threads share: whatever is left of them ends here.
        with warnings.catch_warnings(), events.stages({"open": "open the files"}) as stages:
            files, done = list(wanted), 0
            parts = [files[at : at + each_time] for at in range(0, len(files), each_time)]
            for each in as_completed([pool.submit(open_some, part) for part in parts]):
                count, unopened = each.result()
                done, looked.unopened = done + count, looked.unopened + unopened
                stages("open", done, len(files))
    finally:
        over.set()
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


def _open(file: File, parts: set[Part], looked: Looked) -> bool:
    """Open a file once, for all that is wanted of it, and note its faults; whether it can be read at all."""
    try:
        if file.is_reference:
            open_reference(file.path)
            return True
        lasts = None if file.allow_truncated else glance(file.path)
        if lasts is None or any(start >= lasts for start, *_ in parts if start):
            clip = probe(file.path, allow_truncated=file.allow_truncated)
            lasts = None
    except KiwiError as error:
        for part in parts:
            looked._faults[file, part] = error
        return False
    for part in parts - {WHOLE}:
        start, duration, frames, fps = part
        try:
            if lasts is None:
                select(clip, start=start, duration=duration, frames=frames, fps=fps)
            else:
                check_numbers(start, duration, frames, fps)
        except KiwiError as error:
            looked._faults[file, part] = error
    return True
