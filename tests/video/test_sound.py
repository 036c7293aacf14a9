"""The clip's sound: copied, encoded again, cut, and in step."""

from __future__ import annotations

import av
import numpy as np
import pytest

from kiwi_cli.video import probe, select

from .media import Sound, make_clip, packets, run_through, samples


def packet_bytes(path, index: int = 0) -> list[bytes]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[index]
        return [bytes(packet) for packet in container.demux(stream) if packet.size]


def lag(a: np.ndarray, b: np.ndarray, rate: int) -> float:
    """Seconds by which b comes after a, from the peak of their correlation."""
    length = min(len(a), len(b))
    a, b = a[:length] - a[:length].mean(), b[:length] - b[:length].mean()
    spectrum = np.fft.rfft(b, 2 * length) * np.conj(np.fft.rfft(a, 2 * length))
    peak = int(np.argmax(np.fft.irfft(spectrum)))
    return (peak if peak < length else peak - 2 * length) / rate


def chirp(path, seconds: float, fps: int = 25, codec: str = "aac", frames: int = 50, extension: str = ""):
    """A clip whose sound sweeps upwards, so that every moment of it is different."""
    rate = 48_000
    t = np.arange(int(seconds * rate)) / rate
    wave = (0.6 * np.sin(2 * np.pi * (200 * t + 400 * t**2))).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream(codec, rate=rate)
        audio.codec_context.layout = "stereo"
        for _ in range(frames):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode(None))
        resampler = av.AudioResampler(
            format=audio.codec_context.format.name, layout="stereo", rate=rate, frame_size=1024
        )
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "before", "after"),
    [
        ("aac", "mp4", "mp4"),
        ("aac", "mp4", "mov"),
        ("aac", "mp4", "mkv"),
        ("aac", "mkv", "mp4"),
        ("libopus", "webm", "webm"),
        ("libopus", "mkv", "mp4"),
        ("pcm_s16le", "mov", "mov"),
        ("ac3", "ts", "mp4"),
        ("flac", "mkv", "mkv"),
        ("libmp3lame", "mp4", "mp4"),
    ],
)
def test_sound_is_copied_where_the_container_takes_it(tmp_path, codec, before, after):
    video = "libvpx-vp9" if before == "webm" else "libx264"
    source = make_clip(tmp_path / f"in.{before}", codec=video, frames=12, sound=Sound(codec, seconds=0.48))
    _, writer = run_through(probe(source), tmp_path / f"out.{after}")
    was, now = packet_bytes(source), packet_bytes(writer.path)
    # Matroska cannot say that MP4's first packet is for settling, and has no time before zero
    assert now == (was[1:] if (before, after) == ("mp4", "mkv") else was)
    assert not any("sound" in notice for notice in writer.notices)


@pytest.mark.parametrize(
    ("codec", "before", "after", "becomes"),
    [
        ("aac", "mp4", "webm", "opus"),
        ("pcm_s16le", "mov", "mp4", "aac"),
        ("libopus", "webm", "mov", "aac"),
        ("flac", "mkv", "mov", "aac"),
    ],
)
def test_sound_is_encoded_again_where_it_does_not(tmp_path, codec, before, after, becomes):
    video = "libvpx-vp9" if before == "webm" else "libx264"
    source = make_clip(tmp_path / f"in.{before}", codec=video, frames=12, sound=Sound(codec, seconds=0.48))
    _, writer = run_through(probe(source), tmp_path / f"out.{after}")
    track = probe(writer.path).audio[0]
    assert (track.codec, track.channels) == (becomes, 2)
    assert any("encoded again" in notice for notice in writer.notices)
    heard, rate, start = samples(writer.path)
    assert abs(len(heard) / rate - 0.48) < 0.03
    assert abs(start) < 0.01


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
@pytest.mark.parametrize("extension", ["mp4", "webm"])
def test_channels_are_kept(tmp_path, layout, channels, extension):
    source = make_clip(tmp_path / "in.mp4", frames=12, sound=Sound(layout=layout, seconds=0.48))
    _, writer = run_through(probe(source), tmp_path / f"out.{extension}")
    assert probe(writer.path).audio[0].channels == channels


def test_no_sound_stays_no_sound(tmp_path):
    _, writer = run_through(probe(make_clip(tmp_path / "in.mp4")), tmp_path / "out.mp4")
    assert probe(writer.path).audio == ()
    assert writer.notices == []


@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_sound_shorter_or_longer_than_the_picture_keeps_its_length(tmp_path, seconds):
    source = make_clip(tmp_path / "in.mp4", frames=25, sound=Sound(seconds=seconds))
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / "out.mp4")
    back = probe(writer.path)
    assert (back.frame_count, back.duration) == (25, 1)
    assert back.audio[0].duration == clip.audio[0].duration
    assert packet_bytes(writer.path) == packet_bytes(source)


def test_two_tracks_are_kept(tmp_path):
    source = make_clip(tmp_path / "in.mp4", sound=(Sound(seconds=0.3), Sound("ac3", "5.1", seconds=0.3)))
    _, writer = run_through(probe(source), tmp_path / "out.mp4")
    assert [track.codec for track in probe(writer.path).audio] == ["aac", "ac3"]
    assert packet_bytes(writer.path, 1) == packet_bytes(source, 1)


@pytest.mark.parametrize(
    ("extension", "codec", "becomes"),
    [("mp4", "aac", "mp4"), ("mp4", "aac", "mkv"), ("mp4", "aac", "webm"), ("mkv", "flac", "mp4")],
)
@pytest.mark.parametrize("whole", [True, False])
def test_sound_stays_in_step(tmp_path, extension, codec, becomes, whole):
    source = chirp(tmp_path / f"in.{extension}", 2.0, codec=codec)
    clip = probe(source)
    span = select(clip) if whole else select(clip, start=0.8, frames=20)
    _, writer = run_through(clip, tmp_path / f"out.{becomes}", span)
    heard, rate, start = samples(writer.path)
    wanted, _, _ = samples(source)
    if not whole:
        wanted = wanted[round(0.8 * rate) : round(1.6 * rate)]
        assert abs(float(start) + len(heard) / rate - 0.8) < 0.045  # two packets
    shift = lag(wanted, heard, rate) + float(start)
    assert abs(shift) < 0.002
    assert probe(writer.path).frame_count == (50 if whole else 20)


def test_cut_sound_is_cut_at_both_ends(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=75, sound=Sound(seconds=3)))
    _, writer = run_through(clip, tmp_path / "out.mp4", select(clip, start=1, duration=1))
    times = packets(writer.path, "audio")
    assert -0.022 < times[0][0] <= 0
    assert 0.978 < times[-1][0] + times[-1][1] < 1.022


def test_cut_to_the_end_keeps_the_sound_that_outlasts_the_picture(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=25, sound=Sound(seconds=2)))
    _, writer = run_through(clip, tmp_path / "out.mp4", select(clip, start=0.4))
    times = packets(writer.path, "audio")
    assert abs(times[-1][0] + times[-1][1] - 1.6) < 0.022


def test_seeking_cuts_the_same_sound(tmp_path):
    source = chirp(tmp_path / "in.mp4", 8.0, frames=200)
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / "out.mp4", select(clip, start=6, frames=25))
    heard, rate, start = samples(writer.path)
    wanted = samples(source)[0][6 * rate : 7 * rate]
    assert abs(lag(wanted, heard, rate) + float(start)) < 0.002


@pytest.mark.parametrize("extension", ["gif", ""])
def test_dropped_sound_is_said(tmp_path, clip_file, extension):
    _, writer = run_through(probe(clip_file), tmp_path / (f"out.{extension}" if extension else "out"))
    assert any("sound is dropped" in notice for notice in writer.notices)


def test_sound_can_be_left_out(tmp_path, clip_file):
    _, writer = run_through(probe(clip_file), tmp_path / "out.mp4", sound=False)
    assert probe(writer.path).audio == ()
    assert any("left out" in notice for notice in writer.notices)
