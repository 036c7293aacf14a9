"""A data set on this machine: fetched from the Hub once or given as a folder, read, counted and checked.

Everything wrong with it is found here, before a model is loaded or a request is paid for.
"""

from __future__ import annotations

import csv
import json
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from kiwi_cli.base.events import Events
from kiwi_cli.base.text import count as counted
from kiwi_cli.base.text import format_bytes
from kiwi_cli.bench.suites.items import Benchmark, Item, count_categories, digest, item_id
from kiwi_cli.errors import KiwiError, MediaError, UsageError


@dataclass(frozen=True)
class Dataset:
    """A data set that is whole.

    Attributes:
        root: what the items' paths are relative to.
        origin: 'hub' or 'folder'. revision: the Hub's commit, or ''.
        notices: what is not as published, in words.
    """

    benchmark: Benchmark
    root: Path
    items: tuple[Item, ...]
    origin: str
    revision: str = ""
    notices: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Items of each category."""
        return count_categories(self.items)

    def describe(self) -> dict[str, Any]:
        """What a run remembers of its data."""
        return {
            "repo": self.benchmark.repo,
            "origin": self.origin,
            "revision": self.revision,
            "digest": digest(self.items),
            "counts": self.counts,
        }


def load(benchmark: Benchmark, folder: Path | None, events: Events, unpack_to: Path | None = None) -> Dataset:
    """A data set from a folder, from the Hub's cache, or from the Hub.

    Args:
        folder: a local copy; None is the Hub's.
        unpack_to: where an archive is unpacked (ImgEdit comes as one).

    Raises:
        KiwiError: not found, not complete, or not the data set it should be.
    """
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(f"no such folder: '{folder}'", f"pass the folder that holds {benchmark.table} with --data")
        dataset = read(benchmark, folder, "folder")
    else:
        dataset = _from_hub(benchmark, events, unpack_to)
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts.items())
    events.note(f"{benchmark.title}: {counted(len(dataset.items), 'item')} ({counts})")
    for notice in dataset.notices:
        events.note(f"note: {notice}")
    return dataset


def read(benchmark: Benchmark, folder: Path, origin: str, revision: str = "") -> Dataset:
    """Read and check the items of a folder.

    Raises:
        UsageError: no table in it, or one that does not fit. MediaError: a clip or picture is missing.
    """
    table = find_table(benchmark, folder)
    rows = {"csv": _csv_rows, "yaml": _yaml_rows, "json": _json_rows}[benchmark.form](table, benchmark.columns)
    root = table.parent
    items, notices = _items(benchmark, root, table, rows)
    if not items:
        raise UsageError(f"no items in '{table}'", "check that the file is complete")
    if benchmark.count is not None and len(items) != benchmark.count:
        notices.append(f"{counted(len(items), 'item')}, where the published data set has {benchmark.count}")
    for category, count in benchmark.counts.items():
        found = sum(item.category == category for item in items)
        if found != count:
            notices.append(f"{found} {category} items, where the published data set has {count}")
    return Dataset(benchmark, root, tuple(items), origin, revision, tuple(notices))


def find_table(benchmark: Benchmark, folder: Path) -> Path:
    """The file that lists the items: in the folder, or where its archive or its parent puts it.

    Raises:
        UsageError: it is not there.
    """
    for inner in ("", benchmark.title, "singleturn", "Benchmark/singleturn", "Benchmark", "ImgEdit/singleturn"):
        table = folder / inner / benchmark.table
        if table.is_file():
            return table
    raise UsageError(f"no {benchmark.table} in '{folder}'", "pass the data set's own folder with --data")


def _csv_rows(table: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            _check_fields(columns, set(names), str(table))
            for row in reader:
                if None in row or None in row.values():
                    raise UsageError(
                        f"line {reader.line_num} of '{table}' does not have {len(names)} cells", "mend the file"
                    )
                yield f"line {reader.line_num}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read '{table}': {error}", "it is a CSV file in UTF-8") from None


def _yaml_rows(table: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import yaml

    try:
        data = yaml.safe_load(table.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read '{table}': {' '.join(str(error).split())}", "it is a YAML list") from None
    if not isinstance(data, list):
        raise UsageError(f"'{table}' is not a list", "it is a YAML list of items")
    for number, row in enumerate(data, 1):
        yield f"item {number}", _checked_fields(columns, row, f"item {number} of '{table}'")


def _json_rows(table: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = json.loads(table.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"cannot read '{table}': {error}", "it is a JSON object") from None
    if not isinstance(data, dict):
        raise UsageError(f"'{table}' is not an object", "it maps keys to items")
    for key, row in data.items():
        yield f"item '{key}'", _checked_fields(columns, row, f"item '{key}' of '{table}'")


def _checked_fields(columns: Mapping[str, str], row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not an object", f"it has {', '.join(columns.values())}")
    _check_fields(columns, set(row), where)
    return row


def _check_fields(columns: Mapping[str, str], found: set[str], where: str) -> None:
    expected = set(columns.values())
    for problem, names in (("lacks", expected - found), ("has the unknown", found - expected)):
        if names:
            listed = ", ".join(f"'{entry}'" for entry in sorted(map(str, names)))
            raise UsageError(f"{where} {problem} column {listed}", f"its columns are {', '.join(columns.values())}")


def _items(
    benchmark: Benchmark, root: Path, table: Path, rows: Iterator[tuple[str, dict[str, Any]]]
) -> tuple[list[Item], list[str]]:
    items: list[Item] = []
    seen: dict[str, int] = {}
    missing: list[str] = []
    notices: list[str] = []
    columns = benchmark.columns
    for where, row in rows:
        category, instruction, source = (str(row[columns[name]]) for name in ("type", "instruction", "source"))
        category, instruction = category.strip(), instruction.strip()
        reference = str(row[columns["reference"]]) if "reference" in columns else None
        if benchmark.categories and category not in benchmark.categories:
            raise UsageError(
                f"unknown type '{category}' in {where} of '{table}'", f"use one of {', '.join(benchmark.categories)}"
            )
        if not category or not instruction:
            raise UsageError(f"{where} of '{table}' has no {'instruction' if category else 'type'}", "mend the file")
        paths: list[str | None] = []
        for given in (source, reference):
            if given is None:
                paths.append(None)
                continue
            found = _find(root, given, benchmark, f"{where} of '{table}'")
            if found is None:
                missing.append(given)
            paths.append(found)
        if None in (paths[0], paths[1] if reference is not None else ""):
            continue
        assert paths[0] is not None
        item = Item(item_id(category, instruction, paths[0], paths[1]), category, instruction, paths[0], paths[1])
        count = seen[item.id] = seen.get(item.id, 0) + 1
        if count > 1:
            notices.append(f"{where} repeats an earlier item; it is item '{item.id}-{count}'")
            item = replace(item, id=f"{item.id}-{count}")
        items.append(item)
    if missing:
        names = ", ".join(f"'{name}'" for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise MediaError(
            f"{counted(len(missing), 'file')} that '{table}' names cannot be found: {names}",
            "fetch the data set again, or pass a complete copy with --data",
        )
    return items, notices


def _find(root: Path, given: str, benchmark: Benchmark, where: str) -> str | None:
    """The path as it is on this disk, relative to the root; None when it is not there.

    The tables name files from their own folder, from its parent (`OpenVE-Bench/videos/x.mp4`) or by bare name.
    """
    path = PurePosixPath(given.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UsageError(f"a path that leads out of the data set, '{given}', in {where}", "mend the file")
    bare = PurePosixPath(*path.parts[1:]) if path.parts[0] in (benchmark.title, benchmark.name) else path
    for folder in benchmark.folders:
        for candidate in (bare, path):
            for form in ("NFC", "NFD"):
                relative = PurePosixPath(folder, unicodedata.normalize(form, str(candidate)))
                if (root / relative).is_file():
                    return str(relative)
    return None


def _from_hub(benchmark: Benchmark, events: Events, unpack_to: Path | None) -> Dataset:
    """The cached copy if it is whole, with no request; else the Hub's."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from kiwi_cli.weights import hub_errors

    repo, patterns = benchmark.repo, list(benchmark.patterns)
    try:
        cached = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, local_files_only=True))
        return read(benchmark, _unpacked(benchmark, cached, unpack_to), "hub", cached.name)
    except (LocalEntryNotFoundError, KiwiError):
        pass  # not here, or an earlier fetch was cut short
    try:
        info = hub_errors.retrying(lambda: HfApi().dataset_info(repo, timeout=30))
        licence = getattr(info.card_data, "license", None) or benchmark.licence
        size = f", {format_bytes(benchmark.bytes)}" if benchmark.bytes else ""
        events.note(f"fetching '{repo}' at {str(info.sha)[:12]}{size}; licence: {licence}")
        folder = Path(
            snapshot_download(repo, repo_type="dataset", revision=info.sha, allow_patterns=patterns, max_workers=4)
        )
        # Fetched by commit, so that what is read is what was announced; the name is for the next start.
        snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, max_workers=4)
    except Exception as error:  # whatever the client and its HTTP library raise
        raise hub_errors.explain(error, repo) from error
    return read(benchmark, _unpacked(benchmark, folder, unpack_to), "hub", str(info.sha))


def _unpacked(benchmark: Benchmark, folder: Path, unpack_to: Path | None) -> Path:
    archive = folder / benchmark.archive
    if not benchmark.archive or not archive.is_file():
        return folder
    target = (unpack_to or folder) / benchmark.title
    whole = target / ".whole"
    if not whole.is_file():
        target.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")  # refuses links and paths that lead out
        whole.touch()
    return target
