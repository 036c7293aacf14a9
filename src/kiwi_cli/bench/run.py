"""A run's folder: what it is a run of, its edits, and everything that was recorded about them.

run.json            what the run is: benchmark, data, model, settings; never changed afterwards
items.json          the data set's items
edits/CATEGORY/ID   results, each renamed into place when it is whole
edits*.jsonl        what happened to each item
judgements*.jsonl   the ledger of the judges
metrics*.jsonl      figures without a judge
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.base.whole import write_text
from kiwi_cli.bench.suites.items import BENCHMARKS, Benchmark, Item
from kiwi_cli.errors import UsageError

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """An opened run.

    Attributes:
        identity: what `run.json` holds.
        data_root: what the items' paths are relative to, on this machine.
    """

    folder: Path
    identity: dict[str, Any]
    items: tuple[Item, ...]
    data_root: Path

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.identity["benchmark"]]

    @property
    def name(self) -> str:
        """What the run is called in reports: its folder's name."""
        return self.folder.resolve().name

    def edited(self, item: Item) -> Path:
        """Where an item's result is, or will be."""
        suffix = ".png" if self.benchmark.kind == "image" else ".mp4"
        return self.folder / "edits" / safe_name(item.category) / f"{item.id}{suffix}"

    def source(self, item: Item) -> Path:
        return self.data_root / item.source

    def reference(self, item: Item) -> Path | None:
        return self.data_root / item.reference if item.reference else None

    def complete(self, items: Iterable[Item]) -> list[Item]:
        """Those whose result is there."""
        return [item for item in items if self.edited(item).is_file()]


def safe_name(text: str) -> str:
    """A category as a folder's name."""
    return "".join(char if char.isalnum() or char in "-_" else "-" for char in text) or "other"


def name_of(model: str) -> str:
    """A model's short name for a folder: of a name or a Hub id its end; of a checkpoint here its path's last parts.

    Every export is `NAME/export/folder`: that end alone would be the same for all of them.
    """
    path = Path(model).expanduser()
    if not path.exists():
        return safe_name(model.rsplit("/", 1)[-1])
    parts = [part for part in path.resolve().parts[1:] if part not in ("export", "folder")]
    return safe_name("-".join(parts[-2:]))


def describe(benchmark: str, data: dict[str, Any], model: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The identity of a run."""
    return {"format": FORMAT, "benchmark": benchmark, "data": data, "model": model, "settings": settings}


def start(folder: Path, identity: dict[str, Any], items: Sequence[Item], data_root: Path) -> Run:
    """Open the run in a folder, or begin it.

    Raises:
        UsageError: the folder holds another run, or something else.
    """
    record = folder / "run.json"
    if not record.is_file():
        if folder.exists() and (not folder.is_dir() or any(_visible(folder))):
            raise UsageError(f"not a run, and not empty: '{folder}'", "pass a new folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "items.json", {"root": str(data_root.resolve()), "items": [asdict(item) for item in items]})
        _write(record, identity)
    run = open_run(folder)
    for key in ("benchmark", "data", "model", "settings"):
        if _compared(key, run.identity.get(key)) != _compared(key, identity[key]):
            raise UsageError(
                f"'{folder}' holds another run: its {key} is {_short(run.identity.get(key), identity[key])}",
                "pass another folder with --out; nothing was changed",
            )
    return Run(folder, run.identity, run.items, data_root)


def open_run(folder: Path, data_root: Path | None = None) -> Run:
    """The run in a folder.

    Raises:
        UsageError: there is none, or not one that can be read.
    """
    try:
        identity = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        listed = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        if identity["format"] != FORMAT or identity["benchmark"] not in BENCHMARKS:
            raise UsageError(f"'{folder}' was made by another version of kiwi", "use that version, or start a new run")
        items = tuple(Item(**item) for item in listed["items"])
        return Run(folder, identity, items, data_root or Path(listed["root"]))
    except FileNotFoundError:
        raise UsageError(f"no run in '{folder}'", "pass the folder given to `kiwi bench` with --out") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{folder}' is not a run that can be read: {error}", "restore its run.json") from None


def _visible(folder: Path) -> Iterable[Path]:
    return (entry for entry in folder.iterdir() if entry.name != "data" and not entry.name.startswith("."))


def _write(path: Path, data: Any) -> None:
    """Whole or not at all; a process that loses the race finds the same contents."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _compared(key: str, value: Any) -> Any:
    """Where data came from and what a model was called may differ; what they are may not."""
    if key == "data" and isinstance(value, dict):
        return value.get("digest")
    if key == "model" and isinstance(value, dict):
        return value.get("fingerprint")
    return value


def _short(old: Any, new: Any) -> str:
    """The first thing that differs, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                return f"'{old.get(key)}', not '{new.get(key)}' ({key})"
    return f"'{old}', not '{new}'"
