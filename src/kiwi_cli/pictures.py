"""Reference pictures: any file's pixels as RGB, and fitted into a frame. Light: no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def as_picture(reference: Image.Image | np.ndarray) -> Image.Image:
    """A reference as an RGB picture, transparent parts white."""
    image = reference if isinstance(reference, Image.Image) else Image.fromarray(reference)
    return flatten_alpha(image)


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Any picture as RGB; transparent parts become white, as the released code does it."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def fit_on_white(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The whole picture at its own aspect, centred on a white canvas of that size."""
    return ImageOps.pad(picture, (width, height), color=(255, 255, 255), centering=(0.5, 0.5))
