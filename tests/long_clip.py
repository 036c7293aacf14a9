"""A clip of three drawn shots as pictures in a folder, and the small checkpoint made to take it in windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .conftest import make_model
from .video.test_shots import scene

SIZE = (64, 64)
SHOTS = (13, 6, 1)


def write(folder: Path, frames: Any) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:03}.png")
    return folder


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def nine_frames(folder: Path) -> Path:
    """The small checkpoint, made for nine frames at a time: windows of three latent frames."""
    return make_model(folder, working={"pixels": 4096, "frames": 9, "steps": 2})


def three_shots(folder: Path) -> Path:
    """Three drawn scenes, of which one is a single picture."""
    return write(folder, [frame for seed, count in enumerate(SHOTS) for frame in scene(seed, count, size=SIZE)])


def options(model: Path, **more: Any) -> dict[str, Any]:
    return {"instruction": "make it snowy", "model": str(model), "detail": "model", **more}
