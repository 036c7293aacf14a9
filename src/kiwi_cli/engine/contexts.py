"""What the instruction is read with in a long edit: frames of a shot or of a window, picked as the shot goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from kiwi_cli.engine import demand
from kiwi_cli.engine.layout import STRIDE, Layout, ShotRows, Window
from kiwi_cli.engine.pipeline import KiwiPipeline
from kiwi_cli.errors import UsageError
from kiwi_cli.video import Size


@dataclass(frozen=True)
class Group:
    """What one context is of: frames of a shot, by number."""

    shot: int
    frames: range


def context_groups(layout: Layout, of_windows: bool) -> list[Group]:
    """One for each shot, or for each window: with the frame of its anchor, for that is what it sees."""
    if not of_windows:
        return [Group(number, range(shot.given)) for number, shot in enumerate(layout.shots)]
    return [Group(window.shot, range(_seen_from(layout, window), window.last)) for window in layout.windows]


def _seen_from(layout: Layout, window: Window) -> int:
    return window.first - 1 if layout.shots[window.shot].anchors and window.first else window.first


class ContextReader:
    """The contexts of one shot, read as its frames go by.

    Args:
        groups: of the whole clip. shot: whose frames come.
    """

    def __init__(
        self,
        pipe: KiwiPipeline,
        groups: Sequence[Group],
        shot: int,
        instruction: str,
        pictures: Sequence[Image.Image] = (),
    ) -> None:
        self.pipe, self.instruction, self.pictures = pipe, instruction, list(pictures)
        most = pipe.inputs.bounds.max_frames
        self._wanted: dict[int, list[int]] = {}  # frame -> contexts that want it
        self._left: dict[int, int] = {}  # context -> frames to come
        self._held: dict[int, list[np.ndarray]] = {}
        for context, group in enumerate(groups):
            if group.shot != shot:
                continue
            places = np.arange(len(group.frames))
            if len(places) > most:
                places = np.linspace(0, len(places) - 1, most).round().astype(int)
            self._left[context], self._held[context] = len(places), []
            for place in places.tolist():
                self._wanted.setdefault(group.frames[place], []).append(context)

    @property
    def done(self) -> bool:
        """Whether all contexts of the shot are read."""
        return not self._left

    def see(self, number: int, frame: np.ndarray) -> None:
        """A frame of the shot, (H, W, 3) uint8: they come in order, each once."""
        for context in self._wanted.get(number, ()):
            self._held[context].append(frame)
            self._left[context] -= 1

    def read(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Every context that has all of its frames now: its number among the groups, and its tokens on the host."""
        for context in [each for each, left in self._left.items() if not left]:
            del self._left[context]
            frames = np.stack(self._held.pop(context))
            inputs = self.pipe.inputs(frames, self.instruction, self.pictures)
            yield context, self.pipe.encode_inputs(inputs).cpu()


def given_frames(shot: ShotRows, stream: Iterator[np.ndarray], reader: ContextReader) -> Iterator[np.ndarray]:
    """The frames of a shot that the model is given, each seen by the reader.

    Args:
        stream: the shot's frames come next in it.

    Raises:
        UsageError: there are not as many.
    """
    frame: np.ndarray | None = None
    for number in range(shot.given):
        if number < shot.frames:
            frame = next(stream, None)
        if frame is None:
            raise UsageError("the clip has fewer frames than before", "was it written to meanwhile?")
        reader.see(number, frame)
        yield frame


def place(
    pipe: KiwiPipeline,
    size: Size,
    layout: Layout,
    groups: Sequence[Group],
    instruction: str,
    pictures: Sequence[Image.Image],
    say: Callable[[str], None],
) -> None:
    """Choose what is on the device when, by the longest window and the largest prompt.

    Raises:
        UsageError: of a memory level that decodes in one piece.
    """
    if pipe.residency is None:
        return
    frames = max(min(len(group.frames), pipe.inputs.bounds.max_frames) for group in groups)
    drawn = np.zeros((frames, *size[::-1], 3), np.uint8)
    inputs = pipe.inputs(drawn, instruction, list(pictures))
    asked = demand.demand(
        demand.widths_of(pipe),
        size,
        1 + STRIDE * (layout.longest - 1),
        len(pictures),
        demand.built_prompt(inputs),
        pipe.compute_dtype.itemsize,
        pipe.transformer.compiled,
    )
    pipe.residency.choose(asked, say)
    if not pipe.residency.placement.level.exact:
        raise UsageError(
            f"--memory {pipe.residency.placement.level.name} decodes a clip in one piece",
            "pass --windows independent, or another --memory",
        )
