"""`kiwi batch`, `kiwi edit` with several inputs, `kiwi status`: checked whole, done once, failures in words."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base.events import SILENT
from kiwi_cli.batch.jobs import STATE, JobStore
from kiwi_cli.batch.planning import Planner
from kiwi_cli.batch.table import read_table
from kiwi_cli.errors import KiwiError, UsageError

from .. import fakes
from ..batch.work import left_over, lines
from ..conftest import CHECKPOINT
from ..video.media import make_clip
from .terminal import frames_of, inside

Kiwi = Callable[..., tuple[int, str, str]]
MODEL = ("--model", CHECKPOINT, "--device", "cpu")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("batch") / "clip.mp4", frames=2)


@pytest.fixture
def folder(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clips, and the working folder."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kiwi(capsys: pytest.CaptureFixture[str], folder: Path) -> Kiwi:
    return lambda *arguments: inside(capsys, *arguments)


def brighter(frames: np.ndarray) -> np.ndarray:
    return frames // 2 + 127


def table(folder: Path, *rows: str, header: str = "input,instruction") -> Path:
    path = folder / "jobs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_several_inputs_are_edited_with_one_model_as_each_alone(kiwi: Kiwi, folder: Path) -> None:
    editor = fakes.FakeEditor(brighter)
    with fakes.registered(kind := fakes.FakeKind(editor)):
        assert kiwi("edit", "a.mp4", "make it snowy", *MODEL, "-o", "alone.mp4")[0] == 0
        del kind.loaded[:]
        code, stdout, err = kiwi("edit", "a.mp4", "b.mp4", "c.mp4", "-i", "make it snowy", "--out-dir", "snowy", *MODEL)
        assert (code, stdout) == (0, "snowy\n") and "3 of 3 clips done" in err, err
        assert len(kind.loaded) == 1 and editor.closed == 2
        assert {call["instruction"] for call in editor.seen} == {"make it snowy"}
        calls = len(editor.seen)
        assert kiwi("edit", "a.mp4", "b.mp4", "c.mp4", "-i", "make it snowy", "--out-dir", "snowy", *MODEL)[0] == 0
        assert len(editor.seen) == calls and len(kind.loaded) == 1  # what is done is not done again
    assert sorted(path.name for path in (folder / "snowy").iterdir()) == [STATE, "a.mp4", "b.mp4", "c.mp4"]
    for name in "abc":
        assert np.array_equal(frames_of(folder / f"snowy/{name}.mp4"), frames_of(folder / "alone.mp4"))
    settings = json.loads(kiwi("show", "snowy/b.mp4", "--json")[1])["settings"]
    assert settings["input"]["path"] == "../b.mp4"  # seen from where it lies, not from where it was made
    assert left_over(JobStore(folder / "snowy")) == []


def test_one_input_is_typed_as_ever(kiwi: Kiwi, folder: Path) -> None:
    with fakes.commands_use(fakes.FakeEditor()) as editor:
        assert kiwi("edit", "a.mp4", "make  it//snowy/", *MODEL, "--raw")[1] == "a-edited.mp4\n"
        assert kiwi("edit", "a.mp4", "-i", "make it snowy", *MODEL, "-o", "x.mp4")[1] == "x.mp4\n"
        assert kiwi("edit", "a.mp4", "-i", "make it snowy", *MODEL, "--out-dir", "out")[1] == "out\n"
    assert [call["instruction"] for call in editor.seen] == ["make  it//snowy/", *["make it snowy"] * 2]
    assert (folder / "out/a.mp4").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.mp4",), "missing argument 'INSTRUCTION'"),
        (("a.mp4", "make", "it", "snowy"), "the instruction is several arguments: make it snowy"),
        (("a.mp4", "b.mp4"), "no -i that says which of them is the instruction"),
        (("a.mp4", "b.mp4", "make it snowy"), "no -i that says which of them is the instruction"),
        (("a.mp4", "b.mp4", "-i", "x"), "pass one with --out-dir DIR"),
        (("a.mp4", "x", "--workers", "2"), "--workers is for several inputs"),
        (("a.mp4", "b.mp4", "-i", "x", "--out-dir", "out", "-o", "y.mp4"), "--output is for one input"),
        (("a.mp4", "b.mp4", "-i", "x", "--out-dir", "a.mp4"), "not a folder: 'a.mp4'"),
        (("a.mp4", "b.mp4", "-i", "x", "--out-dir", "out", "--workers", "0"), "--workers must be at least 1"),
        (("a.mp4", "b.mp4", "-i", "x", "--out-dir", "o", "--workers", "2", "--gpus", "0"), "exclude each other"),
        (("a.mp4", "a.mp4", "-i", "x", "--out-dir", "out"), "its output 'a.mp4' is also that of"),
        (("a.mp4", "b.mp4", "-i", "x", "--out-dir", "."), "is the input of 'a.mp4'"),
        (("a.mp4", "none.mp4", "-i", "x", "--out-dir", "out"), "input not found: 'none.mp4'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_told_apart_is_said(kiwi: Kiwi, folder: Path, arguments: tuple[str, ...], words: str) -> None:
    code, stdout, err = kiwi("edit", *arguments, *MODEL)
    assert (code, stdout) == (2, "") and words in err, err
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_table_has_options_as_columns(kiwi: Kiwi, folder: Path) -> None:
    (folder / "deep").mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "deep/red.png")
    rows = [
        {"input": "../a.mp4", "instruction": "one", "seed": 7, "output": "day/first.mp4"},
        {"input": "../b.mp4", "instruction": "two, with a comma", "ref": ["red.png", "red.png"], "steps": 3},
        {"input": "../c.mp4", "reference": "red.png", "sheet": True, "sound": None},
    ]
    (folder / "deep/jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with fakes.commands_use(fakes.FakeEditor()) as editor:
        code, stdout, err = kiwi("batch", "deep/jobs.jsonl", "--out-dir", "out", *MODEL, "--steps", 9, "--json")
    assert code == 0, err
    data = json.loads(stdout)
    assert (data["jobs"], data["done"], data["made"], data["failures"], data["left"]) == (3, 3, 3, {}, 0)
    calls = {call["instruction"]: call for call in editor.seen}
    assert [call["denoising"].steps for call in calls.values()] == [9, 3, 9] and calls["one"]["denoising"].seed == 7
    assert len(calls["two, with a comma"]["references"]) == 2
    assert "Replace the main subject of the video with the one in the reference image." in calls
    files = [
        path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.*") if STATE not in str(path)
    ]
    assert sorted(files) == ["b.mp4", "c-sheet.png", "c.mp4", "day/first.mp4"]
    settings = json.loads(kiwi("show", "out/day/first.mp4", "--json")[1])["settings"]
    assert settings["input"]["path"] == "../../a.mp4"


def test_every_rows_fault_is_in_one_list_and_nothing_is_begun(kiwi: Kiwi, folder: Path) -> None:
    (folder / "bad.mp4").write_bytes(b"not a clip")
    (folder / "bad.png").write_bytes(b"not a picture")
    rows = (
        "a.mp4,x,,,one.mp4",
        "none.mp4,x,,,",
        "b.mp4,x,seven,,",
        "b.mp4,,,,two.mp4",
        "b.mp4,x,,bad.png,three.mp4",
        "bad.mp4,x,,,",
        "b.mp4,x,,,one.mp4",
        "b.mp4,x,,,../out.mp4",
        "b.mp4,x,-1,,four.mp4",
        "b.mp4,x",
        "b.mp4,x,,,a.mp4/../five.mp4",
        "b.mp4,x,,,six.doc",
    )
    path = table(folder, *rows, header="input,instruction,seed,reference,output")
    before = sorted(folder.iterdir())
    with fakes.commands_use(fakes.FakeEditor()) as editor:
        code, stdout, err = kiwi("batch", path, "--out-dir", "out", *MODEL)
        assert (code, stdout, editor.seen) == (2, "", []) and sorted(folder.iterdir()) == before
        for words in (
            "11 edits cannot be used; nothing was begun",
            "line 3: input not found: '",
            "line 4: seed is 'seven': a whole number is wanted",
            "line 5: the instruction is empty",
            "line 6: cannot read the reference image",
            "line 7: ",
            "line 8: its output 'one.mp4' is also that of line 2",
            "line 9: its output leads out of the run's folder",
            "line 12: its output leads out of the run's folder",
            "line 10: --seed must be from 0",
            "line 11: 2 cells for 5 columns",
            "line 13: ",
        ):
            assert words in err, (words, err)
        code, _, err = kiwi("batch", path, "--out-dir", "out", *MODEL, "--skip-bad")
        assert code == 1 and "11 edits left out" in err and len(editor.seen) == 1
    assert (folder / "out/one.mp4").is_file()


@pytest.fixture
def many(folder: Path) -> Path:
    """A table of more rows than are planned one by one, some of whose files open no further than their first bytes."""
    (folder / "bad.mp4").write_bytes((folder / "a.mp4").read_bytes()[:700])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:3000])
    rows = [f"{'abc'[number % 3]}.mp4,x,,,,{number}.mp4" for number in range(200)]
    rows += [
        "a.mp4,x,whole.png,,,ref.mp4",
        "b.mp4,x,cut.png,,,cut.mp4",
        "bad.mp4,x,,,,bad.mp4",
        "c.mp4,x,,60,,late.mp4",
    ]
    rows += ["c.mp4,x,,,bad.mp4,masked.mp4"]
    return table(folder, *rows, header="input,instruction,reference,start,mask,output")


def test_the_files_of_a_long_table_are_opened_each_once(kiwi: Kiwi, many: Path) -> None:
    with fakes.commands_use(fakes.FakeEditor()) as editor:
        code, _, err = kiwi("batch", many, "--out-dir", "out", *MODEL)
    assert code == 2 and editor.seen == [] and not (many.parent / "out").exists()
    for words in (
        "4 edits cannot be used; nothing was begun",
        "line 203: cannot read the reference image",
        "line 204, line 206: the file is cut off",
        "line 205: start is past the end: 60 s",
    ):
        assert words in err, (words, err)


def test_files_that_take_too_long_to_open_are_left_for_later(many: Path) -> None:
    asked, faults = read_table(many)
    planned = Planner(many.parent / "out", {"model": str(CHECKPOINT), "device": "cpu"}, SILENT, patience=0).plan(asked)
    assert (len(planned.jobs), planned.faults, faults) == (205, [], [])
    assert planned.warnings == [
        "6 of 6 files were not opened in 0.0 s: what is wrong with them is said when it is their turn"
    ]


def test_an_output_that_another_row_reads_is_refused(kiwi: Kiwi, folder: Path) -> None:
    path = table(folder, "a.mp4,x,b.mp4", "b.mp4,y,z.mp4", header="input,instruction,output")
    code, _, err = kiwi("batch", path, "--out-dir", ".", *MODEL)
    assert code == 2 and "line 2: its output 'b.mp4' is the input of line 3" in err, err


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("what,instruction\na.mp4,x\n", "jobs.csv", "unknown column: 'what'"),
        ("instruction\nx\n", "jobs.csv", "has no column 'input'"),
        ("input,instruction,Input\na.mp4,x,b.mp4\n", "jobs.csv", "has the column 'input' twice"),
        ("input,instruction\n", "jobs.csv", "no rows in"),
        ("", "jobs.jsonl", "no rows in"),
        ("input\nå.mp4\n", "jobs.csv", "cannot read the table"),
        ("x", "jobs.txt", "not a table of edits"),
    ],
)
def test_a_table_that_is_none(folder: Path, text: str, name: str, words: str) -> None:
    path = folder / name
    path.write_text(text, encoding="latin-1")
    with pytest.raises(KiwiError, match=words):
        read_table(path)
    with pytest.raises(UsageError, match="table not found"):
        read_table(folder / "none.csv")


def test_cells_become_what_options_take(folder: Path) -> None:
    path = folder / "jobs.jsonl"
    rows: list[dict[str, Any]] = [
        {"input": "a.mp4", "start": "1:02.5", "fps": 12, "steps": "4", "compile": "no", "mask": "1,2,3,4"},
        {"input": "a.mp4", "lora": "style:0.5; more", "frames": 5.0, "--keep-rest": True, "mask": "b.mp4"},
    ]
    bad = ['{"input": "a.mp4", "steps": 2.5}', '{"input": "a.mp4", "start": "soon"}', "[1]", "{", '{"input": 3}']
    bad += ['{"instruction": "x"}', '{"input": "a.mp4", "overwrite": true}', '{"input": "a.mp4", "sheet": "perhaps"}']
    path.write_text("\n".join([*map(json.dumps, rows), *bad]))
    asked, faults = read_table(path)
    assert asked[0].options == {"start": 62.5, "fps": 12.0, "steps": 4, "compile": False, "mask": "1,2,3,4"}
    assert asked[1].options["loras"] == ("style:0.5", "more") and asked[1].options["frames"] == 5
    assert asked[1].options["mask"] == str(folder / "b.mp4") and asked[1].options["keep_rest"] is True
    assert [fault.where for fault in faults] == [f"line {number}" for number in range(3, 11)]


def test_changed_settings_are_another_job_and_nobodys_file_is_replaced(kiwi: Kiwi, folder: Path) -> None:
    path = table(folder, "a.mp4,x", "b.mp4,x")
    command = ("batch", path, "--out-dir", "out", *MODEL)
    with fakes.commands_use(fakes.FakeEditor()) as editor:
        assert kiwi(*command)[0] == 0 and len(editor.seen) == 2
        code, _, err = kiwi(*command, "--seed", 5)  # other jobs, for the same files
        assert code == 2 and err.count("output exists: ") == 2 and "--overwrite" in err and len(editor.seen) == 2
        assert kiwi(*command, "--seed", 5, "--overwrite")[0] == 0 and len(editor.seen) == 4
        code, _, err = kiwi(*command)  # the first ones again: their files are others now
        assert code == 2 and "is not what this run wrote" in err
        assert kiwi(*command, "--seed", 5)[0] == 0 and len(editor.seen) == 4  # done already
        (folder / "out/a.mp4").unlink()
        assert kiwi(*command, "--seed", 5)[0] == 0 and len(editor.seen) == 5  # what is gone is made again
        (folder / "a.mp4").write_bytes(make_clip(folder / "other.mp4", frames=3).read_bytes())
        code, _, err = kiwi(*command, "--seed", 5)  # another input under the same name
        assert code == 2 and "output exists: 'out/a.mp4'" in err


def test_a_bad_clip_ends_no_run_and_is_tried_again_when_that_is_asked(kiwi: Kiwi, folder: Path) -> None:
    failing = ["make it fail"]

    class Picky(fakes.FakeEditor):
        def edit(self, frames: np.ndarray, instruction: str, *arguments: Any, **options: Any) -> Any:
            if instruction in failing:
                raise MemoryError("too large")
            return super().edit(frames, instruction, *arguments, **options)

    path = table(folder, "a.mp4,x", "b.mp4,make it fail", "c.mp4,z")
    command = ("batch", path, "--out-dir", "out", *MODEL)
    with fakes.commands_use(Picky()) as editor:
        code, stdout, err = kiwi(*command, "--json")
        assert code == 1 and "warning: 'b.mp4': MemoryError: too large" in err and "1 of 3 clips failed" in err
        assert json.loads(stdout)["failures"] == {"b.mp4": "MemoryError: too large"}
        shown = json.loads(kiwi("status", "out", "--json")[1])
        assert (shown["done"], shown["failed"], shown["failures"]) == (2, 1, {"b.mp4": "MemoryError: too large"})
        assert "'b.mp4': MemoryError: too large" in kiwi("status", "out")[1]
        failing.clear()
        assert kiwi(*command)[0] == 1 and len(editor.seen) == 2  # not by itself
        assert kiwi(*command, "--retry-failed")[0] == 0 and len(editor.seen) == 3
    assert len(lines(JobStore(folder / "out"), "failed")) == 1
    assert "3 of 3 done" in kiwi("status", "out", "--watch")[1]


def test_a_model_that_cannot_be_loaded_fails_no_clip(kiwi: Kiwi, folder: Path) -> None:
    class Broken(fakes.FakeKind):
        def load(self, *arguments: Any) -> Any:
            raise RuntimeError("no room")

    path = table(folder, "a.mp4,x", "b.mp4,x")
    with fakes.registered(Broken(fakes.FakeEditor())):
        code, stdout, err = kiwi("batch", path, "--out-dir", "out", *MODEL)
    assert (code, stdout) == (1, "") and "the model cannot be loaded: RuntimeError: no room" in err
    assert lines(JobStore(folder / "out"), "failed") == [] and left_over(JobStore(folder / "out")) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_finishes_nothing_half_and_says_what_is_left(kiwi: Kiwi, folder: Path, how: int) -> None:
    class Interrupted(fakes.FakeEditor):
        def edit(self, frames: np.ndarray, instruction: str, *arguments: Any, **options: Any) -> Any:
            if instruction == "wait":
                signal.raise_signal(how)
            return super().edit(frames, instruction, *arguments, **options)

    path = table(folder, "a.mp4,x", "b.mp4,wait", "c.mp4,x")
    with fakes.commands_use(Interrupted()):
        code, stdout, err = kiwi("batch", path, "--out-dir", "out", *MODEL)
    assert (code, stdout) == (130, "") and "interrupted; 1 of 3 clips are done, 2 are left" in err
    assert sorted(path.name for path in (folder / "out").iterdir()) == [STATE, "a.mp4"]
    assert left_over(JobStore(folder / "out")) == []


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(kiwi: Kiwi, folder: Path) -> None:
    path = table(folder, "a.mp4,x", "b.mp4,x")
    code, stdout, err = kiwi("batch", path, "--out-dir", "out", *MODEL, "--dry-run", "--json")
    assert code == 0 and json.loads(stdout)["to_do"] == 2 and not (folder / "out").exists(), err


def test_parts_of_an_array_are_all_of_it(kiwi: Kiwi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(folder, "a.mp4,x", "b.mp4,x", "c.mp4,x")
    command = ("batch", path, "--out-dir", "out", *MODEL)
    with fakes.commands_use(fakes.FakeEditor()):
        code, _, err = kiwi(*command, "--shard", "2/2")
        assert code == 0 and "part 2 of 2: 1 clip" in err and not (folder / "out/a.mp4").exists()
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
        code, _, err = kiwi(*command)
        assert code == 0 and "part 1 of 2, as SLURM says: 2 clips" in err
        assert "3 clips in 'out', 3 done already" in kiwi(*command, "--shard", "1/1")[2]
    assert json.loads(kiwi("status", "out", "--json")[1])["jobs"] == 3


def test_another_version_of_kiwi_does_not_go_on_with_a_run(kiwi: Kiwi, folder: Path) -> None:
    path = table(folder, "a.mp4,x")
    with fakes.commands_use(fakes.FakeEditor()):
        assert kiwi("batch", path, "--out-dir", "out", *MODEL)[0] == 0
        begun = folder / "out" / STATE / "run.json"
        begun.write_text(begun.read_text().replace('"kiwi": "', '"kiwi": "9.'))
        code, _, err = kiwi("batch", path, "--out-dir", "out", *MODEL)
        assert code == 2 and "was begun by kiwi 9." in err


def test_no_run_is_said(kiwi: Kiwi) -> None:
    code, stdout, err = kiwi("status", ".")
    assert (code, stdout) == (2, "") and "no run in '.'" in err


def test_ray_that_is_not_installed_is_said_before_anything_is_read(
    kiwi: Kiwi, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for words in (("--ray",), ("--ray", "auto"), ("--ray", "10.0.0.5:6379"), ("--ray", "--workers", "2")):
        code, _, err = kiwi("batch", "none.csv", "--out-dir", "out", *MODEL, *words)
        assert code == 2 and "--ray needs Ray, which is not installed" in err, err


def test_torchrun_is_for_one_clip(kiwi: Kiwi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = kiwi("batch", table(folder, "a.mp4,x"), "--out-dir", "out", *MODEL)
    assert code == 2 and "torchrun is for one clip on several GPUs" in err
