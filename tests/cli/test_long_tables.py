"""Tables of more rows than are planned one by one: a glance at each file finds what a plan would, in any order."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.base.events import SILENT
from kiwi_cli.batch import looking
from kiwi_cli.batch.planning import PLANNED, Planned, Planner
from kiwi_cli.batch.table import read_table
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import MediaError

from ..conftest import CHECKPOINT
from ..video.media import make_clip

BAD = {
    "cut": "the file is cut off",
    "blank": "cannot read",
    "text": "cannot read",
    "empty": "the file is empty",
    "short": "the file is cut off or damaged",
}


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A clip for each row, every fortieth of which is bad in some way."""
    data = make_clip(tmp_path / "sound.mp4", frames=30).read_bytes()
    media = data.index(b"mdat")
    few = data.index(b"stsz") + 12
    bad = {
        "cut": data[:-300],
        "blank": data[: media + 4] + bytes(2000) + data[media + 2004 :],
        "text": b"not a clip",
        "empty": b"",
        "short": data[:few] + (5).to_bytes(4, "big") + data[few + 4 :],
    }
    kinds = list(bad)
    for number in range(PLANNED + 5):
        kind = kinds[number // 40 - 1] if number and number % 40 == 0 else ""
        (tmp_path / f"{number}.mp4").write_bytes(bad.get(kind, data))
    return tmp_path


def _table(folder: Path, more: str = "") -> Path:
    rows = [f"{number}.mp4,x,,{number}.mp4" for number in range(PLANNED + 5)]
    (folder / "jobs.csv").write_text("\n".join(["input,instruction,start,output", *rows]) + "\n" + more)
    return folder / "jobs.csv"


def planned(folder: Path, threads: int | None, more: str = "", **options: Any) -> Planned:
    asked, faults = read_table(_table(folder, more))
    settings = {"model": str(CHECKPOINT), "device": "cpu"}
    return Planner(folder / "out", settings, SILENT, threads=threads, **options).plan(asked, faults)


def test_one_thread_and_several_find_the_same(clips: Path) -> None:
    alone, several = planned(clips, 1), planned(clips, 5)
    assert alone == several and len(alone.jobs) == PLANNED
    assert [fault.where for fault in alone.faults] == [f"line {40 * number + 2}" for number in range(1, 6)]
    for fault, words in zip(alone.faults, BAD.values(), strict=True):
        assert words in fault.reason, fault


def test_faults_are_those_of_a_whole_look(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(clips, None)
    monkeypatch.setattr(looking, "glance", lambda path: None)
    assert found == planned(clips, None)


def test_a_sound_clip_is_only_glanced_at(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, probed = looking.probe, []
    monkeypatch.setattr(looking, "probe", lambda path, **options: (probed.append(path.name), probe(path, **options))[1])
    planned(clips, None)
    assert sorted(probed) == ["120.mp4", "160.mp4", "200.mp4", "40.mp4", "80.mp4"]


def test_what_is_no_clip_is_not_read_further(clips: Path) -> None:
    """A pipe would be waited for, and a folder of anything be read through."""
    os.mkfifo(clips / "pipe.mp4")
    (clips / "folder").mkdir()
    (clips / "folder/large.bin").write_bytes(b"\0")
    (clips / "folder/large.bin").chmod(0)
    read: list[Path] = []
    asked, _ = read_table(_table(clips, "pipe.mp4,x,,pipe.mp4\nfolder,x,,folder\n"))
    requests = [EditRequest.of(each.input, each.instruction, model=str(CHECKPOINT)) for each in asked]
    looked = looking.look(requests, SILENT, time.monotonic() + 60, besides=read.append)
    for request, words in zip(requests[-2:], ("not a file", "no pictures in"), strict=True):
        with pytest.raises(MediaError, match=words):
            looked.check(request)
    assert not {"pipe.mp4", "folder"} & {path.name for path in read} and len(read) == PLANNED


def test_a_pipe_that_there_was_no_time_for_is_not_waited_for(clips: Path) -> None:
    os.mkfifo(clips / "pipe.mp4")
    faults = planned(clips, None, "pipe.mp4,x,,pipe.mp4\n", patience=0.0).faults
    assert [(fault.where, "not a file" in fault.reason) for fault in faults] == [(f"line {PLANNED + 7}", True)]


def test_a_part_is_checked_against_the_clips_length(clips: Path) -> None:
    starts = (0.1, 1.1, 1.3, -1)  # of a clip that lasts 1.2 s
    found = planned(clips, None, "".join(f"1.mp4,y,{start},{start}.mp4\n" for start in starts))
    late = [(fault.where, fault.reason.partition(":")[0]) for fault in found.faults[5:]]
    assert late == [("line 209", "start is past the end"), ("line 210", "start is not a time in the clip")]
    assert len(found.jobs) == PLANNED + 2
