"""A clip as a file for an editor that works on files, and the file that comes back as the clip's frames.

What such an editor changes of a clip beside the edit (its rate, size, length) is said here, in words, a line for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.base.text import count as counted
from kiwi_cli.editors.base import Frames
from kiwi_cli.errors import KiwiError, MediaError
from kiwi_cli.video.geometry import Fit, Size
from kiwi_cli.video.plain import write_mp4

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from kiwi_cli.video import Clip

CRF = "10"  # of x264, for clips that are given: nothing to see, and a third of a lossless file
SLOWEST = Fraction(12)  # frames a second that a clip is slowed down to before its last frame is repeated
LEEWAY, SHARE = 4, Fraction(1, 20)  # frames, and part of the length, that a clip may come back longer or shorter
CHUNK = 8  # frames handed on at a time


@dataclass(frozen=True)
class Limits:
    """What a service takes; None where it does not say.

    Attributes:
        seconds: shortest and longest clip. rate: fewest and most frames a second.
        side: shortest and longest side, pixels. bytes: largest file. pictures: whether a single frame is taken.
    """

    seconds: tuple[Fraction, Fraction] | None = None
    rate: tuple[Fraction, Fraction] | None = None
    side: tuple[int, int] | None = None
    bytes: int | None = None
    pictures: bool = True


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Timing:
    """How a clip is given: frames a second, frames in all, and how many of them repeat the last one."""

    rate: Fraction
    count: int
    repeated: int = 0

    @property
    def seconds(self) -> Fraction:
        return self.count / self.rate


@dataclass(frozen=True)
class Given:
    """A clip's frames as a file.

    Attributes:
        path: .mp4, or .png of a single frame. frames: of the clip, without repeats. changes: in words.
    """

    path: Path
    timing: Timing
    size: Size
    frames: int
    changes: tuple[str, ...] = ()


def timing_for(frames: int, rate: Fraction, limits: Limits) -> Timing:
    """The rate and length at which a clip is within limits, as near to its own as they allow.

    Raises:
        KiwiError: it is too long at any rate.
    """
    given = rate
    if limits.rate is not None:
        given = min(max(rate, limits.rate[0]), limits.rate[1])
    if limits.seconds is None:
        return Timing(given, frames)
    shortest, longest = limits.seconds
    if frames / given < shortest:  # slower first: a held last frame is no motion at all
        slowest = limits.rate[0] if limits.rate is not None else min(given, SLOWEST)
        given = max(slowest, frames / shortest)
    elif frames / given > longest and limits.rate is not None:
        given = min(limits.rate[1], frames / longest)
    if frames / given > longest:
        raise KiwiError(
            f"the clip is {float(frames / given):.1f} s long, and at most {float(longest):g} s are taken",
            "edit fewer frames: --frames N",
        )
    repeated = max(0, ceil(shortest * given) - frames)
    return Timing(given, frames + repeated, repeated)


def size_within(size: Size, limits: Limits) -> Size:
    """The nearest size within limits, of the same shape, both sides even.

    Raises:
        KiwiError: no such size has both sides within them.
    """
    if limits.side is None:
        return size
    least, most = limits.side
    factor = max(1.0, least / min(size))
    factor = min(factor, most / max(size))
    fitting = Size(*(2 * round(side * factor / 2) for side in size))
    if min(fitting) < least:
        raise KiwiError(
            f"a picture of {size} has no size with sides from {least} to {most} pixels", "pass another --size"
        )
    return fitting


def give(frames: np.ndarray, path: Path, rate: Fraction, limits: Limits = NO_LIMITS) -> Given:
    """The clip as a file at `path`, whose extension is replaced: .mp4, or .png of a single frame.

    Args:
        frames: (F, H, W, 3) uint8 RGB. rate: frames a second.

    Raises:
        KiwiError: it cannot be brought within the limits.
    """
    from PIL import Image

    from kiwi_cli.video.resize import scale

    own = Size(frames.shape[2], frames.shape[1])
    size = size_within(own, limits)
    changes = [f"given at {size}, not {own}"] if size != own else []
    if len(frames) == 1:
        if not limits.pictures:
            raise KiwiError("this editor takes clips, not pictures", "use another --editor")
        path = path.with_suffix(".png")
        Image.fromarray(scale(frames[0], size)).save(path)
        return Given(path, Timing(rate, 1), size, 1, tuple(changes))
    timing = timing_for(len(frames), rate, limits)
    if timing.rate != rate:
        changes.append(f"given at {_number(timing.rate)} frames a second, not {_number(rate)}")
    if timing.repeated:
        changes.append(f"given with its last frame {timing.repeated} times more, to {float(timing.seconds):.2f} s")
    path = path.with_suffix(".mp4")
    write_mp4(path, _scaled(frames, size, timing.repeated), timing.rate, size, CRF)
    if limits.bytes is not None and path.stat().st_size > limits.bytes:
        raise KiwiError(
            f"the clip is a file of {path.stat().st_size} bytes, and at most {limits.bytes} are taken",
            "edit fewer frames (--frames N), or at a smaller --size",
        )
    return Given(path, timing, size, len(frames), tuple(changes))


def _scaled(frames: np.ndarray, size: Size, repeated: int) -> Iterator[np.ndarray]:
    from kiwi_cli.video.resize import scale

    for frame in frames:
        yield scale(frame, size)[None]
    for _ in range(repeated):
        yield scale(frames[-1], size)[None]


def save_references(references: Sequence[Image.Image], folder: Path) -> list[Path]:
    """The paths of reference pictures that were written as PNG."""
    paths = [folder / f"reference-{number}.png" for number in range(1, len(references) + 1)]
    for picture, path in zip(references, paths, strict=True):
        picture.save(path)
    return paths


@dataclass(frozen=True)
class Taken:
    """What came back, as the clip's frames: (F, H, W, 3) uint8, and what was done to it, in words."""

    frames: np.ndarray
    changes: tuple[str, ...]

    def stream(self) -> Frames:
        """The frames in chunks."""
        for start in range(0, len(self.frames), CHUNK):
            yield self.frames[start : start + CHUNK]


def take(path: Path, timing: Timing, shape: tuple[int, ...], who: str, fit: Fit = "stretch") -> Taken:
    """The frames of an edited clip, brought to those of the clip that was given.

    As many frames as were given are taken one by one. Any other number must last as long, but for a few frames; then
    those are taken that are on screen when the clip's own are, and the last one stands for any that are missing.

    Args:
        timing: of the clip as it was given. shape: (F, H, W, 3) of the clip's own frames.
        who: the editor, for the person. fit: how a clip of another shape is placed in the frames.

    Raises:
        KiwiError: it is no clip, or its length is another one.
    """
    from kiwi_cli.video import probe

    size = Size(shape[2], shape[1])
    try:
        clip = probe(path)
        _check_length(clip, timing, shape[0], who)
        frames, came = _read(clip, timing, shape, size, fit)
    except MediaError as error:
        raise KiwiError(f"{who} gave no clip that can be read: {error.message}", "see what it wrote") from None
    changes = []
    if shape[0] > 1 and clip.frame_count != timing.count:
        changes.append(f"came back as {counted(clip.frame_count, 'frame')}, not {timing.count}: taken by their times")
    if came < shape[0]:
        changes.append(f"came back short: its last frame stands for {shape[0] - came} more")
    if clip.display_size != size:
        how = {"stretch": "scaled", "crop": "its middle scaled", "pad": "scaled between bars"}[fit]
        changes.append(f"came back at {clip.display_size}, {how} to {size}")
    return Taken(frames, tuple(changes))


def _check_length(clip: Clip, timing: Timing, frames: int, who: str) -> None:
    if frames == 1 or clip.frame_count == timing.count:
        return
    seconds = Fraction(clip.duration)
    leeway = max(LEEWAY / timing.rate, SHARE * timing.seconds)
    if clip.kind == "image" or abs(seconds - timing.seconds) > leeway:
        raise KiwiError(
            f"{who} gave {counted(clip.frame_count, 'frame')} ({float(seconds):.2f} s) for a clip of "
            f"{timing.count} ({float(timing.seconds):.2f} s)",
            "the result has to last as long as the clip; --frames N gives it a length that it can keep",
        )


def _read(clip: Clip, timing: Timing, shape: tuple[int, ...], size: Size, fit: Fit) -> tuple[np.ndarray, int]:
    """The frames, and how many of them came back; the rest repeat the last."""
    import numpy as np

    from kiwi_cli.video import read_frames

    frames, done, one_by_one = np.empty(shape, np.uint8), 0, clip.frame_count == timing.count
    middles = [Fraction(2 * k + 1, 2) / timing.rate for k in range(shape[0])]
    for frame in read_frames(clip, size=size, fit=fit):
        end = frame.time + frame.duration
        while done < shape[0] and (one_by_one or shape[0] == 1 or middles[done] < end):
            frames[done] = last = frame.rgb
            done += 1
            if one_by_one:
                break
        if done == shape[0]:
            break
        last = frame.rgb
    frames[done:] = last
    return frames, done


def _number(rate: Fraction) -> str:
    return f"{float(rate):.6g}"
