"""Photographs that lie in Python packages, read where they are: a camera moves over parts of them.

Nothing of them is copied into this project. Their licences allow what is learnt from them to be handed on; KNOWN has
them with their authors, for a model's card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from kiwi_cli.errors import UsageError

SMALLEST_PART = 0.35
"""Least share of a photograph's shorter side that a part of it has."""


@dataclass(frozen=True)
class Photograph:
    """A picture in a package. `file` is within the package's folder; `credit`: author and licence."""

    package: str
    file: str
    credit: str

    def path(self) -> Path | None:
        """Where it lies; None where the package is not installed, or has it no more. The package is not imported."""
        found = find_spec(self.package)
        folders = found.submodule_search_locations if found else None
        paths = [Path(folder) / self.file for folder in folders or ()]
        return next((path for path in paths if path.is_file()), None)


KNOWN = (
    Photograph("skimage", "data/astronaut.png", "NASA, public domain"),
    Photograph("skimage", "data/chelsea.png", "Stefan van der Walt, CC0"),
    Photograph("skimage", "data/coffee.png", "Rachel Michetti, CC0"),
    Photograph("skimage", "data/rocket.jpg", "SpaceX, public domain"),
    Photograph("sklearn", "datasets/images/china.jpg", "danielbuechele, CC BY 2.0"),
    Photograph("sklearn", "datasets/images/flower.jpg", "vultilion, CC BY 2.0"),
    Photograph("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "US Navy, public domain"),
)
"""Of scikit-image 0.26, scikit-learn 1.9 and matplotlib 3.11; credits as the packages give them."""


def installed() -> list[Path]:
    """Those of KNOWN that are here.

    Raises:
        UsageError: none is.
    """
    found = [path for photograph in KNOWN if (path := photograph.path()) is not None]
    if not found:
        raise UsageError("no package with photographs is installed", "pip install scikit-image scikit-learn matplotlib")
    return found


def read(path: str | Path) -> np.ndarray:
    """The photograph, (H, W, 3) uint8."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def part(rng: np.random.Generator, photographs: Sequence[np.ndarray], width: int, height: int) -> np.ndarray:
    """A part of one of them, at random, mirrored half of the time: (height, width, 3) fp32 in 0..1."""
    whole = photographs[int(rng.integers(len(photographs)))]
    high, wide = whole.shape[:2]
    scale = min(wide / width, high / height) * rng.uniform(SMALLEST_PART, 1.0)
    left, top = rng.uniform(0, wide - scale * width), rng.uniform(0, high - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    cut = np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.BICUBIC, box))
    return (cut[:, ::-1] if rng.random() < 0.5 else cut).astype(np.float32) / np.float32(255)
