"""Masks: which part of the picture is edited. White is edited; where it is black the source's own pixels stay."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from kiwi_cli.base.text import count
from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.video.clip import Clip
from kiwi_cli.video.decode import Frame, frames_of
from kiwi_cli.video.geometry import Box, Size
from kiwi_cli.video.probing import probe
from kiwi_cli.video.resize import scale

_RECTANGLE = re.compile(r"\s*(-?\d+)\s*,\s*(-?\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*")
_NUMBERS = re.compile(r"\s*[-+]?\d[\d.+-]*[\s,;][\d\s,;.+-]*")  # meant as a rectangle, and not as a file's name
# Video and JPEG masks are never quite black or white: levels this near to the ends count as the ends.
_BLACK, _WHITE = 16, 239
_HOW = "write x,y,width,height in whole pixels, the last two from 1: --mask 120,40,180,160"
_STRIP = 1 << 22  # pixels blended at a time
_MAX_FEATHER = 512  # pixels


@dataclass(frozen=True)
class Mask:
    """Where a clip is edited. Made by `load_mask`.

    Exactly one of `box` (clip pixels) and `media` is set. `feather`: pixels over which the edit fades in,
    inwards from the mask's edge, so that nothing outside the mask is touched.
    """

    size: Size
    box: Box | None = None
    media: Clip | None = None
    feather: int = 0
    notices: tuple[str, ...] = ()

    @property
    def moves(self) -> bool:
        """True for a video or a sequence."""
        return self.media is not None and self.media.kind != "image"


def load_mask(spec: str | os.PathLike[str], clip: Clip, *, feather: int = 0) -> Mask:
    """A mask for `clip`.

    Args:
        spec: 'x,y,w,h' in pixels of the upright clip, or the path of a picture, a video (matched to the
            clip by time) or a folder of numbered pictures (matched frame by frame).
        feather: pixels.

    Raises:
        UsageError: the rectangle lies outside the clip, or the path does not exist.
        MediaError: the file cannot be read, or is black all over.
    """
    if not 0 <= feather <= _MAX_FEATHER:
        raise UsageError(f"feather is not a width in pixels: {feather}", f"pass --feather 0 to {_MAX_FEATHER}")
    if not os.fspath(spec).strip():  # an empty path is the current folder
        raise UsageError(f"the mask is empty: '{os.fspath(spec)}'", _HOW)
    match = _RECTANGLE.fullmatch(os.fspath(spec))
    if match and not Path(spec).exists():
        x, y, width, height = (int(part) for part in match.groups())
        if not width or not height:
            raise UsageError(f"the mask '{spec}' has no area", _HOW)
        box = Box(max(x, 0), max(y, 0), min(x + width, clip.width), min(y + height, clip.height))
        if box.left >= box.right or box.top >= box.bottom:
            raise UsageError(f"the mask '{spec}' lies outside the clip, which is {clip.size}", _HOW)
        cut = f"{box.left},{box.top},{box.right - box.left},{box.bottom - box.top}"
        beyond = (box.left, box.top, box.right, box.bottom) != (x, y, x + width, y + height)
        notices = [f"the mask reaches beyond the clip's {clip.size}: it is cut to {cut}"] if beyond else []
        return Mask(clip.size, box=box, feather=feather, notices=tuple(notices))
    try:
        media = probe(spec)
    except UsageError:
        if _NUMBERS.fullmatch(os.fspath(spec)):
            numbers = len(re.findall(r"\d[\d.]*", os.fspath(spec)))
            wrong = "is no rectangle" if numbers == 4 else f"has {count(numbers, 'number')}, and a rectangle has four"
            raise UsageError(f"the mask '{spec}' {wrong}", _HOW) from None
        raise UsageError(
            f"mask not found: '{spec}'", "pass a picture, a video, a folder or x,y,width,height with --mask"
        ) from None
    notices = []
    ours, theirs = clip.display_size, media.display_size
    if abs(theirs.width / theirs.height - ours.width / ours.height) > 0.02 * ours.width / ours.height:
        notices.append(f"the mask has another shape ({media.size}) and is stretched to the clip's {clip.size}")
    if media.kind == "video" and media.duration < clip.duration * 95 / 100:
        notices.append(f"the mask ends after {float(media.duration):.3g} s: its last frame is held")
    if media.kind == "sequence" and media.frame_count < clip.frame_count:
        notices.append(f"the mask has {count(media.frame_count, 'frame')} for {clip.frame_count}: its last one is held")
    mask = Mask(clip.size, media=media, feather=feather, notices=tuple(notices))
    if not mask.moves and not next(MaskReader(mask).shapes())[1].any():
        raise MediaError(f"the mask is black all over: '{spec}'", "white is what gets edited")
    return mask


class MaskReader:
    """The mask of each frame of the clip, asked for in order."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._shapes = self.shapes()
        self._current: np.ndarray | None = None
        self._next: tuple[Frame | None, np.ndarray] | None = None

    def at(self, frame: Frame) -> np.ndarray:
        """(H, W) uint8 for a frame of the clip: 0 keeps the source, 255 takes the edit."""
        if self._current is None:
            self._current = next(self._shapes)[1]
            self._next = next(self._shapes, None)
        while self._next is not None and self._is_due(self._next[0], frame):
            self._current = self._next[1]
            self._next = next(self._shapes, None)
        return self._current

    def shapes(self) -> Iterator[tuple[Frame | None, np.ndarray]]:
        """The masks in order, at the clip's size."""
        mask = self._mask
        if mask.box is not None:
            level = np.zeros((mask.size.height, mask.size.width), np.uint8)
            level[mask.box.top : mask.box.bottom, mask.box.left : mask.box.right] = 255
            yield None, feathered(level, mask.feather)
            return
        assert mask.media is not None
        for frame in frames_of(mask.media):
            yield frame, feathered(_level(frame, mask.size), mask.feather)

    def _is_due(self, candidate: Frame | None, frame: Frame) -> bool:
        assert candidate is not None
        assert self._mask.media is not None
        if self._mask.media.kind == "sequence":
            return candidate.number <= frame.number
        return candidate.time <= frame.time + frame.duration / 4  # half-way between two rates goes to the earlier


def composite(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Edited pixels where the mask is 255, the source's own (bit for bit) where it is 0, a blend between.

    Args:
        edited, source: (H, W, 3) uint8 or uint16, of one kind.
        mask: (H, W) uint8.
    """
    wide = np.uint16 if edited.dtype == np.uint8 else np.uint32
    out = np.empty_like(edited)
    lines = max(_STRIP // max(mask.shape[1], 1), 1)  # a picture of 128 megapixels must not be held five times
    for top in range(0, len(mask), lines):
        part = slice(top, top + lines)
        weight = mask[part, :, None].astype(wide)
        out[part] = (edited[part] * weight + source[part] * (255 - weight) + 127) // 255
    return out


def feathered(mask: np.ndarray, feather: int) -> np.ndarray:
    """Fade a (H, W) uint8 mask in from its edge. What was 0 stays 0."""
    if not feather:
        return mask
    image = Image.fromarray(mask)
    # A blurred step is one half at the edge; twice that minus one begins at 0 there.
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(feather / 3))).astype(np.int16)
    return np.minimum(mask, np.clip(2 * blurred - 255, 0, 255)).astype(np.uint8)


def _level(frame: Frame, size: Size) -> np.ndarray:
    """A mask frame as (H, W) uint8 at the clip's size, transparent parts black, its ends made clean."""
    rgb = frame.pixels.rgb()
    original = frame.pixels.original()
    if original is not None and original.shape[-1] == 4:
        alpha = original[..., 3:].astype(np.uint32)
        rgb = (original[..., :3] * alpha // (257 * 65_535 if original.dtype == np.uint16 else 255)).astype(np.uint8)
    gray = np.asarray(Image.fromarray(rgb).convert("L"))
    gray = scale(gray, size)
    levels = np.interp(np.arange(256), [_BLACK, _WHITE], [0, 255]).round().astype(np.uint8)
    return levels[gray]
