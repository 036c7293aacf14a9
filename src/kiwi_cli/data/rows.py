"""People's training tables: `src_video, tgt_video, prompt[, ref_image]` in CSV, JSON, JSONL or parquet, row by row.

A row that cannot be used becomes a `BadRow` that says why; what is wrong with the whole table is an error. Media are
not opened here, and no heavy library is imported, save pyarrow for a parquet table.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.base.columns import column_hint
from kiwi_cli.errors import MediaError, UsageError

REQUIRED = ("src_video", "tgt_video", "prompt")
OPTIONAL = ("ref_image", "ref_image_bytes", "mask", "kind", "split", "iid", "reverse_prompt")
"""Columns that are read besides; any other is left alone. `ref_image_bytes` is the released parquet's."""
OTHER_NAMES = {
    "src_video": ("source_path", "source_video", "original_video", "vace_video", "source_video_path"),
    "tgt_video": (
        "edited_path",
        "target_path",
        "edited_video",
        "target_video",
        "edited_result_path",
        "tar_video",
        "video",
    ),
    "prompt": ("instruction", "edit_instruction", "edit_prompt", "instruction_final_refine"),
    "kind": ("edited_type", "edit_type", "task"),
    "iid": ("id", "video_id"),
}
"""What Ditto-1M, ReCo, OpenVE-3M and tables like theirs call our columns; ours come first where a table has both."""
SPLITS = ("train", "held_out")
FORMATS = (".csv", ".json", ".jsonl", ".parquet")


LISTED = 20
"""Bad rows that an error lists."""


class TableError(MediaError):
    """A table that cannot be read, or none of whose rows can be meant."""


@dataclass(frozen=True)
class Row:
    """A row whose files are there.

    Attributes:
        label: 'row 3', as errors name it; the header is not counted.
        source, target, mask: videos, pictures, or folders of numbered pictures.
        reference: a picture's file, or the bytes of one.
        names: column -> path as the table has it.
        split: 'train', 'held_out', or None where the table does not say.
        iid: the row's own name in its data set; '' without.
        reverse_prompt: the instruction that turns the target into the source; '' without.
    """

    label: str
    source: Path
    target: Path
    prompt: str
    reference: Path | bytes | None
    mask: Path | None
    kind: str
    split: str | None
    names: dict[str, str]
    iid: str = ""
    reverse_prompt: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why. `missing`: because that file is not there."""

    label: str
    reason: str
    missing: Path | None = None


class _Missing(ValueError):
    def __init__(self, column: str, path: Path) -> None:
        super().__init__(f"no such file: '{path}' ({column})")
        self.path = path


def read_rows(table: Path, base: Path | None = None, pictures: bool = True) -> Iterator[Row | BadRow]:
    """The rows of a table in order.

    Args:
        base: what paths are relative to; None: the table's folder.
        pictures: False leaves a parquet table's pictures unread, where only the rest is to be checked.

    Raises:
        UsageError: no such table, another format, or pyarrow is missing. TableError: it cannot be read, or lacks a
            column.
    """
    base = table.parent if base is None else base
    for number, values in enumerate(_values(table, pictures), start=1):
        label = f"row {number}"
        if isinstance(values, str):
            yield BadRow(label, values)
            continue
        try:
            yield _row(label, values, base)
        except ValueError as error:
            yield BadRow(label, str(error), error.path if isinstance(error, _Missing) else None)


def scan(table: Path, base: Path | None = None) -> tuple[int, list[BadRow]]:
    """Go through a table without opening its media.

    Returns:
        How many rows it has, and the bad ones.

    Raises:
        UsageError, TableError: as `read_rows`; no rows; not one of the files is there, so the base is wrong.
    """
    count = 0
    bad: list[BadRow] = []
    for row in read_rows(table, base, pictures=False):
        count += 1
        if isinstance(row, BadRow):
            bad.append(row)
    if not count:
        raise TableError(f"'{table}' has no rows", "give each edit a row")
    if len(bad) == count and all(row.missing for row in bad):
        where = table.parent if base is None else base
        raise UsageError(
            f"none of the files of '{table}' are there; with the base '{where}' the first is '{bad[0].missing}'",
            "pass the folder that the paths are relative to with --base",
        )
    return count, bad


def check_bad(bad: Sequence[str], rows: int, max_bad: float) -> None:
    """Stop when more rows are bad than may be.

    Raises:
        TableError: with the rows.
    """
    limit = max(1, int(max_bad * rows))
    if len(bad) <= limit and len(bad) < rows:
        return
    more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    listed = "\n  ".join(bad[:LISTED])
    raise TableError(
        f"{len(bad)} bad rows, at most {limit} of {rows} are passed over:\n  {listed}{more}",
        "mend or remove those rows, or raise --max-bad",
    )


def _row(label: str, values: dict[str, Any], base: Path) -> Row:
    """Raises ValueError with the reason."""
    names: dict[str, str] = {}
    paths: dict[str, Path] = {}
    for column in ("src_video", "tgt_video", "ref_image", "mask"):
        value = values.get(column)
        if value is None or value == "":
            if column in REQUIRED:
                raise ValueError(f"no {column}")
            continue
        if not isinstance(value, str):
            raise ValueError(f"{column} is no path: {value!r:.80}")
        names[column], paths[column] = value, base / value
    prompt = values.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            "the prompt is empty" if prompt is None or isinstance(prompt, str) else "the prompt is no text"
        )
    split = values.get("split") or None
    if split is not None and split not in SPLITS:
        raise ValueError(f"unknown split '{split}': it is {' or '.join(SPLITS)}")
    picture = values.get("ref_image_bytes")
    if isinstance(picture, dict):  # as the library `datasets` stores pictures
        picture = picture.get("bytes")
    if picture is not None and not isinstance(picture, bytes):
        raise ValueError("ref_image_bytes are no bytes")
    for column, path in paths.items():
        try:
            there = path.exists()
        except (OSError, ValueError) as error:  # a name too long, or with a null in it
            raise ValueError(f"{column} is no path: {error}") from None
        if not there:
            raise _Missing(column, path)
    return Row(
        label=label,
        source=paths["src_video"],
        target=paths["tgt_video"],
        prompt=prompt.strip(),
        reference=paths.get("ref_image") or picture or None,
        mask=paths.get("mask"),
        kind=str(values.get("kind") or ""),
        split=split,
        names=names,
        iid=str(values.get("iid") or ""),
        reverse_prompt=str(values.get("reverse_prompt") or "").strip(),
    )


def _values(table: Path, pictures: bool) -> Iterator[dict[str, Any] | str]:
    """Each row's columns, or what is wrong with it."""
    if table.suffix.lower() not in FORMATS:
        raise UsageError(f"not a table: '{table}'", f"pass one that ends in {', '.join(FORMATS)}")
    if not table.is_file():
        raise UsageError(f"table not found: '{table}'", "pass the path of a CSV, JSON, JSONL or parquet file")
    read = {".csv": _csv, ".json": _json, ".jsonl": _jsonl}.get(table.suffix.lower())
    try:
        yield from _parquet(table, pictures) if read is None else read(table)
    except UnicodeDecodeError as error:
        raise TableError(f"'{table}' is not UTF-8: {error.reason} at byte {error.start}", "save it as UTF-8") from None
    except OSError as error:
        raise TableError(f"cannot read '{table}': {error.strerror or error}", "check the file's permissions") from error


def ours(found: Iterable[str]) -> dict[str, str]:
    """The columns of a table -> what they are called here."""
    columns = list(found)
    names = {name: name for name in columns}
    for name, others in OTHER_NAMES.items():
        if name not in columns and (theirs := next((other for other in others if other in columns), None)):
            names[theirs] = name
    return names


def _check_columns(table: Path, found: Iterable[str]) -> None:
    if missing := [name for name in REQUIRED if name not in ours(found).values()]:
        have = ", ".join(list(found)[:12]) or "none"
        known = (*REQUIRED, *OPTIONAL, *itertools.chain(*OTHER_NAMES.values()))
        raise TableError(
            f"'{table}' has no column '{missing[0]}'; its columns are {have}",
            column_hint(list(found), known)
            or f"name the columns {', '.join(REQUIRED)} and, if there are references, ref_image",
        )


def _csv(table: Path) -> Iterator[dict[str, Any] | str]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        file.seek(0)
        reader = csv.reader(file, strict=True, delimiter=";" if ";" in head and "," not in head else ",")
        begins = 1  # the line that the row being read begins in
        try:
            names = next(reader, [])
            _check_columns(table, names)
            names = list(ours(names).values())
            begins = reader.line_num + 1
            for values in reader:
                begins = reader.line_num + 1
                if len(values) > len(names):
                    yield "it has more values than columns: put quotes around a prompt with commas"
                elif values:
                    yield dict(zip(names, values, strict=False))
        except csv.Error as error:
            where = f"line {begins}" if reader.line_num <= begins else f"the row of lines {begins} to {reader.line_num}"
            raise TableError(f"'{table}' is no CSV: {error} in {where}", f"mend the quotes in line {begins}") from None


def _json(table: Path) -> Iterator[dict[str, Any] | str]:
    try:
        rows = json.loads(table.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TableError(f"'{table}' is no JSON: {error}", "one object a line belongs into a .jsonl file") from None
    if not isinstance(rows, list):
        raise TableError(f"'{table}' holds no list", "write a list of objects, one for each row")
    yield from _objects(table, rows)


def _jsonl(table: Path) -> Iterator[dict[str, Any] | str]:
    def parsed() -> Iterator[Any]:
        with table.open(encoding="utf-8-sig") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    yield f"it is no JSON: {error}"

    yield from _objects(table, parsed())


def _objects(table: Path, rows: Any) -> Iterator[dict[str, Any] | str]:
    """Rows of JSON. A name that no row has is a missing column; some rows may lack an optional one."""
    seen: set[str] = set()
    waiting: list[dict[str, Any] | str] = []  # until a row has shown the columns
    for row in rows:
        if isinstance(row, dict):
            names = ours(row)
            row = {names[name]: value for name, value in row.items()}
            seen.update(row)
        elif not isinstance(row, str) or not row.startswith("it is no JSON"):
            row = f"it is no object: {row!r:.80}"
        if seen.issuperset(REQUIRED):
            yield from waiting
            waiting = []
            yield row
        else:
            waiting.append(row)
    if waiting:
        if seen:
            _check_columns(table, sorted(seen))
        yield from waiting


def _parquet(table: Path, pictures: bool) -> Iterator[dict[str, Any] | str]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(
            f"parquet tables need pyarrow, which is not installed: '{table}'",
            "install the extra 'train': pip install 'kiwi-cli[train]'",
        ) from None
    try:
        with ParquetFile(table) as file:
            found = list(file.schema_arrow.names)
            _check_columns(table, found)
            names = {theirs: name for theirs, name in ours(found).items() if name in (*REQUIRED, *OPTIONAL)}
            wanted = [theirs for theirs, name in names.items() if pictures or name != "ref_image_bytes"]
            for group in range(file.num_row_groups):  # one in memory at a time: their pictures may be gigabytes
                for row in file.read_row_group(group, columns=wanted).to_pylist():
                    yield {names[theirs]: value for theirs, value in row.items()}
    except ArrowException as error:
        raise TableError(f"cannot read '{table}': {error}", "check that the file is whole") from error
