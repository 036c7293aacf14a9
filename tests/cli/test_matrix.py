"""Every kind of clip through the whole job, with a model that changes nothing: it comes back as it was.

Differences in the picture are the encoder's alone. The bounds are decibels of PSNR over all frames: the clips have hard
saturated edges, whose chroma 4:2:0 smears, and one more 4:2:0 coding of them costs about 36 (37 to 47 are reached).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kiwi_cli.video import probe

from .. import fakes
from ..video.media import Sound, make_clip, make_sequence, number_of, packets, psnr
from .terminal import frames_of

NTSC_FILM, NTSC = Fraction(24000, 1001), Fraction(30000, 1001)
UNEVEN = [Fraction(n, 1000) for n in (0, 40, 73, 173, 190, 260, 400, 433)]

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    # name: (suffix, how the clip is made, options, decibels)
    "h264, 25 frames a second": (".mp4", {"frames": 12}, {}, 36),
    "h264 in mkv, 23.976": (".mkv", {"frames": 12, "fps": NTSC_FILM}, {}, 36),
    "h264 in mov, 29.97": (".mov", {"frames": 12, "fps": NTSC}, {}, 36),
    "hevc, 60 frames a second": (".mp4", {"frames": 12, "codec": "libx265", "fps": Fraction(60)}, {}, 36),
    "vp9": (".webm", {"frames": 8, "codec": "libvpx-vp9"}, {}, 34),
    "prores": (
        ".mov",
        {"frames": 4, "codec": "prores_ks", "pixel_format": "yuv422p10le"},
        {"codec": "prores"},
        36,
    ),
    "mjpeg": (".avi", {"frames": 6, "codec": "mjpeg", "pixel_format": "yuvj420p"}, {}, 36),
    "853x479": (".mp4", {"frames": 4, "size": (853, 479), "pixel_format": "yuv444p"}, {}, 36),
    "1 frame": (".mp4", {"frames": 1}, {}, 36),
    "2 frames": (".mp4", {"frames": 2}, {}, 36),
    "80 frames": (".mp4", {"frames": 80}, {}, 36),
    "81 frames": (".mp4", {"frames": 81}, {}, 36),
    "200 frames": (".mp4", {"frames": 200}, {"frames": 200}, 36),
    "variable rate": (".mp4", {"frames": 8, "times": UNEVEN}, {}, 36),
    "variable rate in mkv": (".mkv", {"frames": 8, "times": UNEVEN}, {}, 36),
    "rotated": (".mov", {"frames": 6, "rotation": 90}, {}, 36),
    "pixels that are not square": (".mp4", {"frames": 6, "pixel_aspect": Fraction(4, 3)}, {"size": "96x64"}, 36),
    "10 bits": (".mp4", {"frames": 6, "codec": "libx265", "pixel_format": "yuv420p10le"}, {"codec": "hevc"}, 36),
    "full range": (".mp4", {"frames": 6, "pixel_format": "yuvj420p", "colour": (5, 5, 6, 2)}, {}, 36),
    "mono": (".mp4", {"frames": 10, "sound": Sound(layout="mono", seconds=0.4)}, {}, 36),
    "stereo": (".mp4", {"frames": 10, "sound": Sound(seconds=0.4)}, {}, 36),
    "5.1": (".mkv", {"frames": 10, "sound": Sound(layout="5.1", seconds=0.4)}, {}, 36),
    "longer sound": (".mp4", {"frames": 10, "sound": Sound(seconds=1.0)}, {}, 36),
    "shorter sound": (".mp4", {"frames": 25, "sound": Sound(seconds=0.3)}, {}, 36),
}
SIDE = {".avi": ".mp4"}  # what is not written is written as this


@pytest.mark.parametrize("name", CASES)
def test_a_clip_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    suffix, make, options, decibels = CASES[name]
    source = make_clip(tmp_path / f"in{suffix}", **make)
    output = tmp_path / f"out{SIDE.get(suffix, suffix)}"
    result = fakes.edit(source, output, **{"size": "source", **options})
    before, after = probe(source), probe(output)

    assert result.frames == before.frame_count == after.frame_count == make["frames"]
    assert (after.size, after.pixel_aspect) == (before.size, before.pixel_aspect)
    assert after.bit_depth == before.bit_depth
    assert after.colour.matrix == before.colour.matrix and after.colour.full_range == before.colour.full_range
    times = [[time for time, _ in packets(path, "video")] for path in (source, output)]
    tick = max(before.time_base, after.time_base, Fraction(1, 1000))
    assert all(abs((a - times[0][0]) - (b - times[1][0])) <= tick for a, b in zip(*times, strict=True))
    assert abs(after.duration - before.duration) <= 2 * tick

    assert [(t.codec, t.layout, t.rate) for t in after.audio] == [(t.codec, t.layout, t.rate) for t in before.audio]
    for index in range(len(before.audio)):  # copied: the very packets
        kept = [duration for _, duration in packets(output, "audio", index)]
        assert len(kept) == len(packets(source, "audio", index))

    frames = [np.stack(_upright(path)) for path in (source, output)]
    found = psnr(*frames)
    assert found >= decibels, f"{found:.1f} dB"
    if "rotation" not in make and make["frames"] <= 81:  # the number stands along the stored frame's top
        assert [number_of(frame) for frame in frames[0]] == [number_of(frame) for frame in frames[1]]


def _upright(path: Path) -> list[np.ndarray]:
    from kiwi_cli.video import read_frames

    return [frame.rgb for frame in read_frames(probe(path))]


@pytest.mark.parametrize("kind", ["folder", "png", "video to folder", "lossless mkv"])
def test_nothing_at_all_is_lost_without_a_codec_between(kind: str, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    if kind in ("folder", "lossless mkv"):
        make_sequence(source, frames=6, size=(96, 64))
        output = output if kind == "folder" else tmp_path / "out.mkv"
        fakes.edit(source, output, quality="lossless" if kind == "lossless mkv" else None)
    elif kind == "png":
        source, output = next(iter(sorted(make_sequence(source, 1, (96, 64)).iterdir()))), tmp_path / "out.png"
        fakes.edit(source, output)
    else:
        source = make_clip(tmp_path / "in.mp4", frames=6)
        fakes.edit(source, output)
    before, after = np.stack(_upright(source)), np.stack(_upright(output))
    assert np.array_equal(before, after)


def test_only_the_part_that_was_asked_for_is_edited_and_the_rest_kept(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=50, sound=Sound(seconds=2.0))
    output = tmp_path / "out.mkv"
    negative = fakes.FakeEditor(lambda frames: 255 - frames)
    result = fakes.edit(source, output, negative, start=0.4, duration=0.8, keep_rest=True, quality="lossless")
    assert result.frames == 50
    before, after = _upright(source), frames_of(output)
    for number in range(50):
        inside = 10 <= number < 30
        assert np.array_equal(after[number], 255 - before[number] if inside else before[number]), number
    with av.open(str(output)) as container:
        assert len(list(container.demux(container.streams.audio[0]))) > 90


def test_a_part_alone_takes_its_own_sound_along(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=50, sound=Sound(seconds=2.0))
    result = fakes.edit(source, tmp_path / "out.mp4", start=1.0, frames=10)
    after = probe(result.output)
    assert after.frame_count == 10 and abs(after.duration - Fraction(10, 25)) < Fraction(1, 100)
    assert after.audio[0].duration is not None and abs(after.audio[0].duration - Fraction(10, 25)) < Fraction(1, 10)


@pytest.mark.parametrize("spec", ["24,16,40,32", "picture", "video"])
def test_outside_a_mask_the_encoder_gets_the_sources_own_pixels(spec: str, tmp_path: Path) -> None:
    from PIL import Image

    source = make_sequence(tmp_path / "in", frames=5, size=(90, 70))  # resampled to 96x64 and back
    white = np.zeros((70, 90), np.uint8)
    white[16:48, 24:64] = 255
    if spec == "picture":
        Image.fromarray(white).save(tmp_path / "mask.png")
        spec = str(tmp_path / "mask.png")
    elif spec == "video":
        (tmp_path / "mask").mkdir()
        for number in range(5):
            Image.fromarray(white).save(tmp_path / "mask" / f"{number}.png")
        spec = str(tmp_path / "mask")
    negative = fakes.FakeEditor(lambda frames: 255 - frames)
    fakes.edit(source, tmp_path / "out", negative, mask=spec, size="96x64", feather=6)
    before, after = np.stack(_upright(source)), np.stack(_upright(tmp_path / "out"))
    assert np.array_equal(after[:, white == 0], before[:, white == 0])
    middle = (slice(None), slice(26, 38), slice(36, 52))
    assert np.abs(after[middle].astype(int) - (255 - before[middle].astype(int))).mean() < 4  # the edit is there


def test_fewer_frames_for_the_model_and_the_clips_own_timing_again(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=24, fps=Fraction(24))
    model = fakes.FakeEditor()
    result = fakes.edit(source, tmp_path / "out.mp4", model, fps=12)
    assert len(model.seen[0]["frames"]) == 12 and result.frames == 24
    assert probe(result.output).fps == 24
