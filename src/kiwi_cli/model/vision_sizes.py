"""How large the language model sees frames and pictures: Qwen's sizing rule with the released bounds. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kiwi_cli.errors import UsageError

# Pixel areas; not the processor's configs, which say 3136 and 12845056.
FRAME_MULTIPLE, FRAME_MIN_AREA = 56, 4 * 56 * 56
VIDEO_MULTIPLE, VIDEO_MIN_AREA = 28, 128 * 28 * 28
IMAGE_MULTIPLE, IMAGE_MIN_AREA, IMAGE_MAX_AREA = 28, 4 * 28 * 28, 16384 * 28 * 28
MAX_ASPECT = 200  # beyond it Qwen's processors refuse a picture


@dataclass(frozen=True)
class PixelBounds:
    """Limits on what the language model is shown, from `mllm_encoder/config.json`.

    Attributes:
        max_frames: of the source. max_frame_area: of each, in pixels.
        max_reference_tokens: visual tokens of the reference picture, 28x28 pixels each.
        min_visual_tokens: the least of a frame or picture. None, as in the released models: a frame is sized in
            steps of 56 pixels with the two areas above. Given: in steps of 28, in one resize.
    """

    max_frames: int = 16
    max_frame_area: int = 262144
    max_reference_tokens: int = 768
    min_visual_tokens: int | None = None

    def __post_init__(self) -> None:
        least = self.min_visual_tokens
        if least is not None and (not isinstance(least, int) or isinstance(least, bool) or least < 1):
            raise ValueError(f"min_visual_tokens is {least!r}, not a number of tokens from 1")

    @property
    def min_picture_area(self) -> int:
        """Least area in pixels of a source picture or a reference."""
        return IMAGE_MIN_AREA if self.min_visual_tokens is None else self.min_visual_tokens * IMAGE_MULTIPLE**2


def smart_size(width: int, height: int, multiple: int, min_area: int, max_area: int) -> tuple[int, int]:
    """Qwen's sizing rule: the nearest multiples, then scaled into the area bounds keeping the aspect.

    Returns:
        (width, height), multiples of `multiple`; floored when the area was too large, ceiled when too small.

    Raises:
        UsageError: when one side is more than 200 times the other.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UsageError(f"a picture of {width}x{height} is too narrow", "crop it to a less extreme shape")
    new_height = max(multiple, round(height / multiple) * multiple)
    new_width = max(multiple, round(width / multiple) * multiple)
    if new_height * new_width > max_area:
        scale = math.sqrt(height * width / max_area)
        new_height = max(multiple, math.floor(height / scale / multiple) * multiple)
        new_width = max(multiple, math.floor(width / scale / multiple) * multiple)
    elif new_height * new_width < min_area:
        scale = math.sqrt(min_area / (height * width))
        new_height = math.ceil(height * scale / multiple) * multiple
        new_width = math.ceil(width * scale / multiple) * multiple
    return new_width, new_height


def frame_sizes(width: int, height: int, bounds: PixelBounds) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes, (width, height), that a clip's frames are given one after the other.

    The released code resizes each frame, and where that leaves too few pixels, the stack of them once more. A model
    with a minimum of its own (`min_visual_tokens`) needs the first alone: then the two are equal.
    """
    if bounds.min_visual_tokens is None:
        multiple, min_area, stack_min_area = FRAME_MULTIPLE, FRAME_MIN_AREA, VIDEO_MIN_AREA
    else:
        multiple, min_area, stack_min_area = VIDEO_MULTIPLE, bounds.min_picture_area, 0
    size = smart_size(width, height, multiple, min_area, bounds.max_frame_area)
    if size[0] * size[1] >= stack_min_area:
        return size, size
    return size, smart_size(*size, VIDEO_MULTIPLE, stack_min_area, IMAGE_MAX_AREA)


def picture_size(width: int, height: int, bounds: PixelBounds) -> tuple[int, int]:
    """Size, (width, height), of a picture that is edited."""
    return smart_size(width, height, IMAGE_MULTIPLE, bounds.min_picture_area, IMAGE_MAX_AREA)
