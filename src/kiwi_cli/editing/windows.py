"""The windows over a clip, and a clip of any length through a model in windows that know nothing of each other.

Each such window is an edit of its own, with the same seed. Windows follow each other without overlap; the last one
reaches back over frames that are edited already, so that it is as long as the others and none is shorter than the model
was trained on. At most two windows of frames are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.events import WINDOWS
from kiwi_cli.base.text import count
from kiwi_cli.editors.base import Frames, Progress
from kiwi_cli.engine.layout import Layout

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Windows:
    """How a clip is cut.

    Attributes:
        frames: in each window. count: how many; an estimate when `exact` is False.
        layout: of windows that are denoised together; None when each is an edit of its own.
        contexts: of joint windows: 'shot' or 'window', what the instruction is read with.
    """

    frames: int
    count: int
    exact: bool = True
    layout: Layout | None = None
    contexts: str = "window"

    @classmethod
    def of(cls, total: int, frames: int | None, exact: bool = True) -> Windows | None:
        """Independent windows of at most `frames` frames over `total`; None when one will do."""
        if frames is None or (total <= frames and exact):
            return None
        return cls(frames, max(1, -(-total // frames)), exact)

    @property
    def is_one(self) -> bool:
        """Whether it is one window that is laid out: the clip in one piece."""
        return self.layout is not None and len(self.layout.windows) == 1

    @property
    def shots(self) -> tuple[int, ...]:
        """Frames of each shot; empty when they were not looked for."""
        return () if self.layout is None else tuple(shot.frames for shot in self.layout.shots)

    @property
    def apart(self) -> int:
        """Frames from the beginning of one window to the next one's, of most of them."""
        if self.layout is None:
            return self.frames
        found = Counter(b.first - a.first for a, b in pairwise(self.layout.windows) if a.shot == b.shot and a.first)
        return found.most_common(1)[0][0] if found else self.frames

    @property
    def contexts_read(self) -> int:
        """How often the instruction is read."""
        return len(self.shots) if self.layout is not None and self.contexts == "shot" else self.count

    @property
    def data(self) -> dict[str, Any]:
        """For `--json`."""
        kind = "independent" if self.layout is None else "joint"
        return {"kind": kind, "count": self.count, "frames": self.frames, "shots": list(self.shots)}

    def __str__(self) -> str:
        together = "" if self.layout is None else ", denoised together"
        cuts = f", over {count(len(self.shots), 'shot')}" if len(self.shots) > 1 else ""
        about = "" if self.exact else "about "
        return f"{about}{count(self.count, 'window')} of {count(self.frames, 'frame')}{together}{cuts}"


def cut(frames: Iterable[np.ndarray], length: int) -> Iterator[tuple[np.ndarray, int]]:
    """Windows (f, H, W, 3) of single frames (H, W, 3), each with how many leading frames the one before already gave.

    f is `length`, or fewer when there are fewer in all.
    """
    import numpy as np

    held: list[np.ndarray] = []
    fresh = 0
    for frame in frames:
        held.append(frame)
        fresh += 1
        if fresh == length:
            held = held[-length:]
            yield np.stack(held), 0
            fresh = 0
    if fresh:
        held = held[-length:]
        yield np.stack(held), len(held) - fresh


def edited(
    frames: Iterable[np.ndarray],
    windows: Windows,
    edit: Callable[[np.ndarray, Progress], Frames],
    progress: Progress,
) -> Frames:
    """The frames of every window in order, each once.

    Args:
        frames: (H, W, 3) uint8, one at a time.
        edit: a window and where it reports -> its edited frames in chunks (f, H, W, 3).
        progress: told of all windows together, as if they were one edit, and of `WINDOWS` as they are done.

    Yields:
        (f, H, W, 3) uint8.
    """
    done = 0
    for number, (window, known) in enumerate(cut(frames, windows.frames)):
        total = max(windows.count, number + 1)
        progress(WINDOWS, number, total)

        def report(stage: str, done: int, of: int, before: int = number, in_all: int = total) -> None:
            progress(stage, before * of + done, in_all * of)

        report("instruction", 0, 1)
        with closing(edit(window, report)) as chunks:
            for chunk in chunks:
                if known < len(chunk):
                    yield chunk[known:]
                known = max(0, known - len(chunk))
        done = number + 1
    progress(WINDOWS, done, done)
