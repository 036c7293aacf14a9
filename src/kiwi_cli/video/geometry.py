"""Every rounding of sizes and frame counts, and how a clip's rectangle maps on to the model's.

The model works on multiples of 32 pixels (VAE 16x, patch 2x) and on 4k+1 frames (the causal VAE turns the
first frame into one latent frame and every four more into another). Nothing else in kiwi rounds either.
No media library is imported here.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

from kiwi_cli.errors import UsageError

LATENT_GRID = 32  # pixels: 16 (VAE) x 2 (patch)
LATENT_STRIDE = 4  # frames per latent frame after the first
MIN_SIDE = 32  # pixels
MAX_SIDE = 4096  # pixels
MAX_PIXELS = 1280 * 720  # default budget
BUDGETS = {"720p": 1280 * 720, "480p": 832 * 480}  # pixels

Fit = Literal["stretch", "crop", "pad"]
FITS: tuple[Fit, ...] = ("stretch", "crop", "pad")


class Size(NamedTuple):
    """A width and a height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Box(NamedTuple):
    """A rectangle in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> Size:
        return Size(self.right - self.left, self.bottom - self.top)


def padded_frame_count(frames: int) -> int:
    """The smallest 4k+1 that is at least `frames` (80 -> 81, 81 -> 81, 1 -> 1)."""
    if frames < 1:
        raise UsageError(f"a clip has at least one frame, not {frames}", "pass --frames 1 or more")
    return -(-(frames - 1) // LATENT_STRIDE) * LATENT_STRIDE + 1


def latent_frame_count(frames: int) -> int:
    """Latent frames of a clip of `frames` frames, padded first (81 -> 21)."""
    return (padded_frame_count(frames) - 1) // LATENT_STRIDE + 1


def requested_size(size: str | None) -> Size | None:
    """The width and height that `size` spells out as 'WxH'; None for a name or None.

    Compare it with `working_size` to see whether the request was rounded.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*", size or "", re.IGNORECASE)
    return Size(int(match[1]), int(match[2])) if match else None


def working_size(
    width: int,
    height: int,
    size: str | None = None,
    multiple: int = LATENT_GRID,
    max_pixels: int = MAX_PIXELS,
) -> Size:
    """The size the model works at.

    Args:
        width, height: the clip as it is displayed (`Clip.display_size`), pixels.
        size: '720p' or '480p' (that many pixels in the clip's own shape, enlarging too), 'WxH' (rounded to
            the nearest multiple; `requested_size` tells what was asked for), 'source' (the clip's own size,
            rounded) or None (the clip's own shape, at most `max_pixels`).
        multiple: both sides are multiples of it.
        max_pixels: the budget behind None.

    Raises:
        UsageError: the words are not understood, or a side is under 32 or over 4096 pixels.
    """
    wanted = requested_size(size)
    if wanted is not None:
        check_sides(wanted, f"--size {size}")
        return Size(*(min(max(_nearest(side, multiple), multiple), MAX_SIDE) for side in wanted))
    if size == "source":
        check_sides(Size(max(width, MIN_SIDE), max(height, MIN_SIDE)), f"the clip's own size, {width}x{height},")
        return Size(max(_nearest(width, multiple), multiple), max(_nearest(height, multiple), multiple))
    if size is not None and size not in BUDGETS:
        raise UsageError(f"size not understood: {size!r}", "pass --size 720p, 480p, source or WIDTHxHEIGHT")
    budget = BUDGETS[size] if size else max_pixels
    scale = math.sqrt(budget / (width * height))
    if size is None:
        scale = min(scale, 1.0)
    scale = min(scale, MAX_SIDE / max(width, height))
    return _nearest_within(width * scale, height * scale, multiple, budget)


def size_of_area(width: int, height: int, pixels: int, multiple: int = LATENT_GRID) -> Size:
    """The size for a model that works at an area of its own, whatever the clip's: at most `pixels`, smaller clips are
    enlarged. Both a shape that is not the clip's and area that is not used count, the latter at three quarters.

    Args:
        width, height: the clip as it is displayed, pixels. multiple: both sides are multiples of it.
    """

    def cost(size: Size) -> float:
        stretched = abs(math.log(size.width / size.height * height / width))
        return stretched + 0.75 * math.log(pixels / (size.width * size.height))

    sides = range(multiple, MAX_SIDE + 1, multiple)
    sizes = [
        Size(w, h)
        for w in itertools.takewhile(lambda w: w * multiple <= pixels, sides)
        for h in sides
        if w * h <= pixels
    ]
    return min(sizes, key=cost, default=Size(multiple, multiple))


def check_sides(size: Size, what: str) -> None:
    """Raises UsageError when a side of `size` is under 32 or over 4096 pixels."""
    if min(size) < MIN_SIDE:
        raise UsageError(f"{what} is too small", f"both sides are at least {MIN_SIDE} pixels")
    if max(size) > MAX_SIDE:
        raise UsageError(f"{what} is too large", f"both sides are at most {MAX_SIDE} pixels; try --size 720p")


def _nearest(value: float, multiple: int) -> int:
    """The nearest multiple; halves go down, so that 720 lines become 704 as in the released scripts."""
    return math.ceil(value / multiple - 0.5) * multiple


def _nearest_within(width: float, height: float, multiple: int, budget: int) -> Size:
    """The pair of multiples nearest to width x height (in ratio) with at most `budget` pixels."""

    def around(value: float) -> list[int]:
        low = max(math.floor(value / multiple), 1) * multiple
        return [low - multiple, low, low + multiple] if low > multiple else [low, low + multiple]

    sizes = [Size(w, h) for w, h in itertools.product(around(width), around(height)) if w * h <= budget]
    if not sizes:  # a strip thinner than the grid: the short side cannot go below one multiple
        return Size(max(_nearest(width, multiple), multiple), max(_nearest(height, multiple), multiple))
    return min(sizes, key=lambda s: abs(math.log(s.width / width)) + abs(math.log(s.height / height)))


@dataclass(frozen=True)
class Framing:
    """Where the clip's pixels lie in the working frame, and back.

    `source` (clip pixels) is scaled on to `target` (working pixels). The way back scales `target` on to
    `source`; clip pixels outside `source` keep what the source has there, working pixels outside `target`
    are bars that are cut off again. The result always has the clip's own size.
    """

    clip: Size
    working: Size
    source: Box
    target: Box
    pixel_aspect: Fraction = Fraction(1)

    @property
    def is_identity(self) -> bool:
        """True when no pixel is moved or resampled."""
        return self.clip == self.working and self.source == self.target

    @property
    def unscaled(self) -> Framing:
        """For frames that cover the same part of the clip at the clip's own scale."""
        size = self.source.size
        return Framing(self.clip, size, self.source, Box(0, 0, *size), self.pixel_aspect)

    @property
    def distortion(self) -> float:
        """How much the model sees the picture stretched: 0.02 is 2 % wider or higher than it is."""
        source = self.source.size.width / self.source.size.height * float(self.pixel_aspect)
        target = self.target.size.width / self.target.size.height
        return max(source, target) / min(source, target) - 1

    @property
    def covers_clip(self) -> bool:
        """True when every pixel of the clip lies in `source`."""
        return self.source.size == self.clip


def framing(clip: Size, working: Size, fit: Fit = "stretch", pixel_aspect: Fraction = Fraction(1)) -> Framing:
    """Place a clip in the working frame.

    Args:
        clip: the clip's pixel grid (`Clip.size`).
        working: the size the model works at.
        fit: 'stretch' uses every pixel of both; 'crop' fills the working frame with the middle of the clip;
            'pad' shows the whole clip between bars.
        pixel_aspect: width over height of one pixel of the clip.
    """
    if fit not in FITS:
        raise UsageError(f"fit not understood: {fit!r}", f"pass --fit {', '.join(FITS)}")
    source, target = Box(0, 0, *clip), Box(0, 0, *working)
    shape = Fraction(clip.width, clip.height) * pixel_aspect
    wanted = Fraction(working.width, working.height)
    if fit == "crop" and shape > wanted:
        source = _middle(clip, width=round(clip.height * wanted / pixel_aspect))
    elif fit == "crop":
        source = _middle(clip, height=round(clip.width * pixel_aspect / wanted))
    elif fit == "pad" and shape > wanted:
        target = _middle(working, height=round(working.width / shape))
    elif fit == "pad":
        target = _middle(working, width=round(working.height * shape))
    return Framing(clip, working, source, target, pixel_aspect)


def _middle(whole: Size, width: int | None = None, height: int | None = None) -> Box:
    """The centred box of the given width or height; the other side is the whole's."""
    w = min(max(width or whole.width, 1), whole.width)
    h = min(max(height or whole.height, 1), whole.height)
    left, top = (whole.width - w) // 2, (whole.height - h) // 2
    return Box(left, top, left + w, top + h)
