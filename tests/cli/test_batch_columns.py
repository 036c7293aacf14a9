"""Tables whose columns or cells are wrong: everything that is wrong with them is in one list."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import CHECKPOINT
from ..video.media import make_clip
from .terminal import inside

MODEL = ("--model", CHECKPOINT, "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clips, and the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        make_clip(tmp_path / f"{name}.mp4", frames=2)
    return tmp_path


def test_an_unknown_column_hides_no_other_fault(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("a.mp4,make it snowy,1,", "none.mp4,x,1,", "b.mp4,x,seven,2", "c.mp4,,1,2")
    path = folder / "jobs.csv"
    path.write_text("\n".join(["input,instrution,sed,zzzz", *rows]))
    for more in ((), ("--skip-bad",)):  # what the rows mean is not known, so that none is begun
        code, _, err = inside(capsys, "batch", path, "--out-dir", "out", *MODEL, *more)
        assert code == 2 and not (folder / "out").exists()
        for words in (
            "error: the table cannot be used; nothing was begun\n",
            "  line 1: unknown column: 'instrution' (did you mean 'instruction' by 'instrution'?)\n",
            "  line 1: unknown column: 'sed' (did you mean 'seed' by 'sed'?)\n",
            "  line 1: unknown column: 'zzzz' (use input, instruction,",
            "  line 3: input not found: '",
            "  line 4: seed is 'seven': a whole number is wanted\n",
            "  line 5: the instruction is empty\n",
        ):
            assert words in err, (words, err)


def test_a_row_has_all_of_its_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "jobs.jsonl"
    path.write_text('{"input": "a.mp4", "seed": "x", "steps": "y", "zzzz": 1}\n')
    err = inside(capsys, "batch", path, "--out-dir", "out", *MODEL)[2]
    for words in ("error: 1 edit cannot be used", "seed is 'x'", "steps is 'y'", "unknown column: 'zzzz'"):
        assert words in err, (words, err)


def test_paths_that_are_meant_from_here_and_not_from_the_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tables").mkdir()
    path = folder / "tables/jobs.csv"
    path.write_text("input,instruction\na.mp4,x\nb.mp4,y\n")
    code, _, err = inside(capsys, "batch", path, "--out-dir", "out", *MODEL)
    assert code == 2 and err.count("input not found: '") == 2 and "seen from its own folder, or from --base" in err
    assert inside(capsys, "batch", path, "--base", ".", "--out-dir", "out", *MODEL, "--dry-run")[0] == 0
