"""Files of other programs: raw streams, joined and wrapped transport streams, AVI, trims, damage, padding."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction

import av
import numpy as np
import PIL
import pytest
from PIL import Image

from kiwi_cli.errors import MediaError
from kiwi_cli.video import probe, probing, read_frames, select
from kiwi_cli.video.timeline import frame_times

from .media import Sound, make_clip, number_of, packets, picture, psnr, run_through


def numbers(path, **options) -> list[int]:
    clip = probe(path, **options)
    return [number_of(frame.rgb) for frame in read_frames(clip)]


def remux(source, path, change=None, streams=1, format=None, options=None):
    """Copy a file's packets, after `change(packet)`, which may return False to leave one out."""
    with av.open(str(source)) as given, av.open(str(path), "w", format=format, container_options=options or {}) as out:
        ours = {}
        for stream in given.streams:
            copies = streams if stream.type == "audio" else 1
            ours[stream.index] = [out.add_stream_from_template(stream, opaque=True) for _ in range(copies)]
        for packet in given.demux():
            if not packet.size or (change and change(packet) is False):
                continue
            data, own = bytes(packet), packet.stream.index
            for stream in ours[own]:
                copy = av.Packet(data)
                copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
                copy.time_base, copy.is_keyframe, copy.stream = packet.time_base, packet.is_keyframe, stream
                out.mux(copy)
    return path


@pytest.fixture
def recording(tmp_path):
    """50 numbered frames of H.264 with B-frames, and sound, as a transport stream."""
    return make_clip(tmp_path / "one.ts", frames=50, sound=Sound(seconds=2))


def test_a_clock_that_wraps(tmp_path, recording):
    shift = 2**33 - 90_000

    def late(packet):
        packet.pts += shift
        packet.dts += shift

    source = remux(recording, tmp_path / "in.ts", options={"mpegts_copyts": "1", "muxdelay": "0"}, change=late)
    assert numbers(source) == list(range(50))
    clip = probe(source)
    assert (clip.frame_count, clip.fps, clip.variable_rate) == (50, 25, False)


@pytest.mark.parametrize("sound", [True, False])
def test_recordings_laid_end_to_end(tmp_path, recording, sound):
    (tmp_path / "in.ts").write_bytes(recording.read_bytes() * 3)
    clip = probe(tmp_path / "in.ts")
    assert (clip.frame_count, float(clip.duration)) == (150, 6)
    _, writer = run_through(clip, tmp_path / "out.mp4", sound=sound)
    assert numbers(writer.path) == list(range(50)) * 3
    if sound:
        heard = packets(writer.path, "audio")
        assert abs(float(heard[-1][0] + heard[-1][1]) - 6) < 0.1
        assert sum(float(length) for _, length in heard) > 5.8
    # a span in a later part is that part's
    later = [number_of(f.rgb) for f in read_frames(clip, select(clip, start=4.4, frames=3))]
    assert later == [10, 11, 12]


@pytest.mark.parametrize(("codec", "extension"), [("mjpeg", "avi"), ("prores_ks", "mov")])
def test_a_damaged_packet_costs_one_frame(tmp_path, codec, extension):
    kind = "yuvj420p" if codec == "mjpeg" else "yuv422p10le"
    plain = make_clip(tmp_path / f"plain.{extension}", codec=codec, pixel_format=kind, frames=12)
    data = bytearray(plain.read_bytes())
    with av.open(str(plain)) as container:
        packet = [p for p in container.demux(video=0) if p.size][5]
        position, size = packet.pos, packet.size
    data[position : position + size] = bytes(size)
    source = tmp_path / f"in.{extension}"
    source.write_bytes(data)
    with pytest.raises(MediaError, match="cannot decode"):
        numbers(source)
    clip = probe(source, allow_truncated=True)
    _, writer = run_through(clip, tmp_path / "out.mp4")
    assert numbers(writer.path) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert any("left out: 1 " in note for note in writer.notices)
    assert [round(float(t), 2) for t, _ in packets(writer.path, "video")][-1] == 0.44  # a gap, no shift


@pytest.mark.parametrize("extension", ["mkv", "mp4"])
def test_more_streams_than_anybody_expects(tmp_path, extension):
    plain = make_clip(tmp_path / "plain.mkv", frames=30, sound=Sound("libmp3lame", seconds=1.2))
    source = remux(plain, tmp_path / f"in.{extension}", streams=66)
    assert numbers(source) == list(range(30))
    assert len(probe(source).audio) == 66


def jpegs(path, count):
    data = b""
    for number in range(count):
        file = io.BytesIO()
        Image.fromarray(picture(number, 96, 64)).save(file, "JPEG", quality=95)
        data += file.getvalue()
    path.write_bytes(data)
    return path


def test_motion_jpeg_is_no_picture(tmp_path):
    assert numbers(jpegs(tmp_path / "in.mjpeg", 20)) == list(range(20))
    assert probe(jpegs(tmp_path / "one.jpg", 1)).kind == "image"


def test_a_phones_picture_with_a_second_one_is_a_picture(tmp_path):
    frames = [Image.fromarray(picture(n, 96, 64)) for n in range(2)]
    frames[0].save(tmp_path / "in.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert probe(tmp_path / "in.jpg").kind == "image"


@pytest.mark.parametrize(
    ("extension", "codec", "format"),
    [("h264", "libx264", "h264"), ("hevc", "libx265", "hevc"), ("flv", "flv1", "flv"), ("flv", "libx264", "flv")],
)
def test_streams_that_cannot_be_wound_back(tmp_path, extension, codec, format):
    plain = make_clip(tmp_path / f"plain.{extension}", codec=codec, frames=150, size=(64, 48))
    assert probe(plain).container == format
    assert numbers(plain) == list(range(150))
    clip = probe(plain)
    assert [number_of(f.rgb) for f in read_frames(clip, select(clip, start=5, frames=2))] == [125, 126]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_with_frames_out_of_order(tmp_path, codec):
    options = {"bf": "2", "b": "4M"} if codec == "mpeg4" else {"bf": "2", "crf": "10"}
    source = make_clip(tmp_path / "in.avi", codec=codec, frames=30, options=options, times=None)
    clip = probe(source)
    assert numbers(source) == list(range(30))
    steps = [length for _, length in frame_times(clip)]
    assert set(steps) == {Fraction(1, 25)}
    _, writer = run_through(clip, tmp_path / "out.mp4")
    times = [time for time, _ in packets(writer.path, "video")]
    assert {round(float(b - a), 4) for a, b in itertools.pairwise(times)} == {0.04}
    first = next(read_frames(clip, select(clip, start=0.4, frames=1)))
    assert number_of(first.rgb) == 10


@pytest.mark.parametrize("fps", [1, 5])
def test_frames_dropped_from_a_slow_clip_stay_gaps(tmp_path, fps):
    dropped = {3, 10, 17, 24}
    times = [Fraction(n, fps) for n in range(30) if n not in dropped]
    source = make_clip(
        tmp_path / "in.avi", codec="mjpeg", pixel_format="yuvj420p", fps=Fraction(fps), frames=len(times), times=times
    )
    clip = probe(source)
    assert (clip.variable_rate, clip.duration) == (True, Fraction(30, fps))
    _, writer = run_through(clip, tmp_path / "out.mp4")
    assert [time for time, _ in packets(writer.path, "video")] == times
    assert probe(writer.path).duration == Fraction(30, fps)


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("codec", ["h264", "ffv1"])
def test_a_last_frame_that_is_held(tmp_path, extension, codec):
    if codec == "ffv1" and extension != "mkv":
        pytest.skip("FFV1 goes into Matroska only")
    plain = make_clip(tmp_path / "plain.mp4", codec="mpeg4", frames=10)
    last = max(time for time, _ in packets(plain, "video"))

    def hold(packet):
        if packet.pts * packet.time_base == last:
            packet.duration = round(3 / packet.time_base)

    clip = probe(remux(plain, tmp_path / "in.mp4", hold))
    assert abs(clip.duration - last - 3) < Fraction(1, 100)
    _, writer = run_through(clip, tmp_path / f"out.{extension}", codec=codec)
    assert abs(probe(writer.path).duration - clip.duration) < Fraction(1, 100)
    with av.open(str(writer.path)) as container:
        length = Fraction(container.duration, av.time_base)
        assert abs(length - clip.duration) < Fraction(2, 100)


def test_a_gif_keeps_its_delays_and_loops(tmp_path):
    delays = [100, 200, 50, 70, 1500]
    frames = [Image.fromarray(picture(n, 96, 64)) for n in range(5)]
    for loop in (0, 3, None):
        options = {} if loop is None else {"loop": loop}
        frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:], duration=delays, **options)
        clip = probe(tmp_path / "in.gif")
        run_through(clip, tmp_path / "out.gif", overwrite=True)
        with Image.open(tmp_path / "out.gif") as back:
            assert back.info.get("loop") == loop
            found = []
            for index in range(back.n_frames):
                back.seek(index)
                found.append(back.info["duration"])
        assert found == delays


@pytest.mark.skipif(PIL.__version__.startswith("11.0."), reason="Pillow 11.0 cannot write the file: mended in 11.1")
def test_transparency_that_begins_later_is_seen(tmp_path):
    frames = [Image.fromarray(picture(n, 48, 32)).convert("RGBA") for n in range(3)]
    frames[2].putalpha(Image.fromarray(np.where(np.arange(48 * 32).reshape(32, 48) % 48 < 24, 0, 255).astype(np.uint8)))
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:], duration=40, disposal=2)
    clip = probe(tmp_path / "in.gif")
    assert clip.has_alpha
    assert (list(read_frames(clip))[2].rgb[:, :20] > 240).all()
    opaque = [Image.fromarray(picture(n, 48, 32)) for n in range(3)]
    opaque[0].save(tmp_path / "opaque.gif", save_all=True, append_images=opaque[1:], duration=40)
    assert not probe(tmp_path / "opaque.gif").has_alpha


def test_a_lossless_trim_is_whole(tmp_path):
    plain = make_clip(tmp_path / "plain.mp4", frames=100, options={"g": "250", "crf": "10"})
    # what `ffmpeg -ss 2.4 -i plain.mp4 -c copy` does: times before zero, which an edit list hides
    shift = Fraction(12, 5)

    def earlier(packet):
        packet.pts -= round(shift / packet.time_base)
        packet.dts -= round(shift / packet.time_base)

    source = remux(plain, tmp_path / "in.mp4", earlier)
    assert numbers(source) == list(range(60, 100))


def test_text_behind_the_last_box(tmp_path, clip_file):
    source = tmp_path / "in.mp4"
    source.write_bytes(clip_file.read_bytes() + b"some text that a program left here\n" * 3)
    assert probe(source).frame_count == 12
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip_file.read_bytes()[:-400])
    with pytest.raises(MediaError):
        probe(cut)


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\0\0\0\0"])
def test_an_avi_that_came_through_a_pipe(tmp_path, size):
    plain = make_clip(tmp_path / "plain.avi", codec="mjpeg", pixel_format="yuvj420p", frames=10)
    data = bytearray(plain.read_bytes())
    data[4:8] = size
    at = data.index(b"avih") + 8 + 16
    data[at : at + 4] = b"\0\0\0\x40"  # a placeholder for the number of frames
    at = data.index(b"strh") + 8 + 32
    data[at : at + 4] = b"\0\0\0\x40"
    (tmp_path / "in.avi").write_bytes(data)
    assert numbers(tmp_path / "in.avi") == list(range(10))


def test_a_gif_with_padding(tmp_path):
    frames = [Image.fromarray(picture(n, 96, 64)) for n in range(5)]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:], duration=40)
    with (tmp_path / "in.gif").open("ab") as file:
        file.write(bytes(5000))
    assert probe(tmp_path / "in.gif").frame_count == 5


def test_an_encrypted_clip_is_named(tmp_path, monkeypatch):
    """Also where what is encrypted happens to decode, as it does of one file in some hundred."""
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    plain = make_clip(tmp_path / "plain.mp4")
    encrypted = remux(plain, tmp_path / "in.mp4", options=options)
    with pytest.raises(MediaError, match="encrypted"):
        probe(encrypted)
    monkeypatch.setattr(probing, "is_encrypted", lambda path: False)
    with pytest.raises(MediaError, match="encrypted"):
        probe(encrypted)


@pytest.mark.parametrize("rotation", [0, 90])
def test_what_the_stream_itself_crops_off_stays_off(tmp_path, rotation):
    """At the left side FFmpeg by itself crops by multiples of 32 or 64 pixels alone."""
    whole = make_clip(tmp_path / "whole.mp4", frames=3, size=(128, 96), rotation=rotation)
    options = {"qp": "0", "preset": "ultrafast", "x264-params": "crop-rect=10,8,6,4"}
    path = make_clip(tmp_path / "cropped.mp4", frames=3, size=(128, 96), rotation=rotation, options=options)
    clip = probe(path)
    assert clip.size == ((112, 84) if not rotation else (84, 112))
    seen, writer = run_through(clip, tmp_path / "out.mkv", codec="ffv1")
    shown = [frame.rgb for frame in read_frames(probe(whole))]
    turns = rotation // 90
    for found, expected in zip(seen, shown, strict=True):
        stored = np.rot90(expected, -turns)
        assert psnr(found, np.rot90(stored[8:92, 10:122], turns)) > 30
    assert probe(writer.path).size == clip.size
