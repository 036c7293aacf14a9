"""People's tables: four formats, one meaning; every bad row named, with why."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.data.rows import BadRow, Row, TableError, check_bad, read_rows, scan
from kiwi_cli.errors import KiwiError, UsageError

GOOD = [
    {"src_video": "a.mp4", "tgt_video": "b.mp4", "prompt": "Make it snow, please.", "ref_image": "", "kind": "snow"},
    {"src_video": "sub/c.png", "tgt_video": "b.mp4", "prompt": "Put it\nthere", "ref_image": "r.png", "kind": ""},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b.mp4", "sub/c.png", "r.png"):
        (tmp_path / name).write_bytes(b"not opened here")
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table of that format."""
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1)
    return path


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_every_format_means_the_same(folder: Path, suffix: str) -> None:
    first, second = read_rows(write(folder / f"t.{suffix}", GOOD))
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert (first.source, first.target) == (folder / "a.mp4", folder / "b.mp4")
    assert (first.prompt, first.reference, first.mask, first.kind) == ("Make it snow, please.", None, None, "snow")
    assert (second.source, second.reference) == (folder / "sub/c.png", folder / "r.png")
    assert second.prompt == "Put it\nthere"
    assert scan(folder / f"t.{suffix}") == (2, [])


def test_the_released_parquet(folder: Path) -> None:
    """`iid, prompt, src_video, tgt_video, ref_image_bytes`: the reference is in the table."""
    rows = [
        {"iid": f"x{k}", "prompt": "p", "src_video": "a.mp4", "tgt_video": "b.mp4", "ref_image_bytes": png(k)}
        for k in range(3)
    ]
    table = write(folder / "t.parquet", rows)
    assert [row.reference for row in read_rows(table)] == [png(k) for k in range(3)]  # type: ignore[union-attr]
    assert scan(table) == (3, [])


def test_pictures_as_the_library_datasets_stores_them(folder: Path) -> None:
    rows = [{**GOOD[0], "ref_image_bytes": {"bytes": png(9), "path": None}}]
    (row,) = read_rows(write(folder / "t.parquet", rows))
    assert isinstance(row, Row)
    assert row.reference == png(9)


def test_one_row_group_of_a_parquet_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write(folder / "t.parquet", [GOOD[0]] * 3)
    from pyarrow.parquet import ParquetFile

    read, real = [], ParquetFile.read_row_group
    monkeypatch.setattr(
        ParquetFile, "read_row_group", lambda self, group, **more: read.append(group) or real(self, group, **more)
    )
    rows = read_rows(table)
    next(rows)
    assert read == [0]
    next(rows)
    assert read == [0, 1]


def test_without_pyarrow_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError) as caught:
        list(read_rows(folder / "t.parquet"))
    assert "pyarrow" in caught.value.message
    assert "kiwi-cli[train]" in caught.value.hint


def test_another_base(folder: Path) -> None:
    (folder / "tables").mkdir()
    table = write(folder / "tables/t.csv", GOOD)
    assert scan(table, folder) == (2, [])
    # Paths may lead anywhere: they are the person's own files.
    outside = write(folder / "sub/t.csv", [{**GOOD[0], "src_video": "../a.mp4", "tgt_video": str(folder / "b.mp4")}])
    assert scan(outside) == (1, [])


def test_a_wrong_base_is_told_from_missing_files(folder: Path) -> None:
    table = write(folder / "t.csv", GOOD)
    with pytest.raises(UsageError) as caught:
        scan(table, folder / "sub")
    assert str(folder / "sub/a.mp4") in caught.value.message
    assert f"base '{folder / 'sub'}'" in caught.value.message
    assert "--base" in caught.value.hint
    (folder / "r.png").unlink()
    count, bad = scan(table)
    assert (count, [row.label for row in bad]) == (2, ["row 2"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"src_video": ""}, "no src_video"),
        ({"tgt_video": "gone.mp4"}, "no such file: '{folder}/gone.mp4' (tgt_video)"),
        ({"ref_image": "gone.png"}, "no such file: '{folder}/gone.png' (ref_image)"),
        ({"mask": "gone.mkv"}, "no such file: '{folder}/gone.mkv' (mask)"),
        ({"src_video": "x" * 5000}, "src_video is no path"),
        ({"split": "test"}, "unknown split 'test'"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_bad_row_is_named_and_the_others_stay(folder: Path, suffix: str, change: dict[str, str], why: str) -> None:
    whole = {"mask": "", "split": "", **GOOD[0]}
    first, bad, last = read_rows(write(folder / f"t.{suffix}", [whole, {**whole, **change}, whole]))
    assert isinstance(first, Row)
    assert isinstance(last, Row)
    assert isinstance(bad, BadRow)
    assert bad.label == "row 2"
    assert why.format(folder=folder) in bad.reason


def test_rows_of_json_that_are_no_rows(folder: Path) -> None:
    table = folder / "t.jsonl"
    lines = [json.dumps(GOOD[0]), "{broken", "3", json.dumps({**GOOD[0], "prompt": 3}), "", json.dumps(GOOD[1])]
    table.write_text("\n".join(lines))
    rows = list(read_rows(table))
    assert [type(row) for row in rows] == [Row, BadRow, BadRow, BadRow, Row]
    reasons = [row.reason for row in rows if isinstance(row, BadRow)]
    assert reasons[0].startswith("it is no JSON")
    assert reasons[1:] == ["it is no object: 3", "the prompt is no text"]


def test_a_comma_outside_quotes(folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("src_video,tgt_video,prompt\na.mp4,b.mp4,make it red, quickly\n")
    (row,) = read_rows(table)
    assert isinstance(row, BadRow)
    assert "quotes" in row.reason


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_a_missing_column_is_an_error_of_the_table(folder: Path, suffix: str) -> None:
    rows = [{"src_video": "a.mp4", "target": "b.mp4", "prompt": "p"}]
    with pytest.raises(TableError) as caught:
        list(read_rows(write(folder / f"t.{suffix}", rows)))
    assert "no column 'tgt_video'" in caught.value.message
    assert "target" in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", "no column 'src_video'"),
        ("t.csv", b"src_video,tgt_video,prompt\n", "has no rows"),
        ("t.csv", b"src_video,tgt_video,prompt\n\xff\xfe,b,c\n", "is not UTF-8"),
        ("t.csv", b'src_video,tgt_video,prompt\na.mp4,b.mp4,"open', "is no CSV"),
        ("t.json", b"{}", "holds no list"),
        ("t.json", b"[1", "is no JSON"),
        ("t.json", b"[]", "has no rows"),
        ("t.parquet", b"PAR1 not at all", "cannot read"),
        ("t.txt", b"", "not a table"),
        ("gone.csv", None, "table not found"),
    ],
)
def test_a_table_that_is_none(folder: Path, name: str, content: bytes | None, words: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(KiwiError) as caught:
        scan(folder / name)
    assert words in caught.value.message
    assert caught.value.hint


def test_bad_rows_are_passed_over_up_to_a_limit() -> None:
    check_bad(["row 1: x"], 50, 0.01)  # one always may be
    check_bad(["x"] * 5, 500, 0.01)
    with pytest.raises(TableError) as caught:
        check_bad([f"row {k}: why" for k in range(30)], 500, 0.01)
    assert "30 bad rows, at most 5 of 500" in caught.value.message
    assert "row 19: why\n  and 10 more" in caught.value.message
    with pytest.raises(TableError):
        check_bad(["x"], 1, 0.5)  # none is left


def test_tables_need_no_heavy_library() -> None:
    heavy = ("torch", "diffusers", "transformers", "pyarrow", "av")
    code = f"import sys, kiwi_cli.data.rows; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        (['a.mp4,b.mp4,"fine"', 'a.mp4,b.mp4,"broken"x'], "in line 3"),
        (['"broken"x,b.mp4,c'], "in line 2"),
        (["", "", 'a.mp4,b.mp4,"never closed', "more", "and more"], "in the row of lines 4 to 6"),
        (['a.mp4,b.mp4,"two', 'lines"', 'a.mp4,b.mp4,"x"y'], "in line 4"),
    ],
    ids=["after a good row", "the first", "never closed", "after a row of two lines"],
)
def test_a_broken_quote_is_named_by_its_line(rows: list[str], where: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["src_video,tgt_video,prompt", *rows]) + "\n")
    with pytest.raises(TableError, match=f"is no CSV: .* {where}$"):
        list(read_rows(table))
