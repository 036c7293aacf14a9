"""Damaged clips that can be read all the same: what they lack is said, in the notes, in --json and in the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from kiwi_cli.editing import record
from kiwi_cli.video import probe
from kiwi_cli.video.damage import Damage, lost_frames, unkept_promise

from .. import fakes
from .media import Sound, make_clip, run_through

H264 = {"crf": "10", "preset": "ultrafast", "bf": "2", "g": "10"}
MIDDLE = "the file ends in the middle of a packet"


def clip_as(path: Path, sound: bool = True) -> Path:
    """Two seconds, 50 frames, in the container of its extension."""
    older = {"flv": ("flv1", "libmp3lame", 44_100), "mpg": ("mpeg2video", "mp2", 48_000)}
    codec, voice, rate = older.get(path.suffix[1:], ("libx264", "aac", 48_000))
    tracks = (Sound(voice, seconds=2, rate=rate),) if sound else ()
    options = H264 if codec == "libx264" else {}
    return make_clip(path, frames=50, size=(160, 120), sound=tracks, codec=codec, options=options)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) // 188 * 188 + 100])


def spoiled(path: Path, change: Callable[[bytearray, int], None]) -> None:
    """Change transport packets of the picture in the second half of a file: those that no packet's start is in."""
    data = bytearray(path.read_bytes())
    of_picture = [
        at
        for at in range(len(data) // 376 * 188, len(data), 188)
        if (data[at + 1] & 0x5F, data[at + 2]) == (0x01, 0x00) and data[at + 3] & 0x20 == 0
    ]
    assert len(of_picture) > 6
    for at in of_picture[2:5]:
        change(data, at)
    path.write_bytes(data)


@pytest.mark.parametrize("extension", ["ts", "m2ts", "mpg"])
def test_a_recording_that_was_cut_off(tmp_path: Path, extension: str) -> None:
    whole = clip_as(tmp_path / f"clip.{extension}")
    assert probe(whole).damage == ()
    cut(whole, 0.6)
    clip = probe(whole)
    assert clip.frame_count < 50 and any(MIDDLE in line for line in clip.damage) and set(clip.damage) <= {*clip.notices}


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_file_that_is_shorter_than_its_header_says(tmp_path: Path, share: float) -> None:
    whole = clip_as(tmp_path / "clip.flv")
    assert probe(whole).damage == ()
    cut(whole, share)
    clip = probe(whole)
    assert any("the file ends early" in line and "of the 2.0" in line for line in clip.damage) and clip.frame_count < 50


def lose(data: bytearray, at: int) -> None:
    data[at : at + 188] = b"\x47\x1f\xff\x10" + bytes(184)  # an empty packet takes its place


def blank(data: bytearray, at: int) -> None:
    data[at + 8 : at + 180] = bytes(172)


@pytest.mark.parametrize("change", [lose, blank])
def test_frames_that_the_decoder_mends_are_counted(tmp_path: Path, change: Callable[[bytearray, int], None]) -> None:
    """In the notes, what `--json` prints, the file's own record and the sidecar."""
    source = clip_as(tmp_path / "clip.ts", sound=False)
    spoiled(source, change)
    clip = probe(source)
    lost = any(line.startswith("damaged: ") and "packets of the picture" in line for line in clip.damage)
    assert lost == (change is lose)
    output = tmp_path / "out.mp4"
    result = fakes.edit(source, output, sidecar=True)
    (mended,) = [line for line in result.notices if "the decoder filled in what is missing" in line]
    assert result.frames == 50
    for settings in (
        result.settings,
        record.read_settings(output)[0],
        json.loads((tmp_path / "out.mp4.json").read_text()),
    ):
        assert settings["damaged"] == [*clip.damage, mended]


def test_a_sound_clip_has_no_damage_in_its_record(tmp_path: Path) -> None:
    source = clip_as(tmp_path / "clip.ts")
    result = fakes.edit(source, tmp_path / "out.mp4")
    assert "damaged" not in result.settings
    assert tuple(result.notices) == fakes.plan(source, tmp_path / "other.mp4").notices


def test_damage_that_shows_while_windows_are_edited_is_in_the_sidecar(tmp_path: Path) -> None:
    source = clip_as(tmp_path / "clip.ts", sound=False)
    spoiled(source, blank)
    more = {"model": "tiny", "windows": "independent", "detail": "model", "force": True}
    result = fakes.edit(source, tmp_path / "out.mp4", sidecar=True, **more)
    assert "windows of" in str(result.settings["worked"])
    assert "filled in" in str(json.loads((tmp_path / "out.mp4.json").read_text())["damaged"])


def test_a_packet_of_the_sound_whose_header_is_gone_is_left_out(tmp_path: Path) -> None:
    """It was the end of the whole output: no AAC in MPEG-4 without its header."""
    source = clip_as(tmp_path / "clip.ts")
    data = bytearray(source.read_bytes())
    middle = len(data) // 376 * 188
    first = next(at for at in range(middle, len(data), 188) if data[at + 1 : at + 3] == b"\x41\x01")
    data[first + 20 : first + 180] = bytes(160)
    source.write_bytes(data)
    _, writer = run_through(probe(source), tmp_path / "out.mp4")
    assert any(line.startswith("damaged and left out: ") and "of the sound" in line for line in writer.notices)
    assert len(probe(writer.path).audio) == 1 and probe(writer.path).frame_count == 50


def test_a_hole_in_a_clip_that_is_even_elsewhere(tmp_path: Path) -> None:
    """Matroska says nothing where a part of it could not be read."""
    times = [Fraction(k, 25) for k in range(40) if not 16 < k < 28]
    clip = probe(make_clip(tmp_path / "clip.mkv", frames=len(times), times=times))
    assert clip.damage == ("11 frames are missing after 0.64 s: the one before stays until 1.12 s",)
    in_mp4 = probe(make_clip(tmp_path / "clip.mp4", frames=len(times), times=times))
    assert in_mp4.damage == ()  # there an index says how long each frame stays


def test_a_variable_rate_is_no_damage() -> None:
    phone = [Fraction(k * k, 500) for k in range(50)]
    slides = [Fraction(t) for t in (0, 3, 6, 11, 12, 20, 21, 22, 30, 31)]
    assert lost_frames("matroska,webm", phone) == lost_frames("matroska,webm", slides) == []
    assert unkept_promise("flv", Fraction(10), Fraction(99, 10), Fraction(25)) == []
    assert unkept_promise("flv", None, Fraction(1), Fraction(25)) == Damage().lines == []
