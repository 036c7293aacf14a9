"""One plain clip that many tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from .media import Sound, make_clip


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    """12 frames of H.264 at 25 a second, 96x64, with 0.48 s of stereo AAC."""
    return make_clip(tmp_path / "clip.mp4", frames=12, sound=Sound(seconds=0.48))
