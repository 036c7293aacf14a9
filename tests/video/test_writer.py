"""The writer: whole or nothing, bounded, and honest about what it cannot do."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kiwi_cli.errors import KiwiError, MediaError, UsageError
from kiwi_cli.video import Size, available_codecs, check_output, open_writer, probe, read_frames, select
from kiwi_cli.video import codecs as codecs_module
from kiwi_cli.video.clip import Colour
from kiwi_cli.video.codecs import choose_encoding
from kiwi_cli.video.sinks import VideoSink, sane_dts

from .media import Sound, make_clip, make_sequence, run_through


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def chunk(clip, frames: int) -> np.ndarray:
    return np.zeros((frames, clip.height, clip.width, 3), np.uint8)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MediaError])
@pytest.mark.parametrize("output", ["out.mp4", "out.mkv", "out.gif", "out"])
def test_nothing_is_left_when_the_edit_fails(tmp_path, clip_file, error, output):
    clip = probe(clip_file)
    with pytest.raises(error), open_writer(tmp_path / output, clip) as writer:
        writer.write(chunk(clip, 5))
        raise error("stop")
    assert names(tmp_path) == ["clip.mp4"]
    assert not [t for t in threading.enumerate() if t.name == "kiwi-encoder"]


@pytest.mark.parametrize("frames", [0, 5, 11, 13, 40])
def test_a_wrong_number_of_frames_is_an_error(tmp_path, clip_file, frames):
    clip = probe(clip_file)
    with pytest.raises(MediaError, match="edited frames arrived"), open_writer(tmp_path / "out.mp4", clip) as writer:
        for _ in range(frames):
            writer.write(chunk(clip, 1))
    assert names(tmp_path) == ["clip.mp4"]


def test_an_encoder_that_fails_is_heard_while_writing(tmp_path, clip_file, monkeypatch):
    monkeypatch.setattr(VideoSink, "add", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    clip = probe(clip_file)
    with pytest.raises(MediaError, match="no space left") as caught, open_writer(tmp_path / "o.mp4", clip) as writer:
        for _ in range(1000):  # would fill the queue for ever if the thread's end were not noticed
            writer.write(chunk(clip, 1))
    assert "free some space" in caught.value.hint
    assert names(tmp_path) == ["clip.mp4"]


def test_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    clip = probe(make_clip(tmp_path / "clip.mp4", frames=40, size=(320, 240), sound=Sound(seconds=1.6)))
    rng = np.random.default_rng(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for output in ("out.mp4", "out.mkv", "out.webm", "out.gif", "frames"):
        # a file-size limit stops writing where a full disk would (EFBIG for ENOSPC)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with (
                pytest.raises(MediaError, match="no space left"),
                open_writer(tmp_path / output, clip, quality="high" if output != "frames" else None) as writer,
            ):
                for _ in range(40):
                    writer.write(rng.integers(0, 256, (1, 240, 320, 3), np.uint8))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert names(tmp_path) == ["clip.mp4"], output


def test_an_existing_output_is_refused_and_replaced_on_request(tmp_path, clip_file):
    clip = probe(clip_file)
    out = tmp_path / "out.mp4"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="output exists") as caught:
        open_writer(out, clip)
    assert "--overwrite" in caught.value.hint
    with pytest.raises(RuntimeError), open_writer(out, clip, overwrite=True):
        raise RuntimeError
    assert out.read_bytes() == b"mine"
    run_through(clip, out, overwrite=True)
    assert probe(out).frame_count == 12


def test_a_folder_comes_back_when_it_cannot_be_replaced(tmp_path, monkeypatch):
    clip = probe(make_sequence(tmp_path / "in"))
    run_through(clip, tmp_path / "out")
    real = Path.rename

    def failing(self, target):
        if self.name == "out" and target == tmp_path / "out":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(MediaError, match="cannot write"):
        run_through(clip, tmp_path / "out", overwrite=True)
    assert len(list((tmp_path / "out").glob("*.png"))) == 5
    assert names(tmp_path) == ["in", "out"]


def test_a_folder_is_only_replaced_when_it_holds_frames(tmp_path):
    clip = probe(make_sequence(tmp_path / "in"))
    folder = tmp_path / "out"
    run_through(clip, folder)
    run_through(clip, folder, overwrite=True)
    assert len(list(folder.glob("*.png"))) == 5
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="more than frames"):
        run_through(clip, folder, overwrite=True)
    assert (folder / "thesis.txt").exists()
    with pytest.raises(UsageError, match="is a folder, and a file would be written"):
        (tmp_path / "dir.mp4").mkdir()
        run_through(clip, tmp_path / "dir.mp4", overwrite=True)


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        ("out.xyz", UsageError, "format not known"),
        ("nowhere/out.mp4", MediaError, "no such folder"),
    ],
)
def test_outputs_that_cannot_be(tmp_path, output, error, words):
    with pytest.raises(KiwiError, match=words) as caught:
        check_output(tmp_path / output)
    assert caught.value.hint


def test_an_unwritable_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may write anywhere
    with pytest.raises(MediaError, match="not allowed to write"):
        check_output(tmp_path / "out.mp4")


def test_the_writer_waits_rather_than_queue_without_end(tmp_path, monkeypatch):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=30, size=(64, 48)))
    real = VideoSink.add

    def slow(self, *args):
        time.sleep(0.02)
        real(self, *args)

    monkeypatch.setattr(VideoSink, "add", slow)
    deepest = 0
    with open_writer(tmp_path / "out.mp4", clip) as writer:
        for frame in read_frames(clip):
            writer.write(frame.rgb[None])
            deepest = max(deepest, writer._queue.qsize())
    assert deepest <= 2
    assert writer.frames_written == 30


def test_file_permissions_follow_the_umask(tmp_path, clip_file):
    _, writer = run_through(probe(clip_file), tmp_path / "out.mp4")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert writer.path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("extension", "codec", "pixel_format"),
    [
        ("mp4", None, "yuv420p"),
        ("mov", None, "yuv420p"),
        ("mkv", None, "yuv420p"),
        ("webm", None, "yuv420p"),
        ("mp4", "hevc", "yuv420p"),
        ("mp4", "vp9", "yuv420p"),
        ("mp4", "av1", "yuv420p"),
        ("webm", "av1", "yuv420p"),
        ("mov", "prores", "yuv422p10le"),
        ("mkv", "ffv1", "yuv420p"),
    ],
)
def test_codecs(tmp_path, clip_file, extension, codec, pixel_format):
    clip = probe(clip_file)
    _, writer = run_through(clip, tmp_path / f"out.{extension}", codec=codec)
    back = probe(writer.path)
    assert back.codec == (codec or {"webm": "vp9"}.get(extension, "h264"))
    assert (back.pixel_format, back.frame_count, back.size) == (pixel_format, 12, clip.size)
    assert len(list(read_frames(back))) == 12


@pytest.mark.parametrize("codec", ["hevc", "av1", "prores"])
def test_ten_bits_stay_ten_bits_on_request(tmp_path, codec):
    source = make_clip(tmp_path / "in.mp4", codec="libx265", pixel_format="yuv420p10le", colour=(9, 9, 16, 1))
    clip = probe(source)
    _, writer = run_through(clip, tmp_path / "out.mkv", codec=codec)
    back = probe(writer.path)
    assert back.bit_depth == 10
    assert (back.colour.matrix, back.colour.transfer_tag) == ("bt2020", 16)


def test_quality_orders_the_sizes(tmp_path):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=10, size=(320, 240)))
    sizes = []
    for quality in ("low", "medium", "high", "lossless"):
        _, writer = run_through(clip, tmp_path / f"{quality}.mp4", quality=quality)
        sizes.append(writer.path.stat().st_size)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    _, by_number = run_through(clip, tmp_path / "28.mp4", quality="28")
    assert by_number.path.stat().st_size == sizes[0]


@pytest.mark.parametrize(
    ("container", "codec", "quality"),
    [
        ("webm", "h264", None),
        ("mp4", "prores", None),
        ("mp4", "h264", "best"),
        ("mp4", "h264", 99),
        ("mp4", "divx", None),
        ("mov", "prores", "lossless"),
        ("mp4", "av1_lossless", None),
    ],
)
def test_choices_that_do_not_fit(container, codec, quality):
    with pytest.raises(UsageError) as caught:
        choose_encoding(container, codec, quality, Size(64, 64), Colour())
    assert caught.value.hint


def test_hardware_is_used_only_when_it_opens(monkeypatch):
    monkeypatch.setattr(codecs_module, "opens", lambda name: False)
    chosen = choose_encoding("mp4", "h264_nvenc", None, Size(64, 64), Colour())
    assert chosen.encoder == "libx264"
    assert "h264_nvenc cannot be used here" in chosen.notices[0]
    monkeypatch.setattr(codecs_module, "opens", lambda name: True)
    chosen = choose_encoding("mp4", "h264_nvenc", None, Size(64, 64), Colour())
    assert (chosen.encoder, chosen.notices) == ("h264_nvenc", ())
    assert choose_encoding("mp4", None, None, Size(64, 64), Colour()).encoder == "libx264"


def test_available_codecs_are_listed():
    found = available_codecs()
    assert found["libx264"]
    assert "h264_nvenc" in found


def test_odd_sizes_are_written_as_they_are(tmp_path):
    clip = probe(make_sequence(tmp_path / "in", frames=2, size=(53, 39)))
    for output, codec, pixel_format in (
        ("a.mp4", None, "yuv444p"),
        ("b.webm", None, "yuv420p"),
        ("c.mov", "prores", "yuv422p10le"),
        ("d.mkv", "hevc", "yuv444p"),
    ):
        _, writer = run_through(clip, tmp_path / output, codec=codec)
        back = probe(writer.path)
        assert (back.size, back.pixel_format) == ((53, 39), pixel_format)
        assert ("odd side" in " ".join(writer.notices)) == (pixel_format == "yuv444p")


def test_a_plan_alone_writes_nothing(tmp_path, clip_file):
    clip = probe(clip_file)
    writer = open_writer(tmp_path / "out.webm", clip, select(clip, frames=3))
    assert any("encoded again" in notice for notice in writer.notices)
    assert names(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize(
    ("shown", "dts", "expected"),
    [
        ([0, 1536, 512, 1024], [-1024, -512, 0, 512], [-1024, -512, 0, 512]),  # as it should be
        ([0, 512], [140_000_000_000, 1 << 62], [0, 512]),
        ([0, 512], [-140_000_000_000, -(1 << 62)], [0, 512]),
        ([900, 1412], [300, 900], [900, 1412]),
        ([0, 512], [0, 0], [0, 512]),
    ],
)
def test_decoding_times_that_are_none(shown: list[int], dts: list[int], expected: list[int]):
    """Of whichever sign: later than the picture, earlier than any could be needed, or not after the one before."""
    before, found = None, []
    for pts, given in zip(shown, dts, strict=True):
        before = sane_dts(SimpleNamespace(pts=pts, dts=given), min(shown), max(shown), before)
        found.append(before)
    assert found == expected


@pytest.mark.parametrize(("extension", "frames"), [("mp4", 1), ("mp4", 2), ("mkv", 2)])
def test_hevc_of_few_frames(tmp_path, extension, frames):
    clip = probe(make_clip(tmp_path / "in.mp4", frames=frames, size=(64, 64)))
    run_through(clip, tmp_path / f"out.{extension}", codec="hevc", quality="low")
    found = probe(tmp_path / f"out.{extension}")
    assert (found.frame_count, found.duration) == (frames, clip.duration)
