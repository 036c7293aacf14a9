"""A table of edits: CSV or JSON lines, a row an edit. Every row's fault is found, not only the first.

Columns: `input`, `instruction`, `reference` (several with ';' between them, or a list in JSON), `output`, and any
option of an edit by its name: `seed`, `steps`, `start`, `mask`, ... An empty cell is as if the column were not there.
Paths are relative to the table's folder.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from kiwi_cli.base.columns import column_hint
from kiwi_cli.base.option import Row, rows
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import KiwiError, MediaError, UsageError

FORMATS = (".csv", ".jsonl")
NOT_IN_TABLES = ("overwrite", "calibrate_cache", "preview", "seeds")
OTHER_NAMES = {"reference": "references", "ref": "references", "lora": "loras"}
MEANT = dict.fromkeys(("prompt", "text", "edit"), "instruction") | {"out": "output", "image": "reference"}
MEANT |= dict.fromkeys(("clip", "video", "file", "path", "source", "src_video"), "input")
"""What people write in a first line, and is no option's name."""
COLUMNS = {name: row for name, row in rows(EditRequest).items() if name not in NOT_IN_TABLES}
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Asked:
    """One edit as it is asked for.

    Attributes:
        where: in which line, or argument: 'line 3'. output: its name in the run's folder; None: the input's.
        options: of `EditRequest`, by name.
    """

    where: str
    input: Path
    instruction: str = ""
    output: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be used. `of_table`: it is the table's, so that no row can be."""

    where: str
    reason: str
    hint: str = ""
    of_table: bool = False


def read_table(path: Path, base: Path | None = None) -> tuple[list[Asked], list[Fault]]:
    """The edits of a table in order, and the faults of its first line and of rows that ask for no edit.

    Args:
        base: what paths are relative to; None: the table's folder.

    Raises:
        UsageError: no such table, an unknown format, no inputs, or a column twice. MediaError: it cannot be read.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"not a table of edits: '{path}'", f"use a {' or '.join(FORMATS)} file")
    if not path.is_file():
        raise UsageError(f"table not found: '{path}'", "pass the path of a .csv or .jsonl file")
    asked: list[Asked] = []
    faults: list[Fault] = []
    try:
        for number, cells in _csv(path, faults) if path.suffix.lower() == ".csv" else _json_lines(path):
            found = _asked(f"line {number}", cells, base or path.parent)
            if isinstance(found, Asked):
                asked.append(found)
            else:
                faults += found
    except (OSError, UnicodeDecodeError) as error:
        raise MediaError(f"cannot read the table '{path}': {error}", "save it as UTF-8") from error
    if not asked and not faults:
        raise UsageError(f"no rows in '{path}'", "write a row for each edit below the names of the columns")
    return asked, faults


def _csv(path: Path, faults: list[Fault]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows' numbers and cells; columns that there are not are added to `faults`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        lines = _lines(reader, path)
        first = next(lines, [])
        while first and not first[-1].strip():  # as spreadsheets end their lines
            first.pop()
        names = _named(first, faults)
        if "input" not in names:
            if faults:
                raise UsageError(faults[0].reason, faults[0].hint)
            raise UsageError(f"'{path}' has no column 'input'", "name the columns in the first line: input,instruction")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"'{path}' has the column '{twice}' twice", "leave one of them out")
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if not any(cell.strip() for cell in cells[len(names) :]):
                del cells[len(names) :]
            if len(cells) != len(names):
                yield reader.line_num, f"{len(cells)} cells for {len(names)} columns"
                continue
            rows = zip(names, cells, strict=True)
            yield reader.line_num, {name: cell for name, cell in rows if cell.strip() and name in COLUMNS}


def _lines(reader: Any, path: Path) -> Iterator[list[str]]:
    """The cells of line after line; one that is broken is named by the line in which it begins."""
    begins = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = "a quote is not closed" if "unexpected end" in str(error) else str(error)
            hint = (
                f"separate cells with commas, and mend the quotes in line {begins}: one within a cell is written twice"
            )
            raise MediaError(f"'{path}' is no CSV in line {begins}: {reason}", hint) from error
        if cells is None:
            return
        begins = reader.line_num + 1
        yield cells


def _named(first: list[str], faults: list[Fault]) -> list[str]:
    """The columns that a first line names; others are noted, and taken for what was meant."""
    names = [_plain(name) for name in first]
    for at, name in enumerate(first):
        try:
            column_of(name)
        except UsageError as error:
            faults.append(Fault("line 1", error.message, error.hint, of_table=True))
            meant = _nearest(name)
            names[at] = meant if meant is not None and meant not in names else f"{at}: {name}"
    return names


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except ValueError as error:
                yield number, f"not JSON: {error}"
                continue
            if isinstance(cells, dict):
                yield number, {name: cell for name, cell in cells.items() if cell is not None and cell != ""}
            else:
                yield number, "not an object of JSON"


def column_of(name: str) -> str:
    """The option that a column is.

    Raises:
        UsageError: none.
    """
    plain = _plain(name)
    if plain not in COLUMNS:
        some = "input, instruction, reference, output, seed, steps, start, duration, mask"
        hint = column_hint([name], [*OTHER_NAMES, *COLUMNS], MEANT)
        raise UsageError(
            f"unknown column: '{name.strip()}'", hint or f"use {some} or another option of `kiwi edit`, by its name"
        )
    return plain


def _plain(name: str) -> str:
    """A column's name as options are named."""
    plain = name.strip().lower().lstrip("-").replace("-", "_").replace(" ", "_")
    return OTHER_NAMES.get(plain, plain)


def _nearest(name: str) -> str | None:
    """The column that was probably meant by one that there is not."""
    plain = _plain(name)
    if plain in MEANT:
        return MEANT[plain]
    near = difflib.get_close_matches(plain, COLUMNS, 1, 0.65)
    return near[0] if near else None


def _asked(where: str, cells: dict[str, Any] | str, base: Path) -> Asked | list[Fault]:
    """The edit that a row asks for, or all that is wrong with its cells."""
    if isinstance(cells, str):
        return [Fault(where, cells, "mend or remove the line")]
    values, faults = {}, []
    for name, cell in cells.items():
        try:
            row = COLUMNS[column_of(name)]
            values[row.name] = value_of(row, cell, base)
        except ValueError as error:
            faults.append(Fault(where, f"{name} is {cell!r}: {error}", "mend the line"))
        except KiwiError as error:
            faults.append(Fault(where, error.message, error.hint))
    if "input" not in values and not faults:
        faults.append(Fault(where, "no input", "say which clip is to be edited"))
    if faults:
        return faults
    output = values.pop("output", None)
    return Asked(
        where, values.pop("input"), values.pop("instruction", ""), None if output is None else str(output), values
    )


def value_of(row: Row, cell: Any, base: Path) -> Any:
    """An option's value from a cell: text of CSV, or a value of JSON.

    Raises:
        ValueError: it is not of the option's kind. KiwiError: its own parser refuses it.
    """
    if row.many:
        each = cell if isinstance(cell, list) else str(cell).split(";")
        parts = [str(part).strip() for part in each if str(part).strip()]
        return tuple(_path(part, base) if row.is_path else _file_or_name(part, base) for part in parts)
    if isinstance(cell, (list, dict)):
        raise ValueError("one value is wanted")
    if row.is_flag:
        text = str(cell).strip().lower()
        if text not in TRUE + FALSE:
            raise ValueError("write true or false")
        return text in TRUE
    if row.option.parser is not None:
        return row.option.parser(str(cell))
    kinds = get_args(row.kind) or (row.kind,)
    for kind, words in ((int, "a whole number"), (float, "a number")):
        if kind in kinds:
            try:
                number = float(cell) if isinstance(cell, (int, float)) else float(str(cell))
                if kind is int and number != int(number):
                    raise ValueError
                return int(str(cell)) if kind is int and not isinstance(cell, float) else kind(number)
            except (ValueError, OverflowError):
                raise ValueError(f"{words} is wanted") from None
    if not isinstance(cell, str):
        raise ValueError("text is wanted")
    if row.name == "output":
        return Path(cell.strip())
    if row.name == "mask":
        return str(_path(cell.strip(), base)) if _path(cell.strip(), base).exists() else cell.strip()
    return _path(cell.strip(), base) if row.is_path else cell if row.name == "instruction" else cell.strip()


def _path(text: str, base: Path) -> Path:
    return base / Path(text).expanduser()


def _file_or_name(text: str, base: Path) -> str:
    """A file of the table's, or what is found by its name."""
    source = text.rpartition(":")[0] or text
    return str(base / text) if (base / text).is_file() or (base / source).is_file() else text
