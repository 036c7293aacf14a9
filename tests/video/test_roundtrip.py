"""The clip comes back as it was: written files are opened again and counted.

No model: the frames that are read are the frames that are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from kiwi_cli.video import Size, probe, read_frames, read_metadata, select, working_size

from .media import Sound, make_clip, number_of, packets, picture, psnr, run_through

F = Fraction


@dataclass
class Case:
    name: str
    extension: str = "mp4"
    make: dict[str, Any] = field(default_factory=dict)
    # decibels of the frames that come back against the frames handed in. The test picture has hard coloured
    # edges, whose chroma 4:2:0 smears: 36 dB is what one more 4:2:0 coding of it costs, 44 without subsampling.
    decibels: float = 36.0
    tint: float = 0.6  # levels of 255


UNEVEN = [F(0), F(1, 25), F(3, 25), F(4, 25), F(8, 25), F(9, 25), F(10, 25), F(14, 25)]
CASES = [
    Case("h264"),
    Case("one-frame", make={"frames": 1}),
    Case("two-frames", make={"frames": 2}),
    Case("80-frames", make={"frames": 80, "size": (64, 48)}),
    Case("81-frames", make={"frames": 81, "size": (64, 48)}),
    Case("200-frames", make={"frames": 200, "size": (64, 48)}),
    Case("23.976", make={"fps": F(24000, 1001), "frames": 30}),
    Case("23.976-mkv", "mkv", {"fps": F(24000, 1001), "frames": 30}),
    Case("29.97", make={"fps": F(30000, 1001), "frames": 30}),
    Case("60", make={"fps": F(60), "frames": 30}),
    Case("59.94-mkv", "mkv", {"fps": F(60000, 1001), "frames": 30}),
    Case("variable", make={"times": UNEVEN}),
    Case("variable-mkv", "mkv", {"times": UNEVEN}),
    Case("odd-444", make={"size": (853, 479), "pixel_format": "yuv444p", "frames": 2}, decibels=44),
    # PQ is compared as the model sees it, tone-mapped: shadows are worth more there than as stored
    Case("hevc-10-bit", "mp4", {"codec": "libx265", "pixel_format": "yuv420p10le", "colour": (9, 9, 16, 1)}, 34, 0.8),
    Case("vp9-odd", "webm", {"codec": "libvpx-vp9", "size": (853, 479), "frames": 2}),
    Case("mjpeg", "avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
    Case("prores", "mov", {"codec": "prores_ks", "pixel_format": "yuv422p10le"}),
    Case("709-limited", make={"colour": (1, 1, 1, 1)}),
    Case("709-full", make={"colour": (1, 1, 1, 2)}),
    Case("601-limited", make={"colour": (6, 6, 6, 1)}),
    Case("601-full", make={"colour": (5, 5, 6, 2)}),
    Case("2020-10-bit", make={"colour": (9, 9, 14, 1), "pixel_format": "yuv420p10le"}),
    Case("pixel-aspect", make={"pixel_aspect": F(16, 15)}),
    Case("transport-stream", "ts"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_clip_comes_back(tmp_path, case):
    source = make_clip(tmp_path / f"in.{case.extension}", **case.make)
    clip = probe(source)
    extension = case.extension if case.extension in ("mp4", "mov", "mkv", "webm") else "mp4"
    seen, writer = run_through(clip, tmp_path / f"out.{extension}")
    back = probe(writer.path)
    frames = [frame.rgb for frame in read_frames(back)]

    assert len(seen) == len(frames) == clip.frame_count == back.frame_count == writer.frames_written
    assert (back.size, back.pixel_aspect, back.fps) == (clip.size, clip.pixel_aspect, clip.fps)
    assert back.variable_rate == clip.variable_rate == ("times" in case.make)
    before, after = packets(source, "video"), packets(writer.path, "video")
    assert len(after) == len(before)
    ticks = F(1, 1000) if "mkv" in case.name or extension == "webm" else F(1, 10_000)
    for (then, _), (now, _) in zip(before, after, strict=True):
        assert abs((then - before[0][0]) - now) <= ticks
    assert abs(back.duration - clip.duration) <= F(1, 1000)
    for tag in ("matrix_tag", "primaries_tag", "transfer_tag", "matrix", "full_range"):
        assert getattr(back.colour, tag) == getattr(clip.colour, tag), tag
    assert np.mean([psnr(a, b) for a, b in zip(seen, frames, strict=True)]) > case.decibels
    tint = np.mean(frames, axis=(0, 1, 2)) - np.mean(seen, axis=(0, 1, 2))
    assert abs(tint).max() < case.tint  # levels of 255
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize(
    ("colour", "pixel_format", "rgb", "expected"),
    [
        # BT.709 and BT.601 limited, from the matrices in the standards
        ((1, 1, 1, 1), "yuv444p", (255, 0, 0), (63, 102, 240)),
        ((6, 6, 6, 1), "yuv444p", (255, 0, 0), (81, 90, 240)),
        ((6, 6, 6, 2), "yuv444p", (255, 0, 0), (76, 85, 255)),
        ((1, 1, 1, 1), "yuv444p", (255, 255, 255), (235, 128, 128)),
        ((9, 9, 14, 1), "yuv444p", (0, 255, 0), (164, 48, 24)),
    ],
)
def test_conversion_follows_the_standards(colour, pixel_format, rgb, expected):
    from kiwi_cli.video.clip import Colour
    from kiwi_cli.video.colour import FromRgb, ToRgb

    matrix = {1: "bt709", 6: "bt601", 9: "bt2020"}[colour[0]]
    tags = Colour(colour[0], colour[1], colour[2], colour[3], matrix, colour[3] == 2)
    flat = np.full((32, 32, 3), rgb, np.uint8)
    frame = FromRgb(tags, pixel_format)(flat)
    stored = frame.to_ndarray()[:, 16, 16]
    assert np.abs(stored.astype(int) - expected).max() <= 1
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == colour
    assert np.abs(ToRgb(tags)(frame).astype(int) - flat).max() <= 2


@pytest.mark.parametrize(("lines", "matrix"), [(576, "bt601"), (720, "bt709")])
def test_untagged_clips_are_guessed_by_their_lines_and_stay_untagged(tmp_path, lines, matrix):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=1, size=(64, lines)))
    assert (clip.colour.matrix, clip.colour.matrix_tag) == (matrix, 2)
    _, writer = run_through(clip, tmp_path / "out.mp4")
    assert probe(writer.path).colour == clip.colour


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_phone_clips_stand_upright(tmp_path, rotation):
    path = make_clip(tmp_path / "in.mp4", rotation=rotation, size=(96, 64), pixel_aspect=F(4, 3))
    clip = probe(path)
    turned = rotation != 180
    assert clip.size == ((64, 96) if turned else (96, 64))
    assert clip.storage_size == (96, 64)
    assert clip.pixel_aspect == (F(3, 4) if turned else F(4, 3))
    expected = np.rot90(picture(3, 96, 64), rotation // 90)
    frames = [frame.rgb for frame in read_frames(clip)]
    assert psnr(frames[3], expected) > 30
    _, writer = run_through(clip, tmp_path / "out.mp4")
    back = probe(writer.path)
    assert (back.size, back.rotation, back.pixel_aspect) == (clip.size, 0, clip.pixel_aspect)
    assert psnr(list(read_frames(back))[3].rgb, expected) > 30


def test_a_mirrored_clip_is_mirrored(tmp_path):
    path = tmp_path / "in.mp4"
    frame = av.VideoFrame.from_ndarray(picture(9, 96, 64), format="rgb24")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.set_display_rotation(90, hflip=True)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = probe(path)
    assert clip.mirrored
    found = next(read_frames(clip)).rgb
    # counter-clockwise by 90 degrees, then flipped left to right
    assert psnr(found, np.rot90(picture(9, 96, 64))[:, ::-1]) > 30


def test_ten_bits_are_read_as_ten_bits(tmp_path):
    path = make_clip(tmp_path / "in.mov", codec="prores_ks", pixel_format="yuv422p10le", size=(96, 64), frames=2)
    clip = probe(path)
    assert clip.bit_depth == 10
    assert psnr(next(read_frames(clip)).rgb, picture(0, 96, 64)) > 45  # 57.8 measured


def test_frames_are_in_order_and_complete(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=81, size=(64, 48)))
    _, writer = run_through(clip, tmp_path / "out.mp4", chunk=20)
    assert [number_of(frame.rgb) for frame in read_frames(probe(writer.path))] == list(range(81))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_through_the_working_size_and_back(tmp_path, fit):
    clip = probe(make_clip(tmp_path / "in.mp4", size=(854, 480), frames=2, colour=(1, 1, 1, 1)))
    size = working_size(*clip.display_size, "480p")
    seen, writer = run_through(clip, tmp_path / "out.mp4", size=size, fit=fit)
    assert seen[0].shape == (480, 832, 3)
    back = [frame.rgb for frame in read_frames(probe(writer.path))]
    original = [frame.rgb for frame in read_frames(clip)]
    assert back[0].shape == (480, 854, 3)
    assert np.mean([psnr(a, b) for a, b in zip(original, back, strict=True)]) > 34


def test_cropping_and_stretching_are_said(tmp_path, clip_file):
    clip = probe(clip_file)
    _, writer = run_through(clip, tmp_path / "a.mp4", size=Size(64, 64), fit="crop")
    assert "only the middle 64x64 of 96x64" in writer.notices[0]
    _, writer = run_through(clip, tmp_path / "b.mp4", size=Size(64, 64))
    assert "stretched by 50%" in writer.notices[0]


def test_part_of_a_clip(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=50, size=(64, 48)))
    _, writer = run_through(clip, tmp_path / "out.mp4", select(clip, start=0.4, frames=9))
    back = probe(writer.path)
    assert [number_of(frame.rgb) for frame in read_frames(back)] == list(range(10, 19))
    assert back.duration == F(9, 25)
    assert packets(writer.path, "video")[0][0] == 0


def test_keep_rest_returns_the_whole_clip_with_the_span_edited(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=50, size=(64, 48), sound=Sound(seconds=2)))
    _, writer = run_through(
        clip, tmp_path / "out.mp4", select(clip, start=0.4, frames=9), keep_rest=True, edit=np.zeros_like
    )
    back = probe(writer.path)
    frames = [frame.rgb for frame in read_frames(back)]
    assert (len(frames), back.duration) == (50, clip.duration)
    dark = [i for i, frame in enumerate(frames) if frame.mean() < 5]
    assert dark == list(range(10, 19))
    assert [number_of(f) for i, f in enumerate(frames) if i not in dark] == [i for i in range(50) if i not in dark]
    assert back.audio[0].duration == clip.audio[0].duration


def test_sampling_gives_the_clips_own_timing_back(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=24, fps=F(24), size=(64, 48)))
    seen, writer = run_through(clip, tmp_path / "out.mp4", select(clip, fps=8))
    assert len(seen) == 8
    back = probe(writer.path)
    assert (back.frame_count, back.fps, back.duration) == (24, 24, 1)
    assert [number_of(frame.rgb) for frame in read_frames(back)] == [i // 3 * 3 for i in range(24)]


@pytest.mark.parametrize("extension", ["webm", "gif"])
def test_pixels_become_square_where_the_aspect_cannot_be_kept(tmp_path, extension):
    clip = probe(make_clip(tmp_path / "in.mp4", size=(96, 64), pixel_aspect=F(4, 3)))
    _, writer = run_through(clip, tmp_path / f"out.{extension}")
    assert probe(writer.path).display_size == (128, 64) == probe(writer.path).size
    assert any("pixels become square" in notice for notice in writer.notices)


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv", "webm", "gif"])
def test_text_is_kept_and_kiwis_comes_back(tmp_path, extension):
    clip = probe(make_clip(tmp_path / "in.mp4", metadata={"title": "Holiday", "comment": "by the sea"}))
    recipe = '{"seed": 5, "text": "make it ünusual"}'
    _, writer = run_through(clip, tmp_path / f"out.{extension}", metadata={"kiwi": recipe})
    found = read_metadata(writer.path)
    assert found["kiwi"] == recipe
    if extension != "gif":
        assert (found["title"], found["comment"]) == ("Holiday", "by the sea")
    # written again, the old recipe makes way for the new
    _, again = run_through(probe(writer.path), tmp_path / f"again.{extension}", metadata={"kiwi": "{}"})
    assert read_metadata(again.path)["kiwi"] == "{}"
    assert recipe not in str(read_metadata(again.path))


def test_a_phones_own_keys_are_kept(tmp_path):
    source = tmp_path / "in.mov"
    with av.open(str(source), "w", container_options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["com.apple.quicktime.make"] = "Apple"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    _, writer = run_through(probe(source), tmp_path / "out.mov", metadata={"kiwi": "{}"})
    found = read_metadata(writer.path)
    assert (found["com.apple.quicktime.make"], found["kiwi"]) == ("Apple", "{}")


def test_a_gif_comes_back_as_a_gif(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=10, fps=F(10)))
    seen, writer = run_through(clip, tmp_path / "out.gif")
    back = probe(writer.path)
    assert (back.frame_count, back.size, back.duration) == (10, clip.size, 1)
    assert np.mean([psnr(a, b.rgb) for a, b in zip(seen, read_frames(back), strict=True)]) > 28
    _, again = run_through(back, tmp_path / "again.gif")
    assert probe(again.path).frame_count == 10


def test_size_is_checked(tmp_path, clip_file):
    clip = probe(clip_file)
    with pytest.raises(ValueError, match="uint8"):
        run_through(clip, tmp_path / "out.mp4", edit=lambda rgb: rgb[:-2])
    assert not (tmp_path / "out.mp4").exists()
    assert Size(1, 2) == (1, 2)
