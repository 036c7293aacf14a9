"""Frames as a file and nothing more: no sound, no timing of a source, no metadata but a note."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.video.clip import LEFT, Colour
from kiwi_cli.video.geometry import Size

if TYPE_CHECKING:
    import numpy as np

# Said, for readers guess what is not said by the size of the picture. This matrix, which most programs take for all
# clips that do not say one, and many for all others too.
COLOUR = Colour(matrix_tag=6, primaries_tag=1, transfer_tag=1, range_tag=1, matrix="bt601", siting=LEFT)


def write_mp4(path: Path, chunks: Iterable[np.ndarray], rate: Fraction, size: Size, crf: str, note: str = "") -> int:
    """The number of frames written to `path` as H.264 in 4:2:0.

    Args:
        chunks: (f, H, W, 3) uint8 RGB; both sides even.
        rate: frames a second. crf: constant rate factor of x264. note: kept as the file's comment.
    """
    import av

    from kiwi_cli.video.codecs import steady_x264
    from kiwi_cli.video.colour import FromRgb

    convert, count = FromRgb(COLOUR, "yuv420p"), 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = note
        stream = container.add_stream(
            "libx264", rate=rate.limit_denominator(100_000), options={"crf": crf, **steady_x264()}
        )
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, "yuv420p"
        for chunk in chunks:
            for frame in chunk:
                container.mux(stream.encode(convert(frame)))
                count += 1
        container.mux(stream.encode())
    return count
