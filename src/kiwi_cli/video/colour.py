"""Between stored pixels (YUV of any matrix, range and depth) and RGB, with no tint either way."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from kiwi_cli.video.clip import LEFT, Colour
from kiwi_cli.video.formats import grid_of
from kiwi_cli.video.geometry import Size
from kiwi_cli.video.hdr import light_level, mastering_display
from kiwi_cli.video.resize import scale
from kiwi_cli.video.samples import Samples, empty, from_rgb, keep, to_frame, to_rgb
from kiwi_cli.video.scaling import RgbToSamples
from kiwi_cli.video.siting import siting_of, written_siting

if TYPE_CHECKING:
    from kiwi_cli.video.codecs import Encoding

Matrix = Literal["bt601", "bt709", "bt2020", "fcc", "smpte240m", "rgb"]

# AVCOL_SPC_* -> matrix. 10 is the constant-luminance BT.2020, for which swscale has no exact conversion.
_MATRICES: dict[int, Matrix] = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
    10: "bt2020",
}
# matrix -> SWS_CS_*, the numbers that PyAV's reformatter takes
_SWS = {"bt709": 1, "fcc": 4, "bt601": 5, "smpte240m": 7, "bt2020": 9, "rgb": 1}
_LIMITED, _FULL = 1, 2
_BT2020 = 9  # AVCOL_SPC_BT2020_NCL
_NOT_SAID = 2  # AVCOL_*_UNSPECIFIED
_RESERVED = 3  # AVCOL_SPC_RESERVED: some writers mean nothing by it
_UNREAD = {8: "YCgCo", 11: "Y'D'zD'x", 12: "a constant-luminance form of its primaries", 14: "ICtCp"}
_DEEP = {"rgb48le": "yuv444p16le", "rgba64le": "yuva444p16le"}  # RGB -> the YUV it is computed from
_HD_LINES = 720  # untagged clips from here on are taken to be BT.709, smaller ones BT.601

# Without these flags swscale takes shortcuts: 0.4 ms instead of 7 for a 720p frame, and a picture darker by one
# level of 255 with 3 dB less PSNR (45.5 against 48.5 on a smooth picture).
# The numbers are swscale.h's, because PyAV 17 does not name them: BICUBIC, FULL_CHR_H_INT, ACCURATE_RND.
_TO_RGB = 1 << 2 | 1 << 13 | 1 << 18
_FROM_RGB = _TO_RGB | 1 << 14  # FULL_CHR_H_INP


def colour_of(frame: av.VideoFrame, stream: Any, lines: int) -> Colour:
    """Colour tags of a decoded frame, with the stream's where the frame is silent, and what to make of them.

    Args:
        frame: the first decoded frame.
        stream: its PyAV stream.
        lines: the stored height; decides the guess for untagged clips.
    """
    context = stream.codec_context

    def tag(of_frame: int, of_stream: int) -> int:
        return int(of_stream) if int(of_frame) == _NOT_SAID else int(of_frame)

    matrix_tag = tag(frame.colorspace, context.colorspace)
    range_tag = int(frame.color_range) or int(context.color_range)
    name = frame.format.name
    if is_rgb(frame.format):
        matrix: Matrix = "rgb"
    else:
        matrix = _MATRICES.get(matrix_tag, "bt709" if lines >= _HD_LINES else "bt601")
        if matrix == "rgb":  # a lie in the header: the pixels are YUV
            matrix = "bt709" if lines >= _HD_LINES else "bt601"
    return Colour(
        matrix_tag=matrix_tag,
        primaries_tag=tag(frame.color_primaries, context.color_primaries),
        transfer_tag=tag(frame.color_trc, context.color_trc),
        range_tag=_FULL if name.startswith("yuvj") else range_tag,
        siting=siting_of(frame),
        mastering=mastering_display(frame),
        light=light_level(frame),
        matrix=matrix,
        full_range=range_tag == _FULL or name.startswith("yuvj") or matrix == "rgb",
    )


def unread_matrix(frame: av.VideoFrame) -> str | None:
    """The name of a frame's colour matrix where nothing here can convert it, such as 'YCgCo'; else None."""
    tag = int(frame.colorspace)
    if is_rgb(frame.format) or tag in _MATRICES or tag in (_NOT_SAID, _RESERVED):
        return None
    return _UNREAD.get(tag, f"matrix {tag}")


def is_rgb(pixel_format: Any) -> bool:
    """True for RGB, palette and grey formats, which have no matrix."""
    return bool(pixel_format.is_rgb or pixel_format.has_palette) or pixel_format.name.startswith(
        ("gbr", "rgb", "bgr", "pal8")
    )


def has_alpha(pixel_format: Any) -> bool:
    """True when the format carries transparency."""
    name = pixel_format.name
    return name.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya", "pal8"))


class ToRgb:
    """Decoded frames to packed RGB at their stored size. One per reader: it keeps swscale's tables."""

    def __init__(self, colour: Colour) -> None:
        self._colour = colour
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, layout: str = "rgb24") -> np.ndarray:
        """(H, W, 3) for 'rgb24' and 'rgb48le', (H, W, 4) for 'rgba' and 'rgba64le'; uint8 or uint16."""
        if self._colour.matrix_tag not in (_NOT_SAID, *_SWS.values()) and self._colour.matrix != "rgb":
            frame.colorspace = _SWS[self._colour.matrix]  # swscale refuses frames with a tag that it does not know
        if layout in _DEEP and self._colour.matrix != "rgb":
            return self._deep(frame, layout)
        if self._colour.matrix == "bt2020":
            frame.colorspace = _BT2020  # PyAV 17 goes by the frame's own tag here, PyAV 18 by the argument
        converted = self._reformatter.reformat(
            frame,
            format=layout,
            src_colorspace=_SWS[self._colour.matrix],
            dst_colorspace=_SWS["bt709"],  # has no meaning for RGB, but must be given
            src_color_range=_FULL if self._colour.full_range else _LIMITED,
            dst_color_range=_FULL,
            interpolation=_TO_RGB,
            threads=1,
        )
        return np.ascontiguousarray(converted.to_ndarray())

    def _deep(self, frame: av.VideoFrame, layout: str) -> np.ndarray:
        """16-bit RGB by the matrix itself: swscale's is half a level of 255 too dark."""
        level = _FULL if self._colour.full_range else _LIMITED
        planar = self._reformatter.reformat(
            frame,
            format=_DEEP[layout],
            src_color_range=level,
            dst_color_range=level,
            interpolation=_FROM_RGB,
            threads=1,
        )
        shape = (frame.height, frame.width, 3 if layout == "rgb48le" else 4)
        out = np.empty(shape, np.uint16)
        planes = [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size).view("<u2")[:, : frame.width]
            for plane in planar.planes
        ]
        to_rgb(planes[:3], frame.format.components[0].bits, self._colour, out[..., :3])
        if layout == "rgba64le":
            out[..., 3] = planes[3]
        return out


class FromRgb:
    """RGB pictures to the encoder's frames, in the output's matrix, range and siting, tagged as the clip was.

    Where the picture is the clip's own, its stored samples are taken, with all the levels that RGB has no room for.
    """

    def __init__(self, colour: Colour, pixel_format: str) -> None:
        self._colour = colour
        self._format = pixel_format
        self._grid = None if colour.matrix == "rgb" else grid_of(pixel_format)
        self._reformatter = VideoReformatter()
        self._scaled = RgbToSamples(colour, pixel_format)

    def scaled(self, rgb: np.ndarray, size: Size) -> av.VideoFrame:
        """Convert (h, w, 3) uint8 or uint16 of another size."""
        frame = self._scaled(rgb, size)
        if frame is None:
            return self(scale(rgb, size))
        tag_frame(frame, self._colour)
        return frame

    def __call__(
        self, rgb: np.ndarray, source: Samples | None = None, unchanged: np.ndarray | None = None
    ) -> av.VideoFrame:
        """Convert (H, W, 3) uint8 or uint16.

        Args:
            source: the clip's own samples of this frame, upright.
            unchanged: (H, W) bool, the pixels that are the clip's own; needed with `source`.
        """
        if self._grid is None:
            return self._as_rgb(rgb)
        planes = None
        if source is not None and unchanged is not None and source.planes[0].shape == rgb.shape[:2]:
            if unchanged.all():
                planes = empty(rgb.shape[:2], self._grid)
                if not keep(planes, source, None, self._grid, self._colour):
                    planes = from_rgb(rgb, self._colour, self._grid)
                    keep(planes, source, None, self._grid, self._colour)
            else:
                planes = from_rgb(rgb, self._colour, self._grid)
                keep(planes, source, ~unchanged, self._grid, self._colour)
        frame = to_frame(planes or from_rgb(rgb, self._colour, self._grid), self._format)
        tag_frame(frame, self._colour)
        return frame

    def _as_rgb(self, rgb: np.ndarray) -> av.VideoFrame:
        layout = "rgb24" if rgb.dtype == np.uint8 else "rgb48le"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=layout)
        if self._format == layout:
            return frame
        match = re.fullmatch(r"gbrp(\d+)le", self._format)
        if match and rgb.dtype == np.uint16:  # shifted, so that bits repeated in reading fall off again
            return to_frame([rgb[..., index] >> (16 - int(match[1])) for index in (1, 2, 0)], self._format)
        converted = self._reformatter.reformat(
            frame,
            format=self._format,
            src_color_range=_FULL,
            dst_color_range=_FULL,
            interpolation=_FROM_RGB,
            threads=1,
        )
        tag_frame(converted, self._colour)
        return converted


def tag_frame(frame: av.VideoFrame, colour: Colour) -> None:
    """Put the clip's colour tags on a frame: encoders copy them into the stream."""
    frame.colorspace = colour.matrix_tag
    frame.color_primaries = colour.primaries_tag
    frame.color_trc = colour.transfer_tag
    frame.color_range = colour.range_tag


def output_colour(source: Colour, encoding: Encoding, container: str) -> Colour:
    """The colour of what is written: the source's own, BT.709 limited for RGB sources, RGB for RGB codecs."""
    if encoding.rgb:
        return Colour(
            0,
            source.primaries_tag,
            source.transfer_tag,
            _FULL,
            "rgb",
            True,
            mastering=source.mastering,
            light=source.light,
        )
    if source.matrix == "rgb":
        siting = written_siting(LEFT, encoding.codec, container)
        hdr = source.is_hdr
        tags = (1, 1, 1) if not hdr else (9, source.primaries_tag, source.transfer_tag)
        return Colour(*tags, _LIMITED, "bt2020" if hdr else "bt709", False, siting, source.mastering, source.light)
    siting = written_siting(source.siting, encoding.codec, container)
    if source.full_range and encoding.codec == "prores":
        return replace(source, range_tag=_LIMITED, full_range=False, siting=siting)
    return replace(source, siting=siting)
