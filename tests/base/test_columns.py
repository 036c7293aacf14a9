"""Tables whose first line is not the one that is looked for: what was meant is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiwi_cli.base.columns import column_hint
from kiwi_cli.batch.table import Fault, read_table
from kiwi_cli.data.rows import TableError, scan
from kiwi_cli.errors import MediaError, UsageError

SEMICOLONS, TABS = "its columns are separated by semicolons: save it with commas", "separated by tabs"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("input;instruction", SEMICOLONS),
        ("input\tinstruction\tseed", TABS),
        ("input,instrucion", "did you mean 'instruction' by 'instrucion'?"),
        ("Input,Instruction,Sed", "did you mean 'seed' by 'sed'?"),
        ("clip,instruction", "did you mean 'input' by 'clip'?"),
        ("input,prompt", "did you mean 'instruction' by 'prompt'?"),
        ("input,zzzz", "use input, instruction,"),
        ("input,colour", "use input, instruction,"),
    ],
)
def test_edits(line: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text(f"{line}\na.mp4,x\n")
    try:
        fault = read_table(tmp_path / "jobs.csv")[1][0]
    except UsageError as error:  # no column is like that of the inputs
        fault = Fault("line 1", error.message, error.hint)
    assert fault.where == "line 1" and "unknown column" in fault.reason and hint in fault.hint


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("src_video|tgt_video|prompt", "separated by bars"),
        ("src_video\ttgt_video\tprompt", TABS),
        ("src_vido,tgt_video,prompt", "did you mean 'src_video' by 'src_vido'?"),
        ("src_video,tgt_video,promt", "did you mean 'prompt' by 'promt'?"),
        ("one,two,three", "name the columns src_video,"),
    ],
)
def test_training_data(line: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"{line}\na.mp4,b.mp4,x\n")
    with pytest.raises(TableError, match="has no column") as caught:
        scan(tmp_path / "rows.csv")
    assert hint in caught.value.hint


def test_quotes_between_other_signs(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text('"input";"instruction"\n"a.mp4";"x"\n')
    with pytest.raises(MediaError, match="is no CSV") as caught:
        read_table(tmp_path / "jobs.csv")
    assert "separate cells with commas" in caught.value.hint


@pytest.mark.parametrize(("more", "line"), [('a.mp4,"x\nb.mp4,y\n', 4), ('a.mp4,"x"y\nb.mp4,y\n', 4)])
def test_the_line_of_a_broken_quote(tmp_path: Path, more: str, line: int) -> None:
    (tmp_path / "jobs.csv").write_text(f'input,instruction\na.mp4,"two\nlines"\n{more}')
    with pytest.raises(MediaError, match=f"is no CSV in line {line}: ") as caught:
        read_table(tmp_path / "jobs.csv")
    assert f"in line {line}" in caught.value.hint


def test_commas_at_the_end_as_spreadsheets_write_them(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text("input,instruction,,\na.mp4,x,,\nb.mp4,y,,z\n,,,\n")
    asked, faults = read_table(tmp_path / "jobs.csv")
    assert [each.input.name for each in asked] == ["a.mp4"]
    assert [(fault.where, fault.reason) for fault in faults] == [("line 3", "4 cells for 2 columns")]


def test_columns_that_are_right() -> None:
    assert column_hint(["a", "b"], ["a", "b"]) is None
