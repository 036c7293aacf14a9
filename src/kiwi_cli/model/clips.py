"""Clips and pictures as the library's pipelines take them -> frames (F, H, W, 3) uint8 RGB, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from kiwi_cli.errors import UsageError
from kiwi_cli.model.pictures import as_picture
from kiwi_cli.model.pixels import to_bytes

Media = Image.Image | np.ndarray | torch.Tensor

OUTPUTS = ("pil", "np", "pt", "latent")

_SLACK = 1e-3
"""How far a float may lie outside [0, 1] by the rounding of whoever made it."""


def as_frames(video: Any) -> np.ndarray:
    """One clip as (F, H, W, 3) uint8.

    Args:
        video: PIL pictures, arrays (H, W, 3) or tensors (3, H, W) in a list, or all in one array (F, H, W, 3) or
            tensor (F, 3, H, W), with an empty batch dimension or none; uint8, or floats from 0 to 1, which are rounded
            to 8 bits.

    Raises:
        UsageError: no frames, frames of several sizes, or values that are neither.
    """
    if isinstance(video, list | tuple):
        if not video:
            raise UsageError("the video has no frames", "pass at least one")
        found = [np.asarray(as_picture(frame)) if isinstance(frame, Image.Image) else _bytes(frame) for frame in video]
        if len({frame.shape for frame in found}) > 1:
            raise UsageError("the video's frames have several sizes", "scale them to one")
        frames = np.stack(found)
    else:
        frames = _bytes(video)
    if frames.ndim == 5 and len(frames) == 1:
        frames = frames[0]
    if frames.ndim != 4:
        raise UsageError(f"a video has frames, height, width and colours, not {frames.shape}", "pass one clip")
    return frames


def as_pictures(image: Any) -> list[Image.Image]:
    """Reference pictures: none, one, or several in a list, array or tensor."""
    if image is None:
        return []
    if isinstance(image, list | tuple):
        return [picture for each in image for picture in as_pictures(each)]
    if isinstance(image, Image.Image):
        return [as_picture(image)]
    pixels = _bytes(image)
    return [as_picture(picture) for picture in (pixels if pixels.ndim == 4 else pixels[None])]


def is_nested(value: Any) -> bool:
    """Whether a list holds clips, or lists of pictures, rather than frames or pictures."""
    if not isinstance(value, list | tuple) or not value:
        return False
    first = value[0]
    return isinstance(first, list | tuple) or (isinstance(first, np.ndarray | torch.Tensor) and first.ndim >= 4)


def as_output(pixels: torch.Tensor, kind: str) -> Any:
    """Decoded pixels (1, 3, F, H, W) in [-1, 1] as the library gives one clip: of kind 'pil', 'np' or 'pt'."""
    if kind == "pil":
        return [Image.fromarray(frame) for frame in to_bytes(pixels).cpu().numpy()]
    frames = (pixels[0] / 2 + 0.5).clamp(0, 1).transpose(0, 1)
    return frames if kind == "pt" else frames.permute(0, 2, 3, 1).cpu().numpy()


def stack_outputs(clips: Sequence[Any], kind: str) -> Any:
    """Clips as `as_output` makes them -> the batch: a list of lists, or one array or tensor."""
    if kind == "pil":
        return list(clips)
    return torch.stack(list(clips)) if kind == "pt" else np.stack(clips)


def _bytes(values: Any) -> np.ndarray:
    """An array or tensor of pictures, colours last, as uint8."""
    if isinstance(values, torch.Tensor):
        values = values.detach().float().cpu().numpy() if values.is_floating_point() else values.cpu().numpy()
    if not isinstance(values, np.ndarray) or values.ndim < 3:
        raise UsageError(f"not pictures: {type(values).__name__}", "pass PIL pictures, arrays or tensors")
    if values.shape[-1] != 3 and values.shape[-3] == 3:
        values = np.moveaxis(values, -3, -1)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise UsageError(f"pictures are uint8 or floats, not {values.dtype}", "convert them to 8-bit RGB")
    low, high = float(values.min()), float(values.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # not a number is refused as well
        raise UsageError(
            f"floats of pictures go from 0 to 1, not from {low:g} to {high:g}", "scale them, or pass uint8"
        )
    return (values.clip(0, 1) * 255).round().astype(np.uint8)
