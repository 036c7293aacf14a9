"""Command lines and damaged files at random: an error of ours or a result, nothing half-written, no source touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..video.test_fuzz import mutated
from . import fuzzing


@pytest.fixture
def playground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fuzzing.Playground:
    """The working folder, filled; nothing is fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    return fuzzing.Playground.filled(tmp_path)


@pytest.mark.slow
def test_some_command_lines(playground: fuzzing.Playground) -> None:
    codes = fuzzing.random_commands(1, 40, playground)
    assert codes[0] > 3 and codes[2] > 3, codes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 15))
def test_many_command_lines(seed: int, playground: fuzzing.Playground) -> None:
    codes = fuzzing.random_commands(seed, 200, playground)
    assert min(codes.values()) > 10, codes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_many_damaged_files(seed: int, playground: fuzzing.Playground) -> None:
    codes = fuzzing.damaged_inputs(seed, 250, playground, mutated)
    assert codes[0] > 25 and codes[1] > 25, codes
