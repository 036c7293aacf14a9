"""The table of what is kept: docs show it, and a file that holds one of each comes back as it says."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kiwi_cli.video import probe
from kiwi_cli.video.clip import TOP_LEFT, Clip
from kiwi_cli.video.formats import grid_of
from kiwi_cli.video.keeping import COLUMNS, TABLE, as_markdown, fate_of

from ..conftest import ROOT
from .media import run_through

FLAGS = av.stream.Disposition
TIMES = [0, 40, 120, 160, 320, 360, 400, 560]  # milliseconds


def test_the_page_shows_the_table():
    assert as_markdown() in (ROOT / "docs" / "clips.md").read_text(encoding="utf-8")
    assert all(len(row.fates) == len(COLUMNS) and set(row.fates) <= set("kc-") for row in TABLE)


@pytest.fixture(scope="module")
def rich(tmp_path_factory) -> Path:
    """A Matroska file with one of everything that its muxer takes."""
    path = tmp_path_factory.mktemp("rich") / "in.mkv"
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(cover, "JPEG")
    with av.open(str(path), "w", container_options={"default_mode": "passthrough"}) as container:
        container.metadata["title"] = "harbour"
        container.set_chapters(
            [{"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}]
        )
        video = container.add_stream(
            "ffv1", rate=25, width=96, height=64, options={"level": "3", "chroma_sample_location": "topleft"}
        )
        video.pix_fmt = "yuv422p10le"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.colorspace, video.codec_context.color_range = 1, 2
        video.codec_context.color_primaries = video.codec_context.color_trc = 1
        tracks = []
        for language, flag in (("eng", FLAGS.comment), ("deu", FLAGS.default)):
            track = container.add_stream("aac", rate=48_000)
            track.codec_context.layout = "mono"
            track.metadata["language"] = language
            track.disposition = int(flag)
            tracks.append(track)
        words = container.add_mux_stream("subrip")
        words.time_base = Fraction(1, 1000)
        container.add_attachment("cover.jpg", "image/jpeg", cover.getvalue())
        container.add_attachment("notes.txt", "text/plain", b"hello")
        for track in tracks:
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 24_576), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 48_000, 0
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000, frame_size=1024)
            for part in resampler.resample(sound):
                container.mux(track.encode(part))
            container.mux(track.encode(None))
        packet = av.Packet(b"hello")
        packet.pts = packet.dts = 100
        packet.duration, packet.time_base, packet.stream = 200, Fraction(1, 1000), words
        container.mux(packet)
        rng = np.random.default_rng(0)
        for time in TIMES:
            frame = av.VideoFrame(96, 64, "yuv422p10le")
            for plane in frame.planes:
                values = np.frombuffer(memoryview(plane), np.uint16)
                values[:] = rng.integers(300, 700, values.shape)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            frame.colorspace, frame.color_range = 1, 2
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def kinds(clip: Clip) -> list[str]:
    return [stream.kind for stream in clip.other_streams]


def times(clip: Clip) -> list[float]:
    return [round(float(t * clip.time_base), 3) for t in clip.timestamps or ()]


def tags(clip: Clip) -> tuple[int, int]:
    return clip.colour.matrix_tag, clip.colour.transfer_tag


def languages(clip: Clip) -> list[str | None]:
    return [{"ger": "deu"}.get(track.language or "", track.language) for track in clip.audio]  # one language, two codes


MEASURED = {
    "size": lambda a, b: a.size == b.size or a.display_size == b.size,
    "frame times": lambda a, b: times(a) == times(b),
    "colour tags": lambda a, b: (
        (a.colour.matrix_tag, a.colour.transfer_tag) == (b.colour.matrix_tag, b.colour.transfer_tag)
    ),
    "range": lambda a, b: a.colour.full_range == b.colour.full_range and a.colour.matrix == b.colour.matrix,
    "depth": lambda a, b: a.bit_depth <= b.bit_depth,
    "sound": lambda a, b: len(a.audio) == len(b.audio),
    "language and title of a track": lambda a, b: languages(a) == languages(b),
    "which track plays, commentary marks": lambda a, b: (
        [t.disposition & FLAGS.default for t in a.audio] == [t.disposition & FLAGS.default for t in b.audio]
    ),
    "cover picture": lambda a, b: "cover" in kinds(b),
    "attachments": lambda a, b: "attachment" in kinds(b),
    "text": lambda a, b: b.metadata.get("title") == "harbour",
    "chapters": lambda a, b: len(a.chapters) == len(b.chapters),
    "chroma subsampling": lambda a, b: grid_of(a.pixel_format) == grid_of(b.pixel_format),
}


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm", "gif", "folder"])
def test_one_of_each_comes_back_as_the_table_says(tmp_path, rich, container):
    clip = probe(rich)
    assert clip.variable_rate and clip.has_timing and len(clip.chapters) == 1
    assert sorted(set(kinds(clip))) == ["attachment", "cover", "subtitle"]
    _, writer = run_through(clip, tmp_path / ("out" if container == "folder" else f"out.{container}"))
    back = probe(writer.path)
    for kind, kept in MEASURED.items():
        assert kept(clip, back) == (fate_of(kind, container) == "kept"), kind
    said = " ".join(writer.notices)
    for kind, word in (
        ("sound", "sound"),
        ("attachments", "attachment"),
        ("cover picture", "cover"),
        ("chapters", "chapters"),
    ):
        if fate_of(kind, container) == "dropped":
            assert word in said, kind
    assert ("subtitle" in kinds(back)) == (container == "mkv")
    assert "subtitle" in said or container == "mkv"


def test_siting_and_format_with_ffv1(tmp_path, rich):
    clip = probe(rich)
    _, writer = run_through(clip, tmp_path / "out.mkv", codec="ffv1")
    back = probe(writer.path)
    assert (back.pixel_format, back.colour.siting.across) == (clip.pixel_format, TOP_LEFT.across)
    assert back.bit_depth == 10


def test_every_loss_of_the_plan_is_a_row():
    names = {row.kind for row in TABLE}
    from kiwi_cli.video.probing import SIDE_DATA

    assert set(SIDE_DATA.values()) <= names
    assert set(MEASURED) <= names
