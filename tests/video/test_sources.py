"""A source is never overwritten, whatever its name looks like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.video import load_mask, open_writer, probe, refuse_source

from .. import fakes
from .media import make_clip, make_sequence


@pytest.mark.parametrize("way", ["itself", "folder link", "dots", "file link", "hard link"])
def test_a_clip_is_not_replaced_by_its_own_edit(tmp_path, way):
    (tmp_path / "names").mkdir()
    source = make_clip(tmp_path / "names" / "x.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "names")
    (tmp_path / "y.mp4").symlink_to(source)
    os.link(source, tmp_path / "z.mp4")
    other = {
        "itself": source,
        "folder link": tmp_path / "link" / "x.mp4",
        "dots": tmp_path / "names" / ".." / "names" / "x.mp4",
        "file link": tmp_path / "y.mp4",
        "hard link": tmp_path / "z.mp4",
    }[way]
    before = source.read_bytes()
    with pytest.raises(UsageError, match="would replace the input"):
        open_writer(other, probe(source), overwrite=True)
    with pytest.raises(UsageError, match="would replace the input"):
        open_writer(source, probe(other), overwrite=True)
    assert source.read_bytes() == before


def test_a_folder_of_pictures_is_not_replaced(tmp_path):
    frames = make_sequence(tmp_path / "frames")
    (tmp_path / "link").symlink_to(frames)
    clip = probe(frames)
    with pytest.raises(UsageError, match="would replace the input"):
        open_writer(tmp_path / "link", clip, overwrite=True)
    one = probe(frames / "0001.png")
    with pytest.raises(UsageError, match="folder of an input"):
        open_writer(tmp_path / "link", one, overwrite=True)
    with pytest.raises(UsageError, match="would replace the input"):
        open_writer(
            tmp_path / "link" / "0002.png",
            probe(make_sequence(tmp_path / "one", frames=1)),
            overwrite=True,
            mask=load_mask(tmp_path / "link", one),
        )
    assert len(list(frames.iterdir())) == 5


def test_a_mask_is_not_replaced(tmp_path):
    frames = make_sequence(tmp_path / "frames", size=(96, 64))
    clip = probe(make_clip(tmp_path / "x.mp4"))
    mask = load_mask(frames / "0003.png", clip)
    with pytest.raises(UsageError, match="would replace the input"):
        open_writer(tmp_path / "frames" / ".." / "frames" / "0003.png", clip, mask=mask, overwrite=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path, clip_file):
    """Also not with --overwrite: /dev/stdout is one."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("pipe.mp4")
    for name in ("pipe.mp4", "link.mp4"):
        with pytest.raises(UsageError, match="a pipe or a device"):
            open_writer(tmp_path / name, probe(clip_file), overwrite=True)
    with pytest.raises(MediaError, match="not a file") as caught:
        probe(tmp_path / "pipe.mp4")
    assert "save what it gives first" in caught.value.hint


def test_stdout_is_no_place(clip_file):
    with pytest.raises(UsageError, match="not written to stdout"):
        open_writer("-", probe(clip_file))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that root may not write to either")
def test_a_place_that_only_looks_as_if_it_could_be_written_to_is_found_before_the_work(clip_file):
    editor = fakes.FakeEditor()
    with pytest.raises(MediaError, match="cannot write"):
        fakes.edit(clip_file, Path("/proc/out.mp4"), editor)
    assert not editor.seen


def test_a_file_beside_the_source_is_no_source(tmp_path):
    frames = make_sequence(tmp_path / "frames")
    refuse_source(tmp_path / "frames" / "out.mp4", [frames])
    refuse_source(tmp_path / "new", [frames, frames / "0001.png"])


@pytest.mark.parametrize("victim", ["input", "reference", "mask"])
@pytest.mark.parametrize("by", ["output", "sheet"])
def test_no_output_of_an_edit_replaces_what_it_reads(tmp_path, victim, by):
    from kiwi_cli.editing.prepare import prepare
    from kiwi_cli.editing.request import EditRequest

    make_sequence(tmp_path / "frames", size=(96, 64))
    (tmp_path / "link").symlink_to(tmp_path)
    names = {role: tmp_path / f"{role}.png" for role in ("input", "reference", "mask")}
    name = f"{victim}.png"
    if by == "sheet":
        name = "x-sheet.png"
        names[victim] = tmp_path / name
    for path in names.values():
        path.write_bytes((tmp_path / "frames" / "0001.png").read_bytes())
    request = EditRequest(
        input=names["input"],
        instruction="x",
        output=tmp_path / "link" / ("x.png" if by == "sheet" else name),
        mask=str(names["mask"]),
        references=(names["reference"],),
        sheet=by == "sheet",
        overwrite=True,
    )
    with pytest.raises(UsageError, match="would replace the input"):
        prepare(request)
