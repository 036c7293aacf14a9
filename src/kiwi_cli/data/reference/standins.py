"""Stages without a model: exact where the truth is known, for drawn rows and for tests of everything around them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from kiwi_cli.data.keys import content_key
from kiwi_cli.data.reference.files import Files, Unusable
from kiwi_cli.data.reference.recipe import Recipe
from kiwi_cli.data.reference.regions import box_of, changed, filled_box, pieces
from kiwi_cli.data.reference.triplets import Triplet

SORTS = ("subject", "background")
"""What a reference picture can show: the thing that came or changed, or the ground behind things."""
SUBJECTS = ("subject", "add", "change", "replace", "swap", "local")
FLAT = 3.0
"""Levels: a smaller step between two places of a perceptual hash has no sign."""


class Reading:
    """`read`: whether both clips can be read and fit together, and whether anything was changed at all."""

    name = "read"

    def __init__(self, recipe: Recipe) -> None:
        self.tolerance = recipe.read.tolerance

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        apart = changed(files.source, files.target, self.tolerance)
        frames, height, width = apart.shape
        return {"frames": frames, "height": height, "width": width, "changed": round(float(apart.mean()), 6)}


class TruthScore:
    """`score`: following is the share of the truth's region that changed, consistency that of the rest that did not."""

    name = "score"

    def __init__(self, recipe: Recipe) -> None:
        self.tolerance = recipe.read.tolerance

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        apart, truth = changed(files.source, files.target, self.tolerance), files.truth
        inside, outside = apart[truth], apart[~truth]
        following = float(inside.mean()) if inside.size else 0.0
        consistency = 1.0 - float(outside.mean()) if outside.size else 1.0
        return {"following": round(10 * following, 4), "consistency": round(10 * consistency, 4)}


def sort_of(kind: str, prompt: str) -> str:
    """Which of `SORTS` an edit is, by its kind's name or, without a kind, by its instruction.

    Raises:
        Unusable: no picture can show what such an edit brings.
    """
    words = kind.lower()
    if "background" in words or (not words and "background" in prompt.lower()):
        return "background"
    if not words or any(word in words for word in SUBJECTS):
        return "subject"
    raise Unusable(f"no picture can show what an edit of the kind '{kind}' brings")


class DifferenceGround:
    """`ground`: the box around the pixels of the first frame that changed; of a background, of those that did not."""

    name = "ground"

    def __init__(self, recipe: Recipe) -> None:
        self.tolerance = recipe.read.tolerance

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        sort = sort_of(row.kind, row.prompt)
        apart = changed(files.source[0], files.target[0], self.tolerance)
        box = box_of(pieces(apart if sort == "subject" else ~apart))
        if box is None:
            raise Unusable("nothing changed in the first frame" if sort == "subject" else "the whole frame changed")
        return {"sort": sort, "box": list(box), "phrase": "", **agreement(sort, box, apart)}


def agreement(sort: str, box: Any, apart: np.ndarray) -> dict[str, Any]:
    """How well a box fits where two frames differ (H, W).

    `agreement`: of a subject, the share of the changed pixels that are inside; of a background, whose box is around the
    foreground, the share of the outside that changed.
    """
    inside = filled_box(box, *apart.shape)
    of = apart if sort == "subject" else ~inside
    share = float((inside if sort == "subject" else apart)[of].mean()) if of.any() else 0.0
    return {"agreement": round(share, 6), "box_share": round(float(inside.mean()), 6)}


class TruthSegment:
    """`segment`: the table's mask with noise at its edge; `DifferenceSegment` where that is asked for."""

    name = "segment"

    def __init__(self, recipe: Recipe) -> None:
        self.noise = recipe.segment.noise

    def region(self, row: Triplet, files: Files) -> np.ndarray:
        truth = files.truth
        # By what it sees, as a segmenter: the same clip has the same region, in whichever row it is.
        rng = np.random.default_rng(int(content_key(truth), 16))
        edge = np.zeros_like(truth)
        edge[:, 1:] |= truth[:, 1:] != truth[:, :-1]
        edge[:, :-1] |= truth[:, 1:] != truth[:, :-1]
        edge[:, :, 1:] |= truth[:, :, 1:] != truth[:, :, :-1]
        edge[:, :, :-1] |= truth[:, :, 1:] != truth[:, :, :-1]
        return truth ^ (edge & (rng.random(truth.shape) < self.noise))

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        return keep_region(self.region(row, files), files)


class DifferenceSegment(TruthSegment):
    """`segment`: the pixels that changed, without small pieces."""

    def __init__(self, recipe: Recipe) -> None:
        self.tolerance = recipe.read.tolerance

    def region(self, row: Triplet, files: Files) -> np.ndarray:
        apart = changed(files.source, files.target, self.tolerance)
        if files.figures("ground")["sort"] == "background":
            return ~np.stack([pieces(~frame) for frame in apart])
        return np.stack([pieces(frame) for frame in apart])


def keep_region(region: np.ndarray, files: Files) -> dict[str, Any]:
    """Write a region (F, H, W) as a mask of the target's own size; its figures.

    `tracked`: share of the frames that have some of it. `overlap`: intersection over union with what changed.
    """
    from kiwi_cli.data.reference.regions import overlap
    from kiwi_cli.synth.writer import write_clip
    from kiwi_cli.video import probe
    from kiwi_cli.video.geometry import Size

    clip = probe(files.row.target)
    size = Size(*clip.display_size)
    shown = (region.astype(np.uint8) * np.uint8(255))[..., None].repeat(3, axis=-1)
    if shown.shape[1:3] != (size.height, size.width):
        small = [Image.fromarray(frame) for frame in shown]
        shown = np.stack(
            [np.asarray(frame.resize((size.width, size.height), Image.Resampling.NEAREST)) for frame in small]
        )
    write_clip(files.new(".mkv"), shown, float(clip.fps or 24))
    apart = changed(files.source, files.target, files.read.tolerance)
    return {
        "tracked": round(float(region.any(axis=(1, 2)).mean()), 6),
        "area": round(float(region[0].mean()), 6),
        "overlap": round(overlap(region, apart), 6),
    }


class DrawnFeatures:
    """Features of a picture without a model: colours pooled in 8x8 places, and a perceptual hash's 64 signs."""

    version = "drawn"

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """(448,) float32 of length 1."""
        small = np.asarray(picture.convert("RGB").resize((8, 8), Image.Resampling.BOX), np.float32).ravel() / 255
        grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.float32)
        steps = np.diff(grey, axis=1).ravel()
        signs = np.where(np.abs(steps) < FLAT, 0.0, np.sign(steps))
        # A colour and what it lacks of white: grey pictures have a direction too, and length does not tell them apart.
        parts = [np.concatenate([small, 1.0 - small]) / small.size**0.5, signs / 16]
        whole = np.concatenate(parts)
        return (whole / max(float(np.linalg.norm(whole)), 1e-6)).astype(np.float32)
