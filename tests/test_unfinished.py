"""Nothing is thrown away after the model has worked: when writing fails, what it made is kept, and finished later.

A process that may write so many bytes a file stands for a disk that becomes full.
"""

from __future__ import annotations

import json
import resource
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from kiwi_cli.editing.kept import Kept
from kiwi_cli.errors import CheckpointError, KiwiError, MediaError
from kiwi_cli.video.sinks import VideoSink

from . import fakes
from .cli.terminal import frames_of, inside
from .conftest import CHECKPOINT, make_model
from .video.media import Sound, make_clip

SIZE = (96, 64)


@contextmanager
def room(size: int) -> Iterator[None]:
    """Meanwhile, this process may write `size` bytes a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of noise, which takes much room, a mask, a reference, and a model that takes five frames at a time."""
    folder = tmp_path_factory.mktemp("workshop")
    noise = np.random.default_rng(0)
    with av.open(str(folder / "clip.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "bgr0"
        for _ in range(11):
            pixels = noise.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[8:40, 16:80] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "ref.png")
    make_model(folder / "five", working={"frames": 5, "steps": 1})
    return folder


def command_in(error: KiwiError) -> list[str]:
    """What the hint says to type, without 'kiwi'."""
    return shlex.split(error.hint[error.hint.index("kiwi finish") :])[1:]


WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "mask, the rest": {"mask": "mask.png", "feather": 3, "keep_rest": True, "start": 0.04, "duration": 0.36},
    "reference": {"references": ("ref.png",)},
    "detail": {"detail": "source", "size": "64x32"},
    "windows": {"model": "five", "windows": "independent"},
    "windows with detail": {
        "model": "five",
        "windows": "independent",
        "detail": "source",
        "size": "64x32",
        "compare": "side",
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_made_is_written_later_as_it_would_have_been(
    way: str, workshop: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: workshop / str(WAYS[way][name]) for name in ("mask", "model") if name in WAYS[way]}
    options = {"steps": 1, "seed": 3, "detail": "model", "codec": "ffv1", **WAYS[way], **paths}
    options |= {"mask": str(paths["mask"])} if "mask" in paths else {}
    options["model"] = str(options.get("model", CHECKPOINT))
    options["references"] = tuple(workshop / name for name in options.get("references", ()))
    source, output = workshop / "clip.mkv", tmp_path / "it's out.mkv"
    undisturbed = fakes.edit(source, tmp_path / "undisturbed.mkv", loaded, **options)
    with room(70_000), pytest.raises(MediaError, match="no space left") as caught:
        fakes.edit(source, output, loaded, **options)
    left = sorted(path.name for path in tmp_path.iterdir() if "undisturbed" not in path.name)
    assert left == ["it's out.mkv.unfinished"] and left[0] in caught.value.message
    kept = Kept(tmp_path / left[0])

    calls: list[int] = []
    real = loaded.edit
    loaded.edit = lambda *arguments, **more: calls.append(1) or real(*arguments, **more)
    try:
        with fakes.loads(loaded):
            code, out, err = inside(capsys, *command_in(caught.value), "--json")
    finally:
        del loaded.edit
    assert code == 0, err
    assert len(calls) == (3 if "windows" in way else 1) - kept.windows  # what was made is not made again
    data = json.loads(out)
    assert data["settings"] == undisturbed.settings and data["approximations"] == undisturbed.approximations
    for expected, got in zip(frames_of(undisturbed.output), frames_of(output), strict=True):
        assert np.array_equal(expected, got)
    assert not kept.path.exists() and (tmp_path / "it's out-compare.mkv").exists() == ("compare" in options)


@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_an_editor_without_latents_has_its_frames_kept(
    when: str, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = workshop / "clip.mkv", tmp_path / "out.mkv"
    editor = fakes.FakeEditor(lambda frames: 255 - frames)
    options = {"codec": "ffv1", "steps": 1, "model": str(workshop / "five")}
    fakes.edit(source, tmp_path / "undisturbed.mkv", editor, **options)

    def refuse(sink: VideoSink, *arguments: Any) -> None:
        raise av.error.ExternalError(542398533, "the muxer refuses")

    with monkeypatch.context() as patch:
        patch.setattr(VideoSink, "finish" if when == "at the end" else "add", refuse)
        with pytest.raises(MediaError, match="the muxer refuses") as caught:
            fakes.edit(source, output, editor, **options)
    assert "try another --codec or container" in caught.value.hint and not output.exists()
    kept = Kept(tmp_path / "out.mkv.unfinished")
    assert kept.windows == 3 if when == "at the end" else kept.windows >= 1
    again = fakes.FakeEditor(editor.change)
    with fakes.commands_use(again):
        code, _, err = inside(capsys, *command_in(caught.value), "--codec", "h264", "--quality", "lossless")
    assert code == 0 and len(again.seen) == 3 - kept.windows, err
    assert len(frames_of(output)) == 11 and list(tmp_path.glob("*.unfinished")) == []


def test_an_edit_fails_twice_and_is_still_there(
    workshop: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = workshop / "clip.mkv", tmp_path / "out.mkv"
    with room(70_000), pytest.raises(MediaError) as caught:
        fakes.edit(source, output, loaded, steps=1, codec="ffv1")
    with room(70_000), fakes.loads(loaded):
        code, out, err = inside(capsys, *command_in(caught.value))
    assert (code, out) == (1, "") and "kiwi finish" in err
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv.unfinished"]
    with room(70_000), pytest.raises(MediaError):  # another edit to the same name replaces nothing
        fakes.edit(source, output, loaded, steps=1, codec="ffv1", seed=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mkv-2.unfinished", "out.mkv.unfinished"]


def test_a_trial_without_room_says_nothing_of_the_sound(tmp_path: Path) -> None:
    """And is not remembered as if it did."""
    source = make_clip(tmp_path / "clip.mp4", frames=5, size=SIZE, sound=Sound(seconds=0.2))
    with room(1000), pytest.raises(MediaError, match="no space left for temporary files"):
        fakes.plan(source, tmp_path / "out.mp4")
    assert not any("sound" in notice for notice in fakes.plan(source, tmp_path / "out.mp4").notices)


def test_what_is_wrong_itself_is_not_kept(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(KiwiError, match="not finite"):
        fakes.edit(workshop / "clip.mkv", tmp_path / "out.mkv", fakes.FailingEditor(KiwiError("not finite", "")))
    assert list(tmp_path.iterdir()) == []


def test_other_files_and_other_clips_are_refused(
    workshop: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with room(9000), pytest.raises(MediaError, match="no space left") as caught:
        fakes.edit(workshop / "clip.mkv", tmp_path / "out.mkv", fakes.FakeEditor(), codec="ffv1", size="64x64")
    assert "kept" not in caught.value.message  # there was no room for that either
    with room(70_000), pytest.raises(MediaError) as caught:
        fakes.edit(workshop / "clip.mkv", tmp_path / "out.mkv", loaded, codec="ffv1", steps=1)
    path = tmp_path / "out.mkv.unfinished"
    good = path.read_bytes()
    for bad in (b"", b"x" * 100, good[: len(good) // 2], (workshop / "mask.png").read_bytes()):
        path.write_bytes(bad)
        code, out, err = inside(capsys, *command_in(caught.value))
        assert (code, out) == (1, "") and "error: not an unfinished edit, or a damaged one" in err
        assert "OUTPUT.unfinished" in err and "download" not in err  # no word of models
    code, out, err = inside(capsys, "finish", tmp_path / "none")
    assert (code, out) == (2, "") and "no such file" in err and "OUTPUT.unfinished" in err
    code, out, err = inside(capsys, "finish", tmp_path)
    assert (code, out) == (2, "") and "a folder, not a file" in err and f"kiwi finish {shlex.quote(str(path))}" in err
    (tmp_path / "empty").mkdir()
    code, out, err = inside(capsys, "finish", tmp_path / "empty")
    assert (code, out) == (2, "") and "a folder, not a file" in err and "OUTPUT.unfinished" in err
    with pytest.raises(CheckpointError, match="not an unfinished edit"):
        Kept(next(CHECKPOINT.rglob("*.safetensors")))
    other = good.replace(b'\\"seed\\": 0', b'\\"seed\\": 7')
    assert other != good
    path.write_bytes(other)  # the file is whole, and says another edit than was made
    code, out, err = inside(capsys, "finish", path)
    assert (code, out) == (1, "") and "is damaged" in err and path.read_bytes() == other
    path.write_bytes(good)
    code, _, err = inside(capsys, "finish", path, "--dry-run")
    assert code == 0 and path.read_bytes() == good, err


@pytest.mark.parametrize("where", ["state", "temporary"])
def test_where_no_file_goes_beside_it_is_kept_elsewhere(
    where: str, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the state folder, else with the temporary files; it is finished from there to where it belongs."""
    folder, state, temporary = tmp_path / "results", tmp_path / "state", tmp_path / "temporary"
    folder.mkdir(), temporary.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    if where == "temporary":
        state.write_text("no folder")

    def lose_the_disk(frames: np.ndarray) -> np.ndarray:
        if folder.is_dir():
            folder.rename(tmp_path / "away")
            folder.write_text("no folder")
        return frames

    output = folder / "out.mkv"
    with pytest.raises(MediaError, match="cannot write") as caught:
        fakes.edit(workshop / "clip.mkv", output, fakes.FakeEditor(lose_the_disk), codec="ffv1")
    (kept,) = tmp_path.rglob("*.unfinished")
    assert kept.is_relative_to(tmp_path / where) and f"kept in '{kept}'" in caught.value.message
    folder.unlink()
    folder.mkdir()
    again = fakes.FakeEditor()
    with fakes.commands_use(again):
        code, out, err = inside(capsys, *command_in(caught.value))
    assert code == 0 and out.strip() == str(output) and not again.seen, err
    assert len(frames_of(output)) == 11 and not kept.exists()


def test_of_a_run_of_many_it_lies_where_the_result_would(
    workshop: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("-i", "as it is", "--model", CHECKPOINT, "--steps", 1, "--detail", "model", "--codec", "ffv1")
    command = ("edit", workshop / "clip.mkv", *asked, "--out-dir", "out")
    with fakes.loads(loaded):
        with room(70_000):
            code, out, err = inside(capsys, *command)
        said = err.replace(f"{tmp_path}/", "")
        assert (code, out) == (1, "out\n") and "kept in 'out/clip.mkv.unfinished'" in said, err
        files = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.unfinished")]
        assert files == ["clip.mkv.unfinished"] and list((tmp_path / "out/.kiwi-batch/parts").iterdir()) == []
        assert inside(capsys, "finish", "out/clip.mkv.unfinished")[0] == 0
    assert len(frames_of(tmp_path / "out/clip.mkv")) == 11
