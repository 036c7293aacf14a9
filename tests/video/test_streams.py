"""Sound of every codec into every container, and what else comes along: subtitles, covers, flags, attachments."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from kiwi_cli.errors import MediaError
from kiwi_cli.video import open_writer, probe, select
from kiwi_cli.video.opening import open_media

from .media import Sound, make_clip, make_sequence, packets, run_through

CODECS = {
    "aac": "mkv",
    "libopus": "mkv",
    "vorbis": "mkv",
    "flac": "mkv",
    "alac": "mov",
    "ac3": "mkv",
    "eac3": "mkv",
    "libmp3lame": "mkv",
    "mp2": "mpg",
    "pcm_s16le": "mov",
    "pcm_s16be": "mov",
    "pcm_s24le": "mov",
    "pcm_f32le": "mkv",
    "pcm_u8": "avi",
    "pcm_alaw": "mov",
    "pcm_mulaw": "mov",
    "pcm_dvd": "mpg",
    "pcm_bluray": "m2ts",
    "aac_latm": "ts",
    "adpcm_ima_wav": "avi",
    "adpcm_ima_qt": "mov",
    "adpcm_ms": "avi",
    "wmav2": "asf",
}


def sounding(path, codec, layout="stereo", rate=48_000, seconds=1.0):
    """A clip with a loud tone from 0.5 s on. Skips where this build of the library cannot make it."""
    video = "mpeg2video" if path.suffix in (".mpg", ".m2ts", ".ts") else "mpeg4"
    try:
        latm = {"mpegts_flags": "latm"} if codec == "aac_latm" else {}
        with av.open(str(path), "w", container_options=latm) as container:
            stream = container.add_stream(video, rate=25, width=64, height=48)
            stream.pix_fmt = "yuv420p"
            audio = container.add_stream(codec.removesuffix("_latm"), rate=rate, options={"strict": "experimental"})
            context = audio.codec_context
            context.bit_rate = 128_000
            context.layout = layout
            total = round(seconds * rate)
            t = np.arange(total) / rate
            wave = (0.7 * (t >= 0.5) * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
            channels = context.layout.nb_channels
            frame = av.AudioFrame.from_ndarray(np.repeat(wave, channels).reshape(1, -1), format="flt", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            for number in range(round(seconds * 25)):
                picture = av.VideoFrame(64, 48, "yuv420p")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
            container.start_encoding()
            resampler = av.AudioResampler(
                format=context.format.name, layout=layout, rate=rate, frame_size=context.frame_size or 1024
            )
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(audio.encode(part))
            container.mux(audio.encode(None))
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"this build of the library does not make {codec} in {path.suffix}: {error}")
    return path


def loud_from(path) -> float:
    """Seconds until the tone begins, by the times of the decoded sound."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            # packed: PyAV cannot take eight planar channels apart
            resampler = av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate)
            heard = np.concatenate([p.to_ndarray()[0] for p in (*resampler.resample(frame), *resampler.resample(None))])
            if (np.abs(heard) > 0.2).any():
                return float(frame.pts * frame.time_base) + int(np.argmax(np.abs(heard) > 0.2)) / frame.sample_rate
    raise AssertionError("no tone")


@pytest.mark.parametrize("codec", CODECS)
def test_every_sound_goes_into_every_container(tmp_path, codec):
    source = sounding(tmp_path / f"in.{CODECS[codec]}", codec)
    clip = probe(source)
    assert len(clip.audio) == 1
    for extension in ("mp4", "mov", "mkv", "webm"):
        _, writer = run_through(clip, tmp_path / f"out.{extension}", select(clip, frames=1), keep_rest=True)
        assert len(probe(writer.path).audio) == 1, extension
        assert abs(loud_from(writer.path) - loud_from(source) + float(clip.start)) < 0.03, extension


@pytest.mark.parametrize(
    ("codec", "before", "after"),
    [
        ("pcm_s16le", "mov", "mp4"),
        ("pcm_s16le", "mov", "webm"),
        ("aac", "mp4", "webm"),
        ("libopus", "mkv", "mov"),
        ("aac", "mp4", "mp4"),
        ("pcm_s16le", "mov", "mkv"),
    ],
)
def test_eight_channels(tmp_path, codec, before, after):
    source = sounding(tmp_path / f"in.{before}", codec, layout="7.1", seconds=1)
    _, writer = run_through(probe(source), tmp_path / f"out.{after}")
    assert probe(writer.path).audio[0].channels == 8
    assert abs(loud_from(writer.path) - 0.5) < 0.03


def test_slow_mp3_into_mp4(tmp_path):
    clip = probe(sounding(tmp_path / "in.mkv", "libmp3lame", layout="mono", rate=11_025))
    _, writer = run_through(clip, tmp_path / "out.mp4")
    assert probe(writer.path).audio[0].codec == "aac"
    assert any("encoded again: mp3" in note for note in writer.notices)


def without_packets(source, path, begin, end):
    """A copy without the sound's packets between two times, seconds."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        streams = {s.index: container.add_stream_from_template(s, opaque=True) for s in given.streams}
        for packet in given.demux():
            if packet.size and not (packet.stream.type == "audio" and begin < packet.pts * packet.time_base < end):
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    return path


@pytest.mark.parametrize("extension", ["mp4", "mov", "webm", "mkv"])
@pytest.mark.parametrize("codec", ["vorbis", "libopus", "pcm_s16le"])
def test_a_hole_in_the_sound_stays_a_hole(tmp_path, codec, extension):
    whole = sounding(tmp_path / "whole.mkv", codec, seconds=2)
    source = without_packets(whole, tmp_path / "in.mkv", 0.1, 0.4)
    _, writer = run_through(probe(source), tmp_path / f"out.{extension}")
    assert abs(loud_from(writer.path) - loud_from(whole)) < 0.03
    # by the times of the packets too, as a player that follows them hears it
    length = sum(float(length) for _, length in packets(writer.path, "audio"))
    last = packets(writer.path, "audio")[-1]
    assert abs(float(last[0] + last[1]) - 2) < 0.05
    copied = probe(source).audio[0].codec == probe(writer.path).audio[0].codec
    assert length > 1.6 if copied else abs(length - 2) < 0.05


def late_sound(path, seconds):
    """A clip whose sound begins late."""
    whole = sounding(path.with_name("whole.mkv"), "pcm_s16le")
    with av.open(str(whole)) as given, av.open(str(path), "w") as container:
        streams = {s.index: container.add_stream_from_template(s, opaque=True) for s in given.streams}
        for packet in given.demux():
            if packet.size:
                if packet.stream.type == "audio":
                    packet.pts += seconds * 1000
                    packet.dts += seconds * 1000
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    return path


def test_sound_that_begins_two_hours_late(tmp_path):
    clip = probe(late_sound(tmp_path / "in.mkv", 7200))
    _, writer = run_through(clip, tmp_path / "out.mp4")
    last = packets(writer.path, "audio")[-1]
    assert abs(float(last[0]) - 7201) < 0.1


def subtitled(path, codec="subrip", **flags):
    """3 s of picture with three subtitles, at 0.2 to 0.6, 1.0 to 1.8 and 2.2 to 2.6 s."""
    plain = make_clip(path.with_name("plain.mp4"), frames=75)
    texts = [(0.2, 0.4, "one"), (1.0, 0.8, "two"), (2.2, 0.4, "three")]
    with av.open(str(plain)) as given, av.open(str(path), "w") as container:
        video = container.add_stream_from_template(given.streams.video[0], opaque=True)
        subtitles = container.add_mux_stream(codec) if codec == "subrip" else container.add_stream(codec)
        subtitles.time_base = Fraction(1, 1000)
        subtitles.metadata["language"] = "fra"
        for packet in given.demux():
            if packet.size:
                packet.stream = video
                container.mux(packet)
        for begin, length, text in texts:
            packet = av.Packet(text.encode() if codec == "subrip" else len(text).to_bytes(2, "big") + text.encode())
            packet.pts = packet.dts = round(begin * 1000)
            packet.duration, packet.time_base = round(length * 1000), Fraction(1, 1000)
            packet.stream = subtitles
            container.mux(packet)
    return path


def texts_of(path) -> list[tuple[float, float, str]]:
    found = []
    with open_media(path) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            if packet.size > 2:
                text = bytes(packet).decode("utf-8", "replace").lstrip("\0\3\5")
                begin, length = packet.pts * packet.time_base, packet.duration * packet.time_base
                found.append((round(float(begin), 2), round(float(length), 2), text))
    return found


def test_subtitles_are_copied(tmp_path):
    source = subtitled(tmp_path / "in.mkv")
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / "out.mkv")
    assert texts_of(writer.path) == [(0.2, 0.4, "one"), (1.0, 0.8, "two"), (2.2, 0.4, "three")]
    assert probe(writer.path).other_streams[0].language == "fra"
    assert not any("not kept" in note for note in writer.notices)


def test_subtitles_move_with_the_span(tmp_path):
    clip = probe(subtitled(tmp_path / "in.mkv"))
    _, writer = run_through(clip, tmp_path / "out.mkv", select(clip, start=1.4, duration=1))
    assert texts_of(writer.path) == [(0.0, 0.4, "two"), (0.8, 0.2, "three")]


def test_subtitles_that_do_not_fit_are_named(tmp_path):
    clip = probe(subtitled(tmp_path / "in.mkv"))
    notices = open_writer(tmp_path / "out.mp4", clip).notices
    assert any("not kept: subtitle streams" in note and ".mkv does" in note for note in notices)


FLAGS = av.stream.Disposition


@pytest.mark.parametrize(("before", "after"), [("mkv", "mkv"), ("mkv", "mp4"), ("mp4", "mp4"), ("mp4", "mkv")])
def test_the_language_that_plays_stays(tmp_path, before, after):
    plain = make_clip(tmp_path / "plain.mp4", sound=(Sound(seconds=0.3), Sound(seconds=0.3)))
    source = tmp_path / f"in.{before}"
    with (
        av.open(str(plain)) as given,
        av.open(
            str(source), "w", container_options={"default_mode": "passthrough"} if before == "mkv" else {}
        ) as container,
    ):
        streams = {}
        for stream in given.streams:
            streams[stream.index] = container.add_stream_from_template(stream, opaque=True)
        streams[1].disposition, streams[2].disposition = int(FLAGS.comment), int(FLAGS.default)
        streams[1].metadata["language"], streams[2].metadata["language"] = "eng", "deu"
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    clip = probe(source)
    wanted = [(track.language, track.disposition) for track in clip.audio]
    assert wanted[1][1] & FLAGS.default and not wanted[0][1] & FLAGS.default
    _, writer = run_through(clip, tmp_path / f"out.{after}")
    found = [(track.language, track.disposition) for track in probe(writer.path).audio]
    assert [flags & FLAGS.default for _, flags in found] == [flags & FLAGS.default for _, flags in wanted]
    assert [language for language, _ in found] == ["eng", "deu"]
    if "mkv" in (before, after) and after == "mkv":
        assert [flags & FLAGS.comment for _, flags in found] == [flags & FLAGS.comment for _, flags in wanted]


def covered(path):
    """A clip with a cover picture."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    plain = make_clip(path.with_name("plain.mp4"), sound=Sound(seconds=0.3))
    with av.open(str(plain)) as given, av.open(str(path), "w") as container:
        streams = {s.index: container.add_stream_from_template(s, opaque=True) for s in given.streams}
        if path.suffix == ".mkv":
            container.add_attachment("cover.jpg", "image/jpeg", file.getvalue())
            container.add_attachment("notes.txt", "text/plain", b"hello")
        else:
            cover = container.add_mux_stream("mjpeg", width=32, height=32)
            cover.disposition = int(FLAGS.attached_pic)
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
        if path.suffix != ".mkv":
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts = cover, 0, 0
            container.mux(packet)
    return path


@pytest.mark.parametrize("before", ["mp4", "mkv"])
@pytest.mark.parametrize("after", ["mp4", "mkv"])
def test_a_cover_comes_along(tmp_path, before, after):
    clip = probe(covered(tmp_path / f"in.{before}"))
    assert [s.kind for s in clip.other_streams if s.kind == "cover"] == ["cover"]
    _, writer = run_through(clip, tmp_path / f"out.{after}")
    back = probe(writer.path)
    assert (back.frame_count, [s.kind for s in back.other_streams if s.kind == "cover"]) == (8, ["cover"])
    notes = [s for s in back.other_streams if s.kind == "attachment"]
    if before == "mkv":
        assert bool(notes) == (after == "mkv")
        assert any("attachment" in note for note in writer.notices) == (after != "mkv")
    for other in ("webm", "mov"):
        assert any("cover" in note for note in open_writer(tmp_path / f"o.{other}", clip).notices)


def test_a_second_picture_is_named(tmp_path):
    plain = make_clip(tmp_path / "plain.mp4")
    with av.open(str(plain)) as given, av.open(str(tmp_path / "in.mkv"), "w") as container:
        streams = [container.add_stream_from_template(given.streams.video[0], opaque=True) for _ in range(2)]
        for stream in streams:
            given.seek(0)
            for packet in given.demux():
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    notices = open_writer(tmp_path / "out.mkv", probe(tmp_path / "in.mkv")).notices
    assert any("second video" in note for note in notices)


def two_segments(path, seconds, gap):
    """Give the sound of an MP4 (its boxes behind the data) an edit list that skips `gap` seconds in the middle."""
    data = bytearray(path.read_bytes())

    def find(name, begin, end):
        while begin < end:
            size, kind = struct.unpack(">I4s", data[begin : begin + 8])
            if kind == name:
                return begin
            begin += size
        raise AssertionError(name)

    def inside(box):
        return box + 8, box + struct.unpack(">I", data[box : box + 4])[0]

    moov = find(b"moov", 0, len(data))
    trak = find(b"trak", *inside(moov))
    trak = find(b"trak", trak + struct.unpack(">I", data[trak : trak + 4])[0], inside(moov)[1])  # the second: sound
    edts = find(b"edts", *inside(trak))
    elst = find(b"elst", *inside(edts))
    duration, media, rate = struct.unpack(">IiI", data[elst + 16 : elst + 28])
    per_second = duration / seconds
    half = round(duration / 2)
    skipped = media + round((seconds / 2 + gap) * 48_000)
    entries = struct.pack(">IiI", half, media, rate) + struct.pack(
        ">IiI", half - round(gap * per_second), skipped, rate
    )
    data[elst + 12 : elst + 28] = struct.pack(">I", 2) + entries
    for box in (elst, edts, trak, moov):
        struct.pack_into(">I", data, box, struct.unpack(">I", data[box : box + 4])[0] + 12)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("extension", ["mp4", "mkv", "webm"])
def test_sound_in_two_segments(tmp_path, extension):
    source = two_segments(make_clip(tmp_path / "in.mp4", frames=50, sound=Sound(seconds=2)), 2, 0.5)
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / f"out.{extension}")
    heard = packets(writer.path, "audio")
    assert abs(float(heard[-1][0] + heard[-1][1]) - 1.5) < 0.08
    assert all(b[0] > a[0] for a, b in itertools.pairwise(heard))


def test_an_encoder_that_does_not_start_is_heard_in_the_plan(tmp_path):
    """x265 takes no picture this small: that must come out before a model is asked."""
    clip = probe(make_sequence(tmp_path / "in", size=(2, 2), frames=2))
    with pytest.raises(MediaError, match=r"cannot write .*libx265"):
        open_writer(tmp_path / "out.mp4", clip, codec="hevc")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
