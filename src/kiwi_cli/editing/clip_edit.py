"""A clip on its way through an editor, in one piece or in windows, and what is to be said of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kiwi_cli.editing import cache_ratios
from kiwi_cli.editing.kept import Keeper, Kept, restored
from kiwi_cli.editing.outputs import source_frames
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.windows import edited
from kiwi_cli.editors.base import Calibration, Denoising, Edited, Editor, Frames, Origin, Progress, Restores
from kiwi_cli.errors import KiwiError
from kiwi_cli.video import Damage

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class ClipEdit:
    """One plan's frames through an editor.

    Args:
        source: (F, H, W, 3) uint8, the whole clip; None: it is read as it is edited, in the plan's windows.
        decoded: False in a process that only helps another one: no frames come out.
        note: called with lines for the person, each once.
        keeper: holds what is made. kept: windows of it that were made before.
        damage: of the frames in `source`.
    """

    def __init__(
        self,
        plan: EditPlan,
        editor: Editor,
        denoising: Denoising,
        source: np.ndarray | None,
        references: Sequence[Image.Image],
        progress: Progress,
        note: Callable[[str], None],
        decoded: bool = True,
        keeper: Keeper | None = None,
        kept: Kept | None = None,
        damage: Damage | None = None,
    ) -> None:
        self.plan, self.editor, self.denoising, self.source = plan, editor, denoising, source
        self.references, self.progress, self.note, self.decoded = references, progress, note, decoded
        self.keeper, self.kept = keeper, kept
        self.damage = damage or Damage()
        self._approximations: list[tuple[str, ...]] = []  # of each window
        self._calibrations: list[Calibration] = []
        self._told: set[str] = set()
        self._words = plan.told(plan.request)  # the same in all windows
        self.origin = Origin(plan.clip.path, plan.output, plan.rate)
        self.changes: list[str] = []  # what the editor did to the clip beside the edit
        self.dollars: float | None = None  # what it cost

    def frames(self) -> Frames:
        """The edited frames in order, (f, H, W, 3) uint8, made as they are taken."""
        return self._stream(self._edited)

    def pairs(self) -> Frames:
        """The edited frames, each with the source as the autoencoder gives it back: (f, 2, H, W, 3) uint8."""
        return self._stream(self._paired)

    def _stream(self, edit: Callable[[np.ndarray, Progress], Frames]) -> Frames:
        if self.source is None:
            assert self.plan.windows is not None
            frames = (frame.rgb for frame in source_frames(self.plan))
            return edited(frames, self.plan.windows, edit, self.progress)
        if self.kept is None:
            self.progress("instruction", 0, 1)
        return edit(self.source, self.progress)

    def _edited(self, frames: np.ndarray, progress: Progress) -> Frames:
        done = self._edit(frames, progress)
        if self.decoded:
            return self._given(done.frames, len(frames))
        done.frames.close()
        return no_frames()

    def _paired(self, frames: np.ndarray, progress: Progress) -> Frames:
        done = self._edit(frames, progress, round_trip=True)
        if done.round_trip is None:
            raise KiwiError(f"'{self.editor.name}' gave nothing back of the source", "pass --detail model")
        if self.decoded:
            count = len(frames)
            return paired(self._given(done.frames, count), self._given(done.round_trip, count), frames.shape)
        done.frames.close()
        done.round_trip.close()
        return no_frames()

    def _given(self, chunks: Frames, count: int) -> Frames:
        """The frames of those that were given, without what `filled` repeated."""
        return first(chunks, count) if count < self.plan.least else chunks

    def _edit(self, frames: np.ndarray, progress: Progress, round_trip: bool = False) -> Edited:
        count, frames = len(frames), filled(frames, self.plan.least)
        number = len(self._approximations) + 1
        where = f"window {number}: " if number > 1 else ""  # the first speaks for all that say the same

        def notify(line: str) -> None:
            if line not in self._told:
                self._told.add(line)
                self.note(where + line)

        asked = (frames, self._words, self.references)
        window = self.kept.window(number, frames) if self.kept is not None else None
        if window is not None:
            done = restored(window, self.editor, *asked, progress, notify)
        else:
            more: Any = {"denoising": self.denoising, "origin": self.origin, "round_trip": round_trip}
            done = self.editor.edit(*asked, progress=progress, notify=notify, **more)
        if self.keeper is not None:
            done = self.keeper.watch(done, count, isinstance(self.editor, Restores))
        self._approximations.append(done.approximations)
        for line in done.changes:
            notify(line)
            if line not in self.changes:
                self.changes.append(line)
        if done.dollars is not None:
            self.dollars = (self.dollars or 0.0) + done.dollars
        if done.calibration is not None:
            self._calibrations.append(done.calibration)
        return done

    @property
    def approximations(self) -> list[str]:
        """Why the result is not the model's exact one, of all windows that were edited."""
        return gathered(self._approximations)

    @property
    def calibration(self) -> Calibration | None:
        """The mean of what the windows measured; None when nothing was."""
        if not self._calibrations:
            return None
        each = zip(*(window.ratios for window in self._calibrations), strict=True)
        return Calibration(tuple(fmean(step) for step in each), self._calibrations[0].shift)


def filled(frames: np.ndarray, length: int) -> np.ndarray:
    """Fewer frames than a model was made for at a time, (f, H, W, 3), with the last repeated up to that length."""
    import numpy as np

    if len(frames) >= length:
        return frames
    return np.concatenate([frames, np.repeat(frames[-1:], length - len(frames), axis=0)])


def first(chunks: Frames, count: int) -> Frames:
    """The first `count` frames of a stream; the rest is left undone."""
    with closing(chunks):
        for chunk in chunks:
            yield chunk[:count]
            count -= len(chunk)
            if count <= 0:
                return


def no_frames() -> Frames:
    yield from ()


def paired(frames: Frames, round_trip: Frames, shape: Sequence[int]) -> Frames:
    """Edited frames and the source's round trip beside each other, (f, 2, H, W, 3), in the chunks of the former.

    The round trip is taken first and held, as large as the frames that went in: decoding both at a time would take a
    device's memory twice.

    Args:
        shape: of all frames together, (F, H, W, 3).
    """
    import numpy as np

    with closing(frames), closing(round_trip):
        held, sent = np.empty(shape, np.uint8), 0
        for chunk in round_trip:
            held[sent : sent + len(chunk)] = chunk
            sent += len(chunk)
        sent = 0
        for chunk in frames:
            yield np.stack([chunk, held[sent : sent + len(chunk)]], axis=1)
            sent += len(chunk)


def gathered(windows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of all windows in order, each once; one that is not every window's says whose it is."""
    lines = dict.fromkeys(line for window in windows for line in window)
    said = []
    for line in lines:
        of = [number for number, window in enumerate(windows, start=1) if line in window]
        names = f"window{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}"
        said.append(line if len(of) == len(windows) else f"{names}: {line}")
    return said


def denoising_of(plan: EditPlan, sigma_min: float | None = None) -> Denoising:
    """How a plan's noise becomes a clip; the ratios of step cache 'mag' are read from their file."""
    sampling, ratios = plan.request.sampling, None
    if sampling.cache_ratios is not None:  # looked at once more: all of the model is here now
        ratios = cache_ratios.for_request(plan.request, plan.model, plan.steps)[0].values
    return Denoising(
        plan.steps,
        sampling.seed,
        sigma_min,
        sampling.solver,
        sampling.cache,
        sampling.cache_threshold,
        ratios,
        sampling.calibrate_cache is not None,
        plan.noise,
    )
