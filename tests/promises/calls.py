"""The clip, the picture and the call that every promise is tried with, and the small checkpoint opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kiwi_cli import KiwiPipeline

from ..conftest import CHECKPOINT, random_frames

FRAMES = random_frames(2, 32, 64)

PICTURE = Image.fromarray(random_frames(1, 40, 40, seed=2)[0])

PARTS = ("transformer", "vae", "mllm_encoder", "source_embedder", "ref_embedder")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def call(pipe: Any, **changes: Any) -> Any:
    """The frames of two steps, as an array unless asked otherwise."""
    given = {"video": FRAMES, "prompt": "make it snowy", "num_inference_steps": 2, "generator": seeded()}
    return pipe(**{**given, "output_type": "np", **changes}).frames


def load(source: Path | str = CHECKPOINT, **options: Any) -> Any:
    pipe = KiwiPipeline.from_pretrained(str(source), **{"device": "cpu", **options})
    pipe.set_progress_bar_config(disable=True)
    return pipe
