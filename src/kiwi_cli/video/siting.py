"""Where a frame's chroma samples lie between its luma samples.

FFmpeg names six places (left, centre, top-left, ...). Here a place is (across, down): 0 is on the first luma
sample that a chroma sample stands for, 0.5 in the middle of them, 1 on the last.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from kiwi_cli.video.clip import CENTRE, LEFT, TOP_LEFT, Siting
from kiwi_cli.video.filters import Chain
from kiwi_cli.video.formats import planar_name

# places that FFmpeg has a name for -> the name
_NAMES = {
    LEFT: "left",
    CENTRE: "center",
    TOP_LEFT: "topleft",
    Siting(0.5, 0): "top",
    Siting(0, 1): "bottomleft",
    Siting(0.5, 1): "bottom",
}
_NOT_SAID = 2  # AVCOL_SPC_UNSPECIFIED
_WINDOW = 64  # luma samples a side of the patch that the siting is measured on
_AT = 4  # chroma sample of the patch that is raised, across and down
_INTERPOLATION = 1 << 1 | 1 << 13 | 1 << 14 | 1 << 18  # swscale: bilinear with full chroma, exact


def siting_of(frame: av.VideoFrame) -> Siting:
    """The siting that the decoder gives a frame, centre where it gives none.

    PyAV does not tell it. So it is measured: a patch with the frame's properties gets one raised chroma sample,
    swscale spreads it over the luma grid, and its centre of mass is the place.
    """
    across, down = subsampling(frame)
    if across * down == 1 or min(frame.width, frame.height) < _WINDOW:
        # a tiny frame: the place moves nothing that can be seen, and there is no room for a patch
        return CENTRE if across * down == 1 else _measured(_enlarged(frame), across, down)
    return _measured(frame, across, down)


def subsampling(frame: av.VideoFrame) -> tuple[int, int]:
    """Luma samples across and down for one chroma sample; (1, 1) for formats without chroma planes."""
    components = frame.format.components
    if len(components) < 3 or frame.format.is_rgb or frame.format.has_palette:
        return 1, 1
    chroma = components[1]
    across = -(-frame.width // chroma.width) if chroma.width else 1
    down = -(-frame.height // chroma.height) if chroma.height else 1
    return across, down


def name_of(siting: Siting) -> str:
    """FFmpeg's name of a siting, 'unspecified' where it has none."""
    return _NAMES.get(siting, "unspecified")


def written_siting(siting: Siting, codec: str, container: str) -> Siting:
    """The siting that an output is converted to: the source's, or the nearest that its readers will assume.

    Matroska carries it for every codec, but only at the first or in the middle. Elsewhere H.264 and HEVC carry all
    six, AV1 left and top-left; VP9 and ProRes none, which readers take as the middle.
    """
    if codec in ("h264", "hevc"):
        return siting if siting in _NAMES else LEFT
    if container in ("mkv", "webm"):
        return siting if siting in (LEFT, CENTRE, TOP_LEFT, (0.5, 0)) else CENTRE
    if codec == "av1":
        return siting if siting in (LEFT, TOP_LEFT) else CENTRE
    return CENTRE


def turned(siting: Siting, rotation: int, mirrored: bool) -> Siting:
    """The siting of a frame that is mirrored and then turned clockwise."""
    across, down = siting
    if mirrored:
        across = 1 - across
    for _ in range(rotation // 90 % 4):
        across, down = 1 - down, across
    return Siting(across, down)


def _enlarged(frame: av.VideoFrame) -> av.VideoFrame:
    # The filter rounds down to whole chroma samples, and refuses a frame that is larger than what is left.
    width, height = (-(-max(side, _WINDOW) // 4) * 4 for side in (frame.width, frame.height))
    return Chain(frame, ("pad", f"{width}:{height}"))(frame)


def _measured(frame: av.VideoFrame, across: int, down: int) -> Siting:
    # The place of the samples is asked for, whatever colours they stand for: some matrices swscale does not know.
    patch = Chain(
        frame,
        ("crop", f"{_WINDOW}:{_WINDOW}:0:0"),
        ("format", f"pix_fmts={planar_name(frame.format.name) or 'yuv420p'}"),
        ("lutyuv", "u=128:v=128"),
    )(frame)
    patch.colorspace = _NOT_SAID
    deep = patch.format.components[1].bits > 8
    kind = np.uint16 if deep else np.uint8
    flat = _plane(patch, kind)
    middle = int(flat[0, 0])
    flat[_AT, _AT] = middle + (middle >> 1)
    spread = VideoReformatter().reformat(
        patch, format="yuv444p16le" if deep else "yuv444p", interpolation=_INTERPOLATION, threads=1
    )
    found = _plane(spread, kind)[:_WINDOW, :_WINDOW].astype(np.float64)
    found = np.maximum(found - np.median(found), 0)
    rows, columns = np.mgrid[:_WINDOW, :_WINDOW]
    weight = found.sum() or 1.0

    def place(positions: np.ndarray, factor: int) -> float:
        if factor == 1:
            return 0.5
        offset = float((found * positions).sum() / weight) - _AT * factor
        return round(2 * offset / (factor - 1)) / 2

    return Siting(min(max(place(columns, across), 0.0), 1.0), min(max(place(rows, down), 0.0), 1.0))


def _plane(frame: av.VideoFrame, kind: type) -> np.ndarray:
    plane = frame.planes[1]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size).view(kind)
