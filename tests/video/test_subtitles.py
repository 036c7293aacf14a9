"""Subtitles through the real muxers: every codec into every container that takes it, whole and cut."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kiwi_cli.video import open_writer, probe, select
from kiwi_cli.video.keeping import fate_of
from kiwi_cli.video.streams import _SUBTITLES as TAKEN

from .media import make_clip, run_through

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: it makes the files")

SRT = """1
00:00:00,200 --> 00:00:00,600
one

2
00:00:01,000 --> 00:00:01,800
two

3
00:00:02,200 --> 00:00:02,600
three
"""
SOURCES = {"subrip": "mkv", "ass": "mkv", "webvtt": "webm", "mov_text": "mp4", "mov_text in mov": "mov"}
CONTAINERS = ("mp4", "mov", "mkv", "webm")


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, timeout=60)


def events_of(path: Path) -> list[tuple[float, float]]:
    """(begin, end) of each subtitle that is not empty, seconds, as ffprobe reads them."""
    command = ["ffprobe", "-v", "error", "-select_streams", "s:0", "-show_packets", "-of", "json", str(path)]
    packets = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["packets"]
    shown = [packet for packet in packets if int(packet["size"]) > 2]  # mov_text has empty ones between
    times = [(float(packet["pts_time"]), float(packet["duration_time"])) for packet in shown]
    return [(round(begin, 2), round(begin + length, 2)) for begin, length in times]


def words_of(path: Path) -> str:
    """The text as FFmpeg writes it to SubRip."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:s:0", "-f", "srt", "-"]
    return subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """3 s of picture with three subtitles, at 0.2 to 0.6, 1.0 to 1.8 and 2.2 to 2.6 s, in each codec."""
    folder = tmp_path_factory.mktemp("subtitles")
    (folder / "three.srt").write_text(SRT)
    plain = {
        "webm": make_clip(folder / "plain.webm", frames=75, size=(64, 48), codec="libvpx-vp9"),
        "mp4": make_clip(folder / "plain.mp4", frames=75, size=(64, 48)),
    }
    made = {}
    for name, container in SOURCES.items():
        made[name] = folder / f"{name.replace(' ', '-')}.{container}"
        picture = plain.get(container, plain["mp4"])
        coded = ("-c:v", "copy", "-c:s", name.split()[0], "-metadata:s:s:0", "language=fra", made[name])
        ffmpeg("-i", picture, "-i", folder / "three.srt", "-map", "0:v", "-map", "1", *coded)
    return made


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", SOURCES)
def test_every_codec_into_every_container(name: str, container: str, sources: dict[str, Path], tmp_path: Path) -> None:
    clip = probe(sources[name])
    span = select(clip, start=1.4, duration=1)
    if name.split()[0] not in TAKEN[container]:
        notices = open_writer(tmp_path / f"out.{container}", clip).notices
        assert any("not kept: subtitle streams" in note for note in notices)
        return
    assert fate_of("subtitles", container) == "kept"
    _, whole = run_through(clip, tmp_path / f"whole.{container}")
    assert events_of(whole.path) == [(0.2, 0.6), (1.0, 1.8), (2.2, 2.6)]
    assert words_of(whole.path) == words_of(sources[name]) and probe(whole.path).other_streams[0].language == "fra"
    _, part = run_through(clip, tmp_path / f"part.{container}", span)
    assert events_of(part.path) == [(0.0, 0.4), (0.8, 1.0)]
    assert not any("not kept" in note for note in [*whole.notices, *part.notices])
