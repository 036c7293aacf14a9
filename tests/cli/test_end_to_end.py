"""Clips of the matrix through the command line and the tiny checkpoint: opened again and counted."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.video import probe

from ..conftest import CHECKPOINT
from ..video.media import Sound, make_clip, packets
from .terminal import inside, kiwi

SMALL = ("--model", CHECKPOINT, "--size", "64x64", "--steps", "1")
UNEVEN = [Fraction(n, 1000) for n in (0, 40, 73, 173, 190, 260)]

CLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "odd size, 29.97": ("in.mp4", {"size": (121, 67), "pixel_format": "yuv444p", "fps": Fraction(30000, 1001)}),
    "variable rate, 5.1": ("in.mkv", {"times": UNEVEN, "sound": Sound(layout="5.1", seconds=0.3)}),
    "rotated, pixels not square": ("in.mov", {"rotation": 90, "pixel_aspect": Fraction(4, 3)}),
    "10-bit hevc, longer sound": (
        "in.mp4",
        {"codec": "libx265", "pixel_format": "yuv420p10le", "sound": Sound(seconds=0.6)},
    ),
    "vp9, 60": ("in.webm", {"codec": "libvpx-vp9", "fps": Fraction(60)}),
}


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_comes_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, make = CLIPS[name]
    source = make_clip(tmp_path / file, frames=6, **make)
    output = source.with_name(f"in-edited{source.suffix}")
    code, out, err = inside(capsys, "edit", source, "make it snowy", *SMALL)
    assert (code, out) == (0, f"{output}\n"), err
    before, after = probe(source), probe(output)
    assert (after.size, after.pixel_aspect, after.frame_count) == (before.size, before.pixel_aspect, 6)
    tick = max(before.time_base, after.time_base, Fraction(1, 1000))
    times = [[time for time, _ in packets(path, "video")] for path in (source, output)]
    assert all(abs((a - times[0][0]) - (b - times[1][0])) <= tick for a, b in zip(*times, strict=True))
    assert [(t.codec, t.layout) for t in after.audio] == [(t.codec, t.layout) for t in before.audio]
    if before.audio:
        assert len(packets(output, "audio")) == len(packets(source, "audio"))


@pytest.mark.slow
def test_a_masked_part_of_a_longer_clip_in_a_process_of_its_own(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=200, sound=Sound(seconds=8.0))
    output = tmp_path / "out.mp4"
    options = ("--start", "0:02", "--duration", 1, "--keep-rest", "--mask", "20,10,40,30", "--feather", 3)
    done = kiwi("edit", source, "make it snowy", *SMALL, *options, "-o", output)
    assert done.returncode == 0, done.stderr
    assert "25 of the clip's 200 frames are edited (2 s to 3 s of 8 s)" in done.stderr
    after = probe(output)
    assert after.frame_count == 200 and after.duration == 8 and len(after.audio) == 1
