"""The source's own detail in a result: the edited frames of a plan, at the clip's own scale."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editors.base import Frames
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.errors import MediaError
from kiwi_cli.video import Size, read_frames

if TYPE_CHECKING:
    import numpy as np

    from kiwi_cli.video.detail import DetailSettings

APPROXIMATE = "detail from the source: NOT exact, the model made none of it"

LONGEST = 8
"""Frames from one window to the next that are averaged over, where that is asked for: more would blur."""

ROOM = 64
"""Bytes for each pixel at full size that must be free on a device for the work to happen there."""


def detailed(plan: EditPlan, pairs: Frames, device: str, deep: bool = False) -> Frames:
    """Result frames, (1, H, W, 3) uint8, as large as the part of the clip that the model is shown.

    The clip is decoded once more, a few frames behind the edit: no frame of it is kept.

    Args:
        pairs: (f, 2, h, w, 3), of `ClipEdit.pairs`; with parts that were made anew (f, 2 + parts, h, w, 3).
        device: that the editor works on.
        deep: of a clip with more than 8 bits the results are uint16, all of it used.
    """
    import numpy as np

    shown, worked = plan.place.source, plan.place.target
    details: Versions | None = None
    with closing(pairs), closing(read_frames(plan.clip, plan.span, deep=deep)) as sources:

        def result(details: Versions) -> np.ndarray:
            source = next(sources, None)
            if source is None:
                raise MediaError(f"'{plan.clip.path}' has fewer frames than before", "was it written to meanwhile?")
            full = np.ascontiguousarray(source.rgb[shown.top : shown.bottom, shown.left : shown.right])
            return details.result(full)[None]

        for chunk in pairs:
            if details is None:  # the first pair comes after the round trip was decoded: what is free now stays free
                details = Versions(_settings(plan), _place(device, shown.size), plan.parts)
            for edited, round_trip, *earlier in chunk[:, :, worked.top : worked.bottom, worked.left : worked.right]:
                details.add([*reversed(earlier), edited], round_trip)
                if details.due:
                    yield result(details)
        while details and details.waiting:
            yield result(details)


def _settings(plan: EditPlan) -> DetailSettings:
    """How detail is transferred: where a model flickers, over as many frames as windows are apart, up to `LONGEST`."""
    from kiwi_cli.video.detail import DetailSettings

    apart = None if plan.in_windows is None else plan.in_windows.apart
    of_model = DetailSettings(steady=plan.settings.steady)
    if plan.settings.trust is not None:
        of_model = replace(of_model, trust=plan.settings.trust)
    if not of_model.steady or apart is None or apart <= 2:
        return of_model
    return replace(of_model, period=min(apart, LONGEST))


class Versions:
    """Detail for a clip of which parts were made anew: each frame from the versions that it is shown from.

    Detail looks a few frames to either side, and what it finds there has to be one edit. So each part has its own, of
    its frames alone, and comes in and goes when both versions have theirs: a dissolve of two sharp pictures. Frames
    outside a part come out as they did without it. Where a part begins or ends with a shot, what lies beyond is looked
    at as of the whole clip.

    Args:
        parts: in the order in which they were made.
    """

    def __init__(self, settings: DetailSettings, device: str, parts: Sequence[PartRows] = ()) -> None:
        from kiwi_cli.video.detail import Detail

        self.parts = parts
        self._details = [Detail(settings, device) for _ in range(1 + len(parts))]
        self._given = self._sent = 0

    @property
    def due(self) -> bool:
        """Whether all frames are there that the next result depends on."""
        return self._details[0].due

    @property
    def waiting(self) -> int:
        """Frames whose result has not been made."""
        return self._details[0].waiting

    def add(self, versions: Sequence[np.ndarray], round_trip: np.ndarray) -> None:
        """Take the next frame.

        Args:
            versions: of it, before any part was made anew, after the first, and so on.
            round_trip: as of `Detail.add`.
        """
        for number, (edited, detail) in enumerate(zip(versions, self._details, strict=True)):
            if self._given in self._near(number):
                detail.add(edited, round_trip)
        self._given += 1

    def result(self, source: np.ndarray) -> np.ndarray:
        """The next result, mixed of the versions that its frame is shown from.

        Args:
            source: that frame's, as of `Detail.result`.
        """
        result = self._details[0].result(source)
        for number, part in enumerate(self.parts, 1):
            if self._sent in self._near(number):
                own = self._details[number].result(source)
                if part.first <= self._sent < part.last:
                    result = part.mixed(self._sent, result, own)
        self._sent += 1
        return result

    def _near(self, number: int) -> range:
        """The frames that a version is given detail in."""
        if not number:
            return range(1 << 62)
        part = self.parts[number - 1]
        reach = self._details[0].reach
        before, after = (0 if fade else reach for fade in part.fades)
        return range(max(0, part.first - before), part.last + after)


def _place(device: str, size: Size) -> str:
    """The editor's device if it is a CUDA one with room for a frame of `size`, else the CPU."""
    if not device.startswith("cuda"):
        return "cpu"
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return device if free >= ROOM * size.width * size.height else "cpu"
