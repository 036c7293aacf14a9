"""What is known about an input before its frames are read: `Clip` and its parts. Plain data, no media library."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kiwi_cli.video.geometry import Size

Kind = Literal["video", "image", "sequence"]

MAX_DIMENSION = 16_384  # pixels a side: beyond any camera, and what a decoder's buffers are bounded by
MAX_TOTAL_PIXELS = 1 << 27  # 134 megapixels a frame


class Siting(NamedTuple):
    """The place of chroma samples among luma's: 0 first luma sample, 0.5 the middle, 1 the last; across and down."""

    across: float = 0.5
    down: float = 0.5


CENTRE = Siting(0.5, 0.5)
LEFT = Siting(0, 0.5)
TOP_LEFT = Siting(0, 0)


@dataclass(frozen=True)
class Colour:
    """Colour tags as FFmpeg numbers them (ISO/IEC 23091-2; 2 is 'not said').

    `matrix` and `full_range` are what is used to convert: the tags, or the usual guess where they are silent.
    `siting` is the place of the chroma samples. HDR clips may name their `mastering` display (SMPTE ST 2086: red x, y,
    green x, y, blue x, y, white x, y, darkest, brightest) and `light` (MaxCLL, MaxFALL), cd/m2.
    """

    matrix_tag: int = 2
    primaries_tag: int = 2
    transfer_tag: int = 2
    range_tag: int = 0  # 0 not said, 1 limited, 2 full
    matrix: Literal["bt601", "bt709", "bt2020", "fcc", "smpte240m", "rgb"] = "bt709"
    full_range: bool = False
    siting: Siting = CENTRE
    mastering: tuple[Fraction, ...] | None = None
    light: tuple[int, int] | None = None

    @property
    def is_hdr(self) -> bool:
        """PQ (16) or HLG (18) transfer."""
        return self.transfer_tag in (16, 18)

    @property
    def peak(self) -> float:
        """The brightest light, cd/m2: MaxCLL, else the mastering display's, else 1000."""
        if self.light and self.light[0]:
            return float(self.light[0])
        return float(self.mastering[-1]) if self.mastering and self.mastering[-1] else 1000.0


@dataclass(frozen=True)
class AudioTrack:
    """One sound stream. `start` and `duration` are seconds; `start` counts from the first picture."""

    index: int
    codec: str
    channels: int
    layout: str
    rate: int  # Hz
    start: Fraction
    duration: Fraction | None
    language: str | None = None
    disposition: int = 0  # AV_DISPOSITION_*: default, commentary, for the hearing impaired, ...


@dataclass(frozen=True)
class OtherStream:
    """A stream that is neither the picture nor sound that can be decoded.

    Attributes:
        kind: 'subtitle', 'attachment', 'cover' (a still picture), 'video' (a second one), 'audio' (of an unknown
            codec), 'data' (timecodes, cameras' telemetry).
        codec: FFmpeg's name, '' where it has none.
    """

    index: int
    kind: str
    codec: str = ""
    language: str | None = None
    disposition: int = 0


@dataclass(frozen=True)
class Clip:
    """An input: a video, a picture or a folder of numbered pictures.

    `width` and `height` count the pixels of an upright frame (rotation applied, pixel aspect not):
    the size of the frames that come back. `display_size` has square pixels. `timestamps` are the frames' times
    in `time_base` units, the first being 0; None when finding them would mean reading a very large file.
    """

    path: Path
    kind: Kind
    width: int
    height: int
    storage_size: Size
    frame_count: int
    fps: Fraction  # average frames a second
    duration: Fraction  # seconds, first picture to the end of the last
    container: str  # demuxer or picture format, e.g. 'mov,mp4,m4a,3gp,3g2,mj2', 'PNG'
    codec: str
    pixel_format: str
    bit_depth: int = 8
    pixel_aspect: Fraction = Fraction(1)
    rotation: int = 0  # degrees clockwise that the stored frame is turned to stand upright
    mirrored: bool = False  # flipped left to right before it is turned
    frame_count_exact: bool = True
    variable_rate: bool = False
    has_alpha: bool = False
    keeps_alpha: bool = False  # what is written has it too: frames are straight colours, not composited on white
    interlaced: bool = False
    colour: Colour = field(default_factory=Colour)
    audio: tuple[AudioTrack, ...] = ()
    other_streams: tuple[OtherStream, ...] = ()
    side_data: tuple[str, ...] = ()  # kinds of `keeping.TABLE` that the first frame carries
    metadata: dict[str, str] = field(default_factory=dict)
    chapters: tuple[Any, ...] = field(default=(), repr=False)  # as PyAV gives and takes them
    time_base: Fraction = Fraction(1, 90_000)
    start: Fraction = Fraction(0)  # seconds: the first picture's own timestamp
    files: tuple[Path, ...] = ()  # the pictures of a sequence, in order
    timestamps: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    restarts: tuple[
        Fraction, ...
    ] = ()  # seconds that the parts of a joined recording are moved by to follow each other
    allow_truncated: bool = False  # use what can be read of a damaged file
    damage: tuple[str, ...] = ()  # what the file lacks, in words; part of `notices`
    notices: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """The clip's upright pixel grid."""
        return Size(self.width, self.height)

    @property
    def display_size(self) -> Size:
        """The size with square pixels: what `working_size` takes."""
        return Size(max(round(self.width * self.pixel_aspect), 1), self.height)

    @property
    def is_deep(self) -> bool:
        """True when the stored values are more than the 8 bits that the model sees."""
        return self.kind == "video" and (self.bit_depth > 8 or self.colour.is_hdr)

    @property
    def has_coarse_clock(self) -> bool:
        """True when an even frame rate is stored in ticks too long for it (Matroska's milliseconds), so that
        the frames' true times are the multiples of 1 / fps nearby."""
        return not self.variable_rate and self.time_base >= Fraction(1, 1000)

    def true_time(self, time: Fraction) -> Fraction:
        """A stored time, seconds from the first picture, freed of the clock's rounding."""
        if not self.has_coarse_clock:
            return time
        even = round(time * self.fps) / self.fps
        return even if abs(even - time) <= 2 * self.time_base else time

    @property
    def has_timing(self) -> bool:
        """False for pictures and sequences, whose frame rate is only assumed."""
        return self.kind == "video"
