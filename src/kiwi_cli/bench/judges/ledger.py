"""The ledger of a run's judging: every question before it is sent, every answer as it comes, nothing twice.

One JSON line each, on the disk before the next step:

    sent       a question is about to be sent; from here on it may be charged
    answer     what came back, in the judge's own words, with the model version that answered
    error      it failed in passing; `sent` says whether it may have been charged
    rejected   it will not be answered
    upload, deleted   files at the service

A process killed between `sent` and `answer` leaves a question in doubt: the service may have answered, but the answer
is lost, and only asking again can bring it. Such questions are counted and announced; all others are never repeated.
The time between the last byte of an answer and its line on the disk is that of parsing it: about a millisecond.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.batch.journal import Journal, read_lines

STEM = "judgements"


@dataclass
class State:
    """What is known of one question.

    Attributes:
        answers: that came back, readable or not. in_doubt: sent, and neither answered nor failed.
        scored: one of them had every score. problem: of the last that had not.
    """

    answers: int = 0
    in_doubt: int = 0
    scored: bool = False
    problem: str = ""


class Ledger:
    """The open ledger of a run; its threads share it.

    Args:
        folder: of the run. shard: as for `Journal`.

    Raises:
        UsageError: another process is judging this run.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] | None = None) -> None:
        self._journal = Journal(folder, STEM, shard)
        self._lock = threading.Lock()
        self._states: dict[str, State] = {}
        self._uploads: set[str] = set()
        for record in read_lines(folder, STEM):
            self._take(record)

    def state(self, request: str) -> State:
        """Of a question, by its hash."""
        with self._lock:
            return self._states.setdefault(request, State())

    @property
    def leftovers(self) -> list[str]:
        """Files at the service that were not deleted."""
        return sorted(self._uploads)

    @property
    def in_doubt(self) -> int:
        """Questions whose answer may have been charged and lost."""
        return sum(state.in_doubt for state in self._states.values())

    def write(self, kind: str, **fields: Any) -> None:
        """Put a line on the disk, then take note of it."""
        record = {"kind": kind, "time": round(time.time(), 3), **fields}
        self._journal.append(record)
        with self._lock:
            self._take(record)

    def close(self) -> None:
        self._journal.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, record: dict[str, Any]) -> None:
        kind, name = record.get("kind"), str(record.get("name"))
        if kind == "upload":
            self._uploads.add(name)
        elif kind == "deleted":
            self._uploads.discard(name)
        if "request" not in record:
            return
        state = self._states.setdefault(str(record["request"]), State())
        if kind == "sent":
            state.in_doubt += 1
        elif kind in ("answer", "error", "rejected"):
            state.in_doubt = max(0, state.in_doubt - 1)
            if kind == "answer":
                state.answers += 1
                state.scored = state.scored or bool(record.get("scores"))
                state.problem = str(record.get("problem") or "")
