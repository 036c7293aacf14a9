"""What training shows of a picture: a reference on its canvas. Light: no torch."""

from __future__ import annotations

from PIL import Image, ImageOps

from kiwi_cli.model.pictures import as_picture

SHRINK = (0.7, 1.0)
"""A reference is shown to the transformer at that fraction of the frame in training, evenly drawn (released recipe)."""


def shrink_on_white(picture: Image.Image, width: int, height: int, fraction: float) -> Image.Image:
    """The whole picture at its own aspect, in the middle of a white canvas, in `fraction` of its sides.

    At 1 it is `pictures.fit_on_white`, which inference uses.
    """
    inner = ImageOps.pad(
        as_picture(picture), (max(1, round(width * fraction)), max(1, round(height * fraction))), color=(255, 255, 255)
    )
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return canvas
