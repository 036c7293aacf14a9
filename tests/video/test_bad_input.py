"""Bad input: a clear error with a hint, and no output."""

from __future__ import annotations

import os
import struct

import av
import pytest
from PIL import Image

from kiwi_cli.errors import KiwiError, MediaError, UsageError
from kiwi_cli.video import probe, read_frames, select
from kiwi_cli.video.png import png_bytes

from .media import Sound, add_sound, make_clip, make_sequence, picture, run_through


def refused(path, words: str, kind: type[KiwiError] = MediaError, **options) -> None:
    with pytest.raises(kind, match=words) as caught:
        list(read_frames(probe(path, **options)))
    assert caught.value.hint
    assert str(path) in caught.value.message or path.name in caught.value.message
    assert "Traceback" not in caught.value.message


def test_missing(tmp_path):
    refused(tmp_path / "nothere.mp4", "input not found", UsageError)


def test_empty(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    refused(tmp_path / "clip.mp4", "empty")


@pytest.mark.parametrize("content", [b"hello, I am text\n" * 100, os.urandom(5000), b"\0" * 5000, b"\xff\xd8\xff"])
def test_not_a_video(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    refused(tmp_path / "clip.mp4", "cannot read|no picture")


def test_a_playlist_is_not_followed(tmp_path, clip_file):
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip_file}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {clip_file}\n",
    ):
        (tmp_path / "list.mp4").write_text(text)
        refused(tmp_path / "list.mp4", "a playlist, which is not read")


def test_sound_only(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        add_sound(container, container.add_stream("aac", rate=48_000), Sound(seconds=0.2))
    refused(path, "only sound")


def test_a_device_is_not_a_file():
    with pytest.raises(MediaError, match="not a file"):
        probe("/dev/null")


def test_unreadable(tmp_path, clip_file, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    refused(clip_file, "not allowed to read")


@pytest.mark.parametrize("extension", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_truncated(tmp_path, extension, share):
    path = make_clip(tmp_path / f"clip.{extension}", frames=50, size=(320, 240), sound=Sound(seconds=2))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "cut off|cannot read")


def faststart(path, frames: int = 50):
    """A clip whose header comes first, as after a download from the web."""
    clip = probe(make_clip(path.with_name("whole.mp4"), frames=frames, size=(320, 240), sound=Sound(seconds=2)))
    run_through(clip, path)
    return path


def test_truncated_input_gives_what_can_be_read_only_when_asked(tmp_path):
    path = faststart(tmp_path / "clip.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    refused(path, "cut off")
    clip = probe(path, allow_truncated=True)
    assert 1 <= clip.frame_count < 50
    assert any("cut off" in notice for notice in clip.notices)
    seen, writer = run_through(clip, tmp_path / "out.mp4")
    assert 1 <= len(seen) == probe(writer.path).frame_count <= clip.frame_count


def test_truncated_pictures(tmp_path):
    for extension in ("png", "jpg", "webp"):
        path = tmp_path / f"in.{extension}"
        Image.fromarray(picture(1, 200, 150)).save(path)
        path.write_bytes(path.read_bytes()[:-400])
        refused(path, "cannot read")


def test_a_gap_in_the_numbering(tmp_path):
    folder = make_sequence(tmp_path / "in")
    (folder / "0003.png").unlink()
    refused(folder, "gap in the numbering.*: 3 is missing")
    (folder / "0004.png").unlink()
    refused(folder, "3 to 4 is missing")


def test_numbers_that_come_twice_or_not_at_all(tmp_path):
    folder = make_sequence(tmp_path / "in")
    (folder / "a_003.png").write_bytes((folder / "0003.png").read_bytes())
    refused(folder, "two pictures with the number 3")
    (folder / "a_003.png").rename(folder / "title.png")
    refused(folder, "no number")


def test_a_folder_without_pictures(tmp_path):
    refused(tmp_path, "no pictures")


def test_pictures_of_different_sizes(tmp_path):
    folder = make_sequence(tmp_path / "in")
    Image.fromarray(picture(1, 20, 20)).save(folder / "0003.png")
    with pytest.raises(MediaError, match=r"'0003\.png' is 20x20"):
        run_through(probe(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_in_a_sequence(tmp_path):
    folder = make_sequence(tmp_path / "in")
    data = (folder / "0003.png").read_bytes()
    (folder / "0003.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"0003\.png"):
        run_through(probe(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_headers_that_ask_for_absurd_sizes(tmp_path):
    data = bytearray(png_bytes(picture(1, 32, 32)))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    (tmp_path / "bomb.png").write_bytes(data)
    refused(tmp_path / "bomb.png", "too large|cannot read")
    gif = b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\x80\0\0" + b"\0" * 6 + b"\x2c" + b"\0" * 9 + b"\x02\0\x3b"
    (tmp_path / "bomb.gif").write_bytes(gif)
    refused(tmp_path / "bomb.gif", "too large|cannot read|no picture")


def test_a_phones_photograph_is_no_video(tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100)
    refused(tmp_path / "photo.heic", "HEIC")


def test_an_animated_picture(tmp_path):
    frames = [Image.fromarray(picture(i, 32, 32)) for i in range(3)]
    frames[0].save(tmp_path / "in.webp", save_all=True, append_images=frames[1:])
    refused(tmp_path / "in.webp", "animated")


def test_start_past_the_end_names_the_clip(clip_file):
    with pytest.raises(UsageError, match="start is past the end") as caught:
        select(probe(clip_file), start=5)
    assert str(clip_file) in caught.value.message
