"""A clip of any length through a model that works on a few frames at a time.

Each window is an edit of its own, with the same seed. Windows follow each other without overlap; the last one reaches
back over frames that are edited already, so that it is as long as the others and none is shorter than the model was
trained on. At most two windows of frames are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiwi_cli.console import count

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Windows:
    """How a clip is cut.

    Attributes:
        frames: in each window. count: how many; an estimate when `exact` is False.
    """

    frames: int
    count: int
    exact: bool = True

    @classmethod
    def of(cls, total: int, frames: int | None, exact: bool = True) -> Windows | None:
        """Windows of at most `frames` frames over `total`; None when one will do."""
        if frames is None or (total <= frames and exact):
            return None
        return cls(frames, max(1, -(-total // frames)), exact)

    @property
    def data(self) -> dict[str, int]:
        """For `--json`."""
        return {"count": self.count, "frames": self.frames}

    def __str__(self) -> str:
        return f"{'' if self.exact else 'about '}{count(self.count, 'window')} of {count(self.frames, 'frame')}"


def cut(frames: Iterable[np.ndarray], length: int) -> Iterator[tuple[np.ndarray, int]]:
    """Single frames (H, W, 3) -> windows (f, H, W, 3), each with the number of its first frames that were in the last.

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
    plan: Windows,
    edit: Callable[[np.ndarray, Progress], Iterator[np.ndarray]],
    progress: Progress,
) -> Iterator[np.ndarray]:
    """The frames of every window in order, each once.

    Args:
        frames: (H, W, 3) uint8, one at a time.
        edit: a window and where it reports -> its edited frames in chunks (f, H, W, 3).
        progress: told of all windows together, as if they were one edit.

    Yields:
        (f, H, W, 3) uint8.
    """
    for number, (window, known) in enumerate(cut(frames, plan.frames)):
        total = max(plan.count, number + 1)

        def report(stage: str, done: int, of: int, before: int = number, windows: int = total) -> None:
            progress(stage, before * of + done, windows * of)

        report("instruction", 0, 1)
        with closing(edit(window, report)) as chunks:  # type: ignore[type-var]
            for chunk in chunks:
                if known < len(chunk):
                    yield chunk[known:]
                known = max(0, known - len(chunk))
