"""What this machine's own last edits took: a small file, so that the next dry run can say how long one takes here.

One entry for each device, model and way of working, and shape: the last edit of its kind. No torch.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import date
from math import log
from pathlib import Path

from kiwi_cli.base.whole import write_text

MOST = 200
"""Entries that are kept, the latest."""
APART = 2
"""Times the operations, from which two edits say how the time grows with them."""
FAR = 8
"""Times an edit's operations, from which another one is not told by it alone."""


@dataclass(frozen=True)
class LastRun:
    """An edit that was made here.

    Attributes:
        device: as the driver names it. model: its name or folder. mode: how it works: precision, kept weights, memory
            and the like, in one line. shape: size, frames and references, in one line.
        tflop: counted, of the whole edit. load, work: seconds to load the model, and from then to the written file.
        day: when, as 2026-11-26. writing: seconds of `work` that were for decoding and writing frames.
        pixels: that were written; like `writing` 0 where it is not known.
    """

    device: str
    model: str
    mode: str
    shape: str
    tflop: float
    load: float
    work: float
    day: str = ""
    writing: float = 0.0
    pixels: int = 0

    @property
    def kind(self) -> tuple[str, str, str, str]:
        return self.device, self.model, self.mode, self.shape


def state_file() -> Path:
    """Where the entries are: 'kiwi/last-runs.json' of the person's state folder (`XDG_STATE_HOME`)."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "kiwi" / "last-runs.json"


def read() -> list[LastRun]:
    """The entries, latest last; none where there is no file, or one that cannot be understood."""
    try:
        return [LastRun(**entry) for entry in json.loads(state_file().read_text(encoding="utf-8"))]
    except (OSError, RuntimeError, ValueError, TypeError):  # RuntimeError: nobody's home
        return []


def remember(run: LastRun) -> None:
    """Keep an edit in place of the last one of its kind. Without a word where nothing can be written."""
    run = LastRun(**{**asdict(run), "day": date.today().isoformat()})
    kept = [other for other in read() if other.kind != run.kind][1 - MOST :]
    try:
        path = state_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps([asdict(entry) for entry in (*kept, run)], indent=1) + "\n")
    except (OSError, RuntimeError):
        return


def expected(run: LastRun) -> tuple[float, str] | None:
    """Seconds that an edit will take here, and from what: from the last of its shape, else from those that worked in
    the same way, by the operations. None where there is none.

    Args:
        run: of which the seconds are not known.
    """
    alike = [other for other in read() if other.kind[:3] == run.kind[:3] and other.tflop > 0]
    same = [other for other in alike if other.shape == run.shape]
    if not alike:
        return None
    if same:
        last = same[-1]
        return last.load + _work(last, run), f"the last such edit here, {last.day}"
    # The latest of those that are nearest in size; of edits much shorter than this one most may not grow with it.
    near = min(reversed(alike), key=lambda other: abs(log(other.tflop / max(run.tflop, 1e-9))))
    what = f"the last edit here with this model, at {near.shape}, {near.day}"
    others = [other for other in alike if not 1 / APART < other.tflop / near.tflop < APART]
    rates = [(_thinking(other) - _thinking(near)) / (other.tflop - near.tflop) for other in reversed(others)]
    if rates and rates[0] > 0:
        return near.load + _work(near, run, rates[0]), what
    far = run.tflop > FAR * near.tflop
    return near.load + _work(near, run), f"{what}, which was so short that this is too long" if far else what


def _work(known: LastRun, run: LastRun, rate: float | None = None) -> float:
    """Seconds of work that are expected, by those of an edit that is known.

    Args:
        rate: seconds for each further operation before frames are decoded; None: they grow with the operations.
    """
    share = run.tflop / known.tflop
    thinking = _thinking(known) * share
    if rate is not None:
        grown = _thinking(known) + rate * (run.tflop - known.tflop)
        thinking = max(grown, _thinking(known) * min(1.0, share))
    # Frames are decoded at the model's size and written at the clip's own: what grew more counts.
    return thinking + known.writing * max(share, run.pixels / known.pixels if known.pixels else 0.0)


def _thinking(run: LastRun) -> float:
    """Seconds of work before frames are decoded and written."""
    return run.work - run.writing
