"""What a stage sees of a row: its clips, the figures and files of earlier stages, and where its own files go.

OUT/stages/STAGE/AB/KEY.json   the figures of a row, or why it cannot be used
OUT/stages/segment/AB/KEY.mkv  the mask;  make/AB/KEY.png  the reference;  deduplicate/AB/KEY.npy  features
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from kiwi_cli.batch.jobs import Job, job_id
from kiwi_cli.data.clips import Preparation, load_mask, load_pair
from kiwi_cli.data.reference.recipe import Read, Recipe
from kiwi_cli.data.reference.triplets import Triplet

FOLDER = "stages"


class Unusable(Exception):
    """The row is dropped at this stage; `args[0]` says why."""


class Stage(Protocol):
    """One step of a row on its way. Its model is loaded when it is made; what has `close` is closed."""

    name: str

    def run(self, row: Triplet, files: Files) -> dict[str, Any]:
        """The row's figures: plain numbers and words, from which verdicts are computed later.

        Raises:
            Unusable: there are none, and there never will be.
        """


def place_of(stage: str, key: str, ending: str) -> str:
    """A file of a row and a stage, seen from the run's folder."""
    return f"{FOLDER}/{stage}/{key[:2]}/{key}{ending}"


def job_of(stage: str, row: Triplet, recipe: Recipe) -> Job:
    """A row at a stage, by everything that decides its figures."""
    id = job_id(recipe.identity(stage), row.key, row.facts)
    return Job(id, f"{stage}, {row.label}", {"stage": stage, "row": row.as_plain()}, place_of(stage, row.key, ".json"))


def read_figures(out: Path, stage: str, key: str, id: str) -> dict[str, Any] | None:
    """What a stage found of a row; None when it was not done, or for other files or another recipe."""
    try:
        found = json.loads((out / place_of(stage, key, ".json")).read_bytes())
    except (OSError, ValueError):
        return None
    return found["figures"] if isinstance(found, dict) and found.get("job") == id else None


class Files:
    """A row's files.

    Args:
        out: the run's folder. place: an empty folder for what this stage leaves.
    """

    def __init__(self, out: Path, row: Triplet, read: Read, place: Path) -> None:
        self.out, self.row, self.read, self._place = out, row, read, place
        self.preparation = Preparation(read.max_pixels, read.frames, 1, 1)

    def figures(self, stage: str) -> dict[str, Any]:
        """Of an earlier stage."""
        found: dict[str, Any] = json.loads(self.path(stage, ".json").read_bytes())["figures"]
        return found

    def path(self, stage: str, ending: str) -> Path:
        """A file that an earlier stage left."""
        return self.out / place_of(stage, self.row.key, ending)

    def new(self, ending: str) -> Path:
        """A file that this stage leaves."""
        return self._place / f"{self.row.key}{ending}"

    @cached_property
    def _pair(self) -> tuple[np.ndarray, np.ndarray]:
        return load_pair(Path(self.row.source), Path(self.row.target), self.preparation)

    @property
    def source(self) -> np.ndarray:
        """(F, H, W, 3) uint8."""
        return self._pair[0]

    @property
    def target(self) -> np.ndarray:
        """(F, H, W, 3) uint8, of the source's shape."""
        return self._pair[1]

    @cached_property
    def truth(self) -> np.ndarray:
        """(F, H, W) bool: where the table's mask says that the edit is.

        Raises:
            Unusable: the row has none.
        """
        if not self.row.mask:
            raise Unusable("the row has no mask, which this stand-in goes by")
        return load_mask(Path(self.row.mask), Path(self.row.target), self.preparation) >= 128

    @cached_property
    def region(self) -> np.ndarray:
        """(F, H, W) bool: where the segmenter says that the edit is."""
        return load_mask(self.path("segment", ".mkv"), Path(self.row.target), self.preparation) >= 128

    @cached_property
    def reference(self) -> Image.Image:
        with Image.open(self.path("make", ".png")) as opened:
            return opened.convert("RGB")
