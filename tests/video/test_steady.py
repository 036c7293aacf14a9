"""The same frames become the same bytes of H.264, also where x264's own code for a processor does not see to that."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from kiwi_cli.video import Size
from kiwi_cli.video.plain import write_mp4

from .media import picture

TIMES = 30


@pytest.mark.parametrize("size", [(80, 48), (208, 120)])
def test_small_clips_are_written_the_same_each_time(size: tuple[int, int], tmp_path: Path) -> None:
    frames = np.stack([picture(number, *size) for number in range(6)])
    found = set()
    for number in range(TIMES):
        write_mp4(tmp_path / f"{number}.mp4", [frames], Fraction(24), Size(*size), "10")
        found.add((tmp_path / f"{number}.mp4").read_bytes())
    assert len(found) == 1
