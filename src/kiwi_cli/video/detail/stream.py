"""Detail as a stream: three frames in, a result a few frames later, and nothing kept for longer than it is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from kiwi_cli.video.detail.apply import apply
from kiwi_cli.video.detail.cores import Cores
from kiwi_cli.video.detail.maps import fit
from kiwi_cli.video.detail.moments import Moments, block_moments, loss_of
from kiwi_cli.video.detail.settings import DetailSettings

CUT_DIFFERENCE = 0.04
"""Of 0..1: mean difference of two frames' blocks below which there is no cut."""
CUT_CORRELATION = 0.6
"""Of two frames' blocks, above which there is none."""
JUMP = 0.06
"""Of 0..1: mean difference of the blocks of edit and source from one frame to the next above which the edit becomes
another one, if that is also `JUMP_OF_MOTION` times the source's own: a negative of what moves has twice that. A mean
over two edits is explained by no map. The embedded model, which flickers, comes to 0.024, its negatives to 0.044,
both in windows of their own (five styles, a drawn, a rendered and a filmed clip)."""
JUMP_OF_MOTION = 3


class Triple(NamedTuple):
    """What a result frame is made of.

    Attributes:
        edited: the edited frame at the working size, (h, w, 3) uint8.
        round_trip: the source as the autoencoder gives it back, (h, w, 3) uint8.
        source: the source at full size, (H, W, 3) uint8, or uint16 with all bits used.
    """

    edited: np.ndarray
    round_trip: np.ndarray
    source: np.ndarray


@dataclass
class _Held:
    """One frame while it is waited for, or needed by those around it."""

    shot: int
    moments: Moments
    edited: torch.Tensor | None
    round_trip: torch.Tensor | None
    loss: torch.Tensor | None = None  # comes with the source
    noise: float | None = None  # where it was measured


class Detail:
    """A clip's frames with the source's detail, in order, a few frames late: `reach`, or `period` - 1 with `steady`.

    Covariances are averaged over the frames around each before the maps are solved for, but never across a scene cut
    or from one edit to another. Joints of windows are no cuts: they fade.

    A frame at full size is asked for when its result is due, and none is kept: beside it and the result there are
    strips. Of n frames' delay, held are n + 1 pairs at the working size (2n + 1 with `steady`) and moments of 2n + 1
    frames, each as large as two working-size frames or less.

        for edited, round_trip in pairs:
            detail.add(edited, round_trip)
            if detail.due:
                result = detail.result(source)  # of a frame `reach` before
        while detail.waiting:
            result = detail.result(source)

    Args:
        device: where the work is done; frames come and go as numpy arrays in any case.
    """

    def __init__(self, settings: DetailSettings | None = None, device: str | torch.device = "cpu") -> None:
        self.settings = settings or DetailSettings()
        self.device = torch.device(device)
        self._reach = self.settings.period - 1 if self.settings.steady else self.settings.reach
        self._cores = Cores(None if self.device.type == "cpu" else 1)
        self._held: deque[_Held] = deque()
        self._next = 0  # in `_held`: the frame whose result comes next

    @property
    def reach(self) -> int:
        """Frames to either side that a result depends on."""
        return self._reach

    @property
    def waiting(self) -> int:
        """Frames whose result has not been made."""
        return len(self._held) - self._next

    @property
    def due(self) -> bool:
        """Whether all frames are there that the next result depends on."""
        return self.waiting > self._reach

    @torch.inference_mode()
    def add(self, edited: np.ndarray, round_trip: np.ndarray) -> None:
        """Take the next frame.

        Args:
            edited, round_trip: as in `Triple`. They are kept, not copied: they must not be written to until the
                results around them are there.
        """
        edit, trip = (_tensor(frame).to(self.device) for frame in (edited, round_trip))
        with self._cores.alone():
            moments = block_moments(edit, trip, self._cores)
            last = self._held[-1] if self._held else None
            shot = 0 if last is None else last.shot + (is_cut(last.moments, moments) or jumps(last.moments, moments))
            self._held.append(_Held(shot, moments, edit, trip))

    @torch.inference_mode()
    def result(self, source: np.ndarray) -> np.ndarray:
        """The next frame's result, from the frames that are there; what no later frame needs is let go.

        Args:
            source: that frame's, as in `Triple`.
        """
        held, reach = self._held, self._reach
        frame = held[self._next]
        near = range(max(0, self._next - reach), min(self._next + reach + 1, len(held)))
        numbers = [number for number in near if held[number].shot == frame.shot]
        shot = [held[number] for number in numbers]
        # Steadied, a mean of means over as many frames as windows have: a jump between windows becomes a ramp, the
        # ramp's ends are soft, and nothing is left of what is the same in each window.
        steady = self.settings.steady
        weights = [reach + 1 - abs(number - self._next) if steady else 1 for number in numbers]
        with self._cores.alone():
            full = _tensor(source)
            assert frame.edited is not None and frame.round_trip is not None
            # Noise is the autoencoder's and the same for a while: of the frames within reach one is measured.
            known = next((one.noise for one in shot if one.noise is not None), None)
            small = _eight_bits(full).to(self.device)
            frame.loss, frame.noise = loss_of(frame.round_trip, small, self._cores, noise=known is None)
            noise = known or frame.noise or 0.0
            # An autoencoder's loss is no matter of a single frame; of those to come it is not known yet.
            losses = [(one.loss, weight) for one, weight in zip(shot, weights, strict=True) if one.loss is not None]
            loss = torch.stack([plane * (weight / sum(w for _, w in losses)) for plane, weight in losses]).sum(0)
            maps = fit([one.moments for one in shot], weights, loss, self.settings, noise)
            if steady:
                pairs = [one.edited for one in shot], [one.round_trip for one in shot]
                edited, round_trip = self._cores.each(lambda frames: _total(frames, weights), pairs)
                result = apply(maps, edited, round_trip, full, self._cores, scale=sum(weights))
            else:
                result = apply(maps, frame.edited, frame.round_trip, full, self._cores)
                frame.edited = frame.round_trip = None
        self._next += 1
        while self._next > reach:
            held.popleft()
            self._next -= 1
        if not self.waiting:
            held.clear()
            self._next = 0
        return result


def transfer(
    frames: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    settings: DetailSettings | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[np.ndarray]:
    """Result frames, as many as there are triples, in order. Sources are kept until they are due.

    Args:
        frames: one `Triple` for each frame.
    """
    detail = Detail(settings, device)
    sources: deque[np.ndarray] = deque()
    for edited, round_trip, source in frames:
        detail.add(edited, round_trip)
        sources.append(source)
        if detail.due:
            yield detail.result(sources.popleft())
    while sources:
        yield detail.result(sources.popleft())


def is_cut(before: Moments, now: Moments) -> bool:
    """Whether a scene ends between two frames: their blocks differ, and not in brightness alone."""
    if before.kept.shape != now.kept.shape:
        return True
    a, b = (moments.means()[0].flatten() for moments in (before, now))
    if float((a - b).abs().mean()) < CUT_DIFFERENCE:
        return False
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1].nan_to_num(0.0)) < CUT_CORRELATION


def jumps(before: Moments, now: Moments) -> bool:
    """Whether the edit becomes another one between two frames, of one size."""
    (trip, edit), (trip_now, edit_now) = before.means(), now.means()
    motion = trip_now - trip
    moved = float((edit_now - edit - motion).abs().mean())
    return moved > max(JUMP, JUMP_OF_MOTION * float(motion.abs().mean()))


def _tensor(frame: np.ndarray) -> torch.Tensor:
    """The same memory where possible; torch takes no read-only one."""
    return torch.from_numpy(np.require(frame, requirements=["C", "W"]))


def _eight_bits(frame: torch.Tensor) -> torch.Tensor:
    """(H, W, 3) uint8: a frame itself, or the upper half of each of 16 bits."""
    if frame.dtype == torch.uint8:
        return frame
    upper = np.empty(frame.shape, np.uint8)
    np.right_shift(frame.numpy(), 8, out=upper, casting="unsafe")
    return torch.from_numpy(upper)


def _total(frames: list[torch.Tensor | None], weights: list[int]) -> torch.Tensor:
    """The weighted sum over frames of bytes, in whole numbers."""
    there = [frame for frame in frames if frame is not None]
    total = there[0].to(torch.int16 if 255 * sum(weights) < 1 << 15 else torch.int32) * weights[0]
    for frame, weight in zip(there[1:], weights[1:], strict=True):
        total.add_(frame, alpha=weight)
    return total
