"""The small checkpoint's own encoder, and a cache that it made in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import write_cache

from .cached import edits


@pytest.fixture(scope="session")
def encoder(loaded: Any) -> Encoder:
    return Encoder.from_pipeline(loaded)


@pytest.fixture(scope="module")
def whole(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache made in one go."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    write_cache(out, edits(), encoder, held_out=0.3)
    return out
