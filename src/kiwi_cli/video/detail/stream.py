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
from kiwi_cli.video.detail.maps import E, R, block_moments, fit
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
    moments: torch.Tensor
    noise: float
    edited: torch.Tensor | None
    round_trip: torch.Tensor | None
    source: torch.Tensor | None


class Detail:
    """A clip's frames with the source's detail, in order, a few frames late: `reach`, or `period` - 1 with `steady`.

    Covariances are averaged over the frames around each before the maps are solved for, but never across a scene cut
    or from one edit to another. Joints of windows are no cuts: they fade. Of n frames' delay, held are n + 1 frames at
    full size and, while one is made, three more; as many pairs at the working size (2n + 1 with `steady`); and moments
    of 2n + 1 frames, each as large as two working-size frames or less.

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

    @torch.inference_mode()
    def add(self, edited: np.ndarray, round_trip: np.ndarray, source: np.ndarray) -> list[np.ndarray]:
        """The result frames that are ready now, one or none.

        Args:
            edited, round_trip, source: as in `Triple`. They are kept, not copied: they must not be written to until the
                results around them are there.
        """
        edit, trip = (_tensor(frame).to(self.device) for frame in (edited, round_trip))
        full = _tensor(source)
        eight = full if source.dtype == np.uint8 else _tensor((source >> 8).astype(np.uint8))
        with self._cores.alone():
            moments, noise = block_moments(edit, trip, eight.to(self.device), self._cores)
            last = self._held[-1] if self._held else None
            shot = 0 if last is None else last.shot + (is_cut(last.moments, moments) or jumps(last.moments, moments))
            self._held.append(_Held(shot, moments, noise, edit, trip, full))
            return [] if len(self._held) - self._next <= self._reach else [self._result()]

    @torch.inference_mode()
    def finish(self) -> Iterator[np.ndarray]:
        """The result frames that are still due."""
        while self._next < len(self._held):
            with self._cores.alone():
                result = self._result()
            yield result
        self._held.clear()
        self._next = 0

    def _result(self) -> np.ndarray:
        """The next frame's result; what no later frame needs is let go."""
        held, reach = self._held, self._reach
        frame = held[self._next]
        near = range(max(0, self._next - reach), min(self._next + reach + 1, len(held)))
        shot = [held[number] for number in near if held[number].shot == frame.shot]
        # Steadied, a mean of means over as many frames as windows have: a jump between windows becomes a ramp, the
        # ramp's ends are soft, and nothing is left of what is the same in each window.
        weights = [1.0] * len(shot)
        if self.settings.steady:
            weights = [reach + 1.0 - abs(n - self._next) for n in near if held[n].shot == frame.shot]
        noise = sum(one.noise for one in shot) / len(shot)
        maps = fit(_mean([one.moments for one in shot], weights), self.settings, self._cores, noise)
        edited: torch.Tensor | None
        round_trip: torch.Tensor | None
        if self.settings.steady:
            edited = _mean([one.edited for one in shot], weights)
            round_trip = _mean([one.round_trip for one in shot], weights)
        else:
            edited, round_trip = frame.edited, frame.round_trip
            frame.edited = frame.round_trip = None
        assert edited is not None and round_trip is not None and frame.source is not None
        result = apply(maps, edited, round_trip, frame.source, self._cores)
        frame.source = None
        self._next += 1
        while self._next > reach:
            held.popleft()
            self._next -= 1
        return result


def transfer(
    frames: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]],
    settings: DetailSettings | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[np.ndarray]:
    """Result frames, as many as there are triples, in order.

    Args:
        frames: one `Triple` for each frame.
    """
    detail = Detail(settings, device)
    for triple in frames:
        yield from detail.add(*triple)
    yield from detail.finish()


def is_cut(before: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether a scene ends between two frames' moments: their blocks differ, and not in brightness alone."""
    a, b = before[R].flatten(), now[R].flatten()
    if a.shape != b.shape:
        return True
    if float((a - b).abs().mean()) < CUT_DIFFERENCE:
        return False
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1].nan_to_num(0.0)) < CUT_CORRELATION


def jumps(before: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether the edit becomes another one between two frames' moments, of one size."""
    motion = now[R] - before[R]
    moved = float((now[E] - before[E] - motion).abs().mean())
    return moved > max(JUMP, JUMP_OF_MOTION * float(motion.abs().mean()))


def _tensor(frame: np.ndarray) -> torch.Tensor:
    """The same memory where possible; torch takes no read-only one."""
    return torch.from_numpy(np.require(frame, requirements=["C", "W"]))


def _mean(frames: list[torch.Tensor | None], weights: list[float]) -> torch.Tensor:
    """The weighted mean over frames; of one frame, itself."""
    there = [frame for frame in frames if frame is not None]
    if len(there) == 1:
        return there[0]
    total = there[0].float() * weights[0]
    for frame, weight in zip(there[1:], weights[1:], strict=True):
        total.add_(frame, alpha=weight)
    return total.div_(sum(weights))
