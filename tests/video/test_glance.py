"""A glance at a clip says that it is sound only where `probe` takes it, and how long it lasts at least.

Of packets behind the first nothing is known at a glance: the clips here store their frames in the order they are shown.
"""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from kiwi_cli.errors import KiwiError, MediaError
from kiwi_cli.video import glance, probe, read_frames

from .media import Sound, make_clip
from .test_fuzz import mutated

X264 = {"crf": "10", "preset": "ultrafast", "bf": "0"}
X265 = {"crf": "10", "preset": "ultrafast", "x265-params": "log-level=none:bframes=0"}
KINDS = [
    ("a.mp4", {"frames": 60, "options": X264, "sound": Sound(seconds=0.5)}),
    ("b.mov", {"frames": 60, "codec": "libx265", "options": X265}),
    ("c.mkv", {"frames": 60, "options": X264, "rotation": 90}),
    ("d.webm", {"frames": 60, "codec": "libvpx-vp9"}),
    ("e.mp4", {"frames": 60, "codec": "mpeg4"}),
]


@pytest.mark.parametrize(("name", "settings"), KINDS, ids=[name for name, _ in KINDS])
def test_a_sound_clip_needs_no_more_than_a_glance(tmp_path: Path, name: str, settings: dict) -> None:
    path = make_clip(tmp_path / name, **settings)
    lasts = glance(path)
    assert lasts is not None and probe(path).duration - Fraction(3, 2) <= lasts < probe(path).duration


@pytest.mark.parametrize(
    ("name", "settings"),
    [("a.avi", {}), ("b.ts", {}), ("c.mov", {"codec": "prores_ks", "pixel_format": "yuva444p10le"})],
    ids=["no index", "no sizes of its own", "transparency"],
)
def test_what_cannot_be_told_at_a_glance_is_left_to_probe(tmp_path: Path, name: str, settings: dict) -> None:
    path = make_clip(tmp_path / name, **settings)
    assert glance(path) is None and probe(path).frame_count == 8


def test_nothing_that_is_no_clip_is_sound(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a clip")
    (tmp_path / "empty.mp4").touch()
    sound = make_clip(tmp_path / "sound.mp4", frames=30)
    (tmp_path / "cut.mp4").write_bytes(sound.read_bytes()[:-700])
    for path in (*(tmp_path / f"{name}.mp4" for name in ("text", "empty", "cut", "none")), tmp_path):
        assert glance(path) is None


@pytest.mark.parametrize(("matrix", "name"), [(8, "YCgCo"), (14, "ICtCp"), (13, "matrix 13")])
def test_colours_that_nothing_here_converts(tmp_path: Path, matrix: int, name: str) -> None:
    path = tagged(tmp_path, matrix)
    assert glance(path) is None
    with pytest.raises(MediaError, match=f"has its colours in {name}, which is not read") as caught:
        probe(path)
    assert "BT.709" in caught.value.hint


@pytest.mark.parametrize("matrix", [3, 10], ids=["reserved", "BT.2020 of constant luminance"])
def test_colours_by_the_nearest_matrix(tmp_path: Path, matrix: int) -> None:
    path = tagged(tmp_path, matrix)
    assert glance(path) is not None
    like = {3: 2, 10: 9}[matrix]
    frames = [np.stack([frame.rgb for frame in read_frames(probe(each))]) for each in (path, tagged(tmp_path, like))]
    assert (frames[0] == frames[1]).all()


def tagged(folder: Path, matrix: int) -> Path:
    """A clip of grey pictures whose header says that its matrix is this one."""
    source = make_clip(folder / "source.mp4", options={**X264, "x264-params": "colormatrix=bt709"})
    path = folder / f"{matrix}.mp4"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        tags = BitStreamFilterContext(f"h264_metadata=matrix_coefficients={matrix}", old.streams.video[0], stream)
        for packet in [*old.demux(video=0)]:
            for filtered in tags.filter(packet if packet.size else None):
                filtered.stream = stream
                new.mux(filtered)
    return path


def test_sound_whose_index_promises_what_cannot_be(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=30, options=X264, sound=Sound(seconds=1.0))
    data = bytearray(path.read_bytes())
    sixth = data.rindex(b"stsz") + 16 + 4 * 5  # of the second track, a packet's size
    data[sixth] = 0x3F
    path.write_bytes(data)
    assert glance(path) is None
    with pytest.raises(MediaError, match="cut off or damaged"):
        probe(path)


@pytest.mark.parametrize("part", range(4))
def test_what_probe_refuses_is_not_sound_at_a_glance(tmp_path: Path, part: int) -> None:
    rng = random.Random(part)
    clips = [make_clip(tmp_path / name, **{**settings, "frames": 20}) for name, settings in KINDS]
    sound = refused = 0
    for number in range(120):
        clip = rng.choice(clips)
        path = tmp_path / f"{number}{clip.suffix}"
        path.write_bytes(mutated(clip.read_bytes(), rng))
        lasts = glance(path)
        try:
            duration = probe(path).duration
        except KiwiError as error:
            assert lasts is None, (number, clip, error.message)
            refused += 1
        else:
            sound += lasts is not None
            assert lasts is None or lasts < duration, (number, clip, lasts, duration)
    assert sound > 20 and refused > 20
