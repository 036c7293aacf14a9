"""Reference pictures: any file's pixels as RGB, and fitted into a frame. Light: no torch."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from kiwi_cli.errors import MediaError

WHITE_16 = 65535  # the largest value of 16-bit grey


def as_picture(reference: Image.Image | np.ndarray) -> Image.Image:
    """A reference as an RGB picture, transparent parts white.

    Raises:
        MediaError: values whose range nobody can know.
    """
    image = reference if isinstance(reference, Image.Image) else Image.fromarray(reference)
    return flatten_alpha(image)


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB; transparent parts become white, as the released code does it.

    Raises:
        MediaError: values whose range nobody can know.
    """
    image = eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, integers or floats as 8-bit grey, with transparency where one value of it is transparent; other
    pictures as they are. Pillow itself would cut such values off at 255, so that they end white or black.

    Raises:
        MediaError: integers beyond 16 bits, or floats that are not from 0 to 1.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        if not (np.isfinite(values).all() and low >= -1e-3 and high <= 1 + 1e-3):
            raise MediaError(
                f"floating-point values from {low:g} to {high:g}, where 0 is black and 1 is white",
                "convert the picture to a PNG",
            )
        grey = values.clip(0, 1) * 255
    else:
        if low < 0 or high > WHITE_16:
            raise MediaError(f"values from {low:g} to {high:g}, beyond 16 bits", "convert the picture to a PNG")
        grey = values / (WHITE_16 / 255)
    found = Image.fromarray(np.round(grey).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, (int, float)):
        found.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return found


def fit_on_white(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The whole picture at its own aspect, centred on a white canvas of that size."""
    return ImageOps.pad(picture, (width, height), color=(255, 255, 255), centering=(0.5, 0.5))
