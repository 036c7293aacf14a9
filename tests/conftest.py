"""Shared fixtures: the small checkpoint, the recorded cases, and a pipeline loaded once."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches the Hub; those that serve one undo this
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process a core: threads of each would only get in the way

os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="kiwi-state-")  # nobody's own last runs
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "examples" / "checkpoint"
DATA = ROOT / "tests" / "data"


@dataclass(frozen=True)
class Case:
    """One recorded run of the released implementation: the call and its tensors."""

    name: str
    call: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def frames(self) -> np.ndarray:
        return self.tensors["source_frames"].numpy()

    @property
    def references(self) -> list[Any]:
        from PIL import Image

        image = self.tensors.get("reference_image")
        return [] if image is None else [Image.fromarray(image.numpy())]


def read_cases() -> list[dict[str, Any]]:
    return json.loads((DATA / "golden" / "cases.json").read_text())


@pytest.fixture(params=[call["name"] for call in read_cases()], scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    from safetensors.torch import load_file

    call = next(call for call in read_cases() if call["name"] == request.param)
    return Case(request.param, call, load_file(DATA / "golden" / f"{request.param}.safetensors"))


@pytest.fixture(scope="session")
def loaded() -> Any:
    """The small checkpoint in fp32 on the CPU. Do not change it: take `pipe`."""
    from kiwi_cli import KiwiPipeline

    return KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")


@pytest.fixture
def pipe(loaded: Any) -> Any:
    """The small checkpoint, its config restored after the test."""
    before = dict(loaded.config)
    yield loaded
    loaded.register_to_config(references_first=before["references_first"], shift=before["shift"])


def make_model(folder: Path, **index: Any) -> Path:
    """The small checkpoint with keys of its own in `model_index.json`."""
    shutil.copytree(CHECKPOINT, folder)
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    return folder


def relative_error(ours: Any, recorded: Any) -> float:
    """Norm of the difference over the norm of what was recorded."""
    assert ours.shape == recorded.shape
    ours, recorded = ours.double(), recorded.double()
    return float((ours - recorded).norm() / recorded.norm())


def random_frames(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth moving colours, (F, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, (3, 1, 1))
    y, x = np.mgrid[0:height, 0:width] / 16.0
    frames = [127.5 + 120 * np.sin(x * (1 + c) + y + 0.3 * t + phase[c]) for t in range(count) for c in range(3)]
    return np.stack(frames).reshape(count, 3, height, width).transpose(0, 2, 3, 1).round().astype(np.uint8)
