"""What the embedded model makes is as sharp as its source: each style, on what is rendered, drawn and as filmed."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import pytest

from kiwi_cli.bench.tiny.quality import edge_correlation
from kiwi_cli.synth.natural import natural_scene

from .cli.terminal import CLIP, frames_of, inside

BUNNY = CLIP.with_name("bunny.mp4")
STYLES = {
    "black and white": "make it black and white",
    "sepia": "make it sepia",
    "night": "turn it into a night scene",
    "snow": "make it snowy",
    "negative": "make it a negative",
}
SECONDS = 0.4
LEAST = 0.9


def filmed(path: Path) -> Path:
    """A natural scene by daylight as a camera held by hand gives it: swaying, with a little grain, compressed."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 480, 272, "yuv420p"
        for number, whole in enumerate(natural_scene(4, 488, 280, 10, held_out=True).source):
            left, top = (round(4 + 3 * math.sin(number / pace)) for pace in (2.5, 4))
            shown = whole[top : top + 272, left : left + 480] + rng.normal(0, 1.5, (272, 480, 1))
            frame = av.VideoFrame.from_ndarray(np.clip(shown, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("clip", ["bunny", "drawn", "filmed"])
@pytest.mark.slow
def test_the_edges_are_the_sources(clip: str, style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a person gets it: by itself, in H.264. (The fast suite has night on the drawn clip: test_detail_edits.py.)"""
    source = {"bunny": BUNNY, "drawn": CLIP}.get(clip) or filmed(tmp_path / "filmed.mp4")
    words = (STYLES[style], "--model", "tiny", "--device", "cpu", "--duration", SECONDS)
    code, _, err = inside(capsys, "edit", source, *words, "-o", tmp_path / "out.mp4")
    assert code == 0, err
    result = np.stack(frames_of(tmp_path / "out.mp4"))
    before = np.stack(frames_of(source)[: len(result)])
    assert np.abs(result.astype(float) - before).mean() > 5  # it was edited
    found = edge_correlation(result, before)
    assert found >= LEAST, found
