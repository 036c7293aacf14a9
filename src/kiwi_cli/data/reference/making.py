"""Stages `make`, `check` and `deduplicate`: the reference picture, how like the target it is, and its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from kiwi_cli.data.reference.files import Files, Unusable
from kiwi_cli.data.reference.recipe import Recipe
from kiwi_cli.data.reference.regions import cut_out, fill, grown
from kiwi_cli.data.reference.triplets import Triplet

Painter = Callable[[np.ndarray, np.ndarray, str], Image.Image]
"""(a frame (H, W, 3) uint8, its foreground (H, W), what that is) -> the frame without its foreground."""
Features = Callable[[Image.Image], np.ndarray]
"""A picture -> a vector of length 1."""
Judge = Callable[[Image.Image, Image.Image, str, str], dict[str, float]]
"""(reference, target's frame, instruction, sort) -> figures. Raises Unusable."""


def filling(frame: np.ndarray, foreground: np.ndarray, phrase: str) -> Image.Image:
    """The painter without a model: what is around, smoothly."""
    return Image.fromarray(fill(frame, foreground))


class Making:
    """`make`: of a subject the cut-out, on white and cropped; of a background the frame without its foreground."""

    name = "make"

    def __init__(self, recipe: Recipe, painter: Painter) -> None:
        self.margin, self.painter = recipe.make.margin, painter

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        ground, region, frame = files.figures("ground"), files.region[0], files.target[0]
        if ground["sort"] == "subject":
            picture = cut_out(frame, region, self.margin)
            if picture is None:
                raise Unusable("the region is empty in the first frame")
        elif not region.any():
            raise Unusable("the background is empty in the first frame")
        else:
            picture = self.painter(frame, grown(~region), ground["phrase"])
        picture.save(files.new(".png"), format="PNG")
        return {"width": picture.width, "height": picture.height}


class Checking:
    """`check`: shape and size of the region, and how like the target's the picture is.

    `similarity` is with a later frame's region, cut in the same way: a picture that shows something else, and a region
    that was lost on the way, are both unlike it.
    """

    name = "check"

    def __init__(self, recipe: Recipe, features: Features, judge: Judge | None) -> None:
        self.margin, self.features, self.judge = recipe.make.margin, features, judge

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        sort, region, picture = files.figures("ground")["sort"], files.region, files.reference
        thing = region if sort == "subject" else ~region
        shape = sorted(picture.size)
        found: dict[str, Any] = {
            "area": round(float(thing[0].mean()), 6),
            "aspect": round(shape[1] / shape[0], 4),
            "side": shape[0],
        }
        later = [number for number in (len(thing) // 2, len(thing) - 1, 0) if thing[number].any()]
        if not later:
            raise Unusable("the region is empty in every frame that is looked at")
        there = _shown(files.target[later[0]], region[later[0]], sort, self.margin)
        found["similarity"] = round(float(self.features(picture) @ self.features(there)), 6)
        if self.judge is not None:
            found |= self.judge(picture, Image.fromarray(files.target[0]), row.prompt, sort)
        return found


def _shown(frame: np.ndarray, region: np.ndarray, sort: str, margin: float) -> Image.Image:
    if sort == "subject":
        picture = cut_out(frame, region, margin)
        assert picture is not None
        return picture
    return Image.fromarray(fill(frame, grown(~region)))


class Featuring:
    """`deduplicate`: features of the pictures that make a row; which rows are near is found when all have theirs."""

    name = "deduplicate"

    def __init__(self, recipe: Recipe, features: Features) -> None:
        self.of, self.features = recipe.deduplicate.of, features

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        shown = {"reference": lambda: files.reference, "target": lambda: Image.fromarray(files.target[0])}
        parts = [self.features(shown[name]()) for name in self.of]
        whole = np.concatenate(parts) / np.float32(len(parts) ** 0.5)  # of length 1: a product is the mean of theirs
        np.save(files.new(".npy"), whole.astype(np.float32), allow_pickle=False)
        return {"length": whole.size}
