"""Where the state of a long edit lies: beside its output, or where an earlier run of the same edit left it.

A state is of latents. What is done with them afterwards (another name, codec, mask or detail) is no other edit, so it
can be gone on with for another output as well: where states were left is noted in a file of the person's state folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kiwi_cli.base.whole import write_text
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.unfinished import elsewhere
from kiwi_cli.engine.last_runs import state_file

OF_WRITING = ("codec", "quality", "sound", "mask", "feather", "keep_rest", "detail", "parts", "allow_truncated")
"""What a record says of an edit that its latents do not depend on."""
MOST = 50
"""States that are remembered, the latest."""


def made_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the latents of an edit are made from, of the settings that its output carries: files by what is in them."""
    made = {name: _contents(value) for name, value in settings.items() if name not in OF_WRITING}
    if made.get("checkpoint") is not None:
        made.pop("model", None)  # a folder may be named from anywhere
    return made


def _contents(value: Any) -> Any:
    """A recorded value without the paths in it."""
    if isinstance(value, list):
        return [_contents(each) for each in value]
    if isinstance(value, dict) and value.get("sha256") is not None:
        return {name: each for name, each in value.items() if name not in ("path", "source")}
    return value


def work_folders(plan: EditPlan) -> list[Path]:
    """Where the state of an edit lies or may lie: beside the output, and where one goes that has no room there."""
    beside = work_folder(plan.output)
    if plan.home is not None:  # one of many: a full disk must not fill the next one
        return [beside]
    name = f"{beside.name}-{hashlib.sha256(str(plan.output.absolute()).encode()).hexdigest()[:8]}"
    return [beside, *(folder / name for folder in elsewhere())]


def work_folder(output: Path) -> Path:
    """Where the state of an edit lies while it is made: '.clip-edited.mp4.kiwi-work', beside the output."""
    stem = output.name[:40].encode()[:100].decode("utf-8", "ignore")  # no more bytes than a file name holds
    return output.with_name(f".{stem}.kiwi-work")


def left_by(made: Mapping[str, Any]) -> Path | None:
    """Where a run of the same edit has left its state, whatever its output was; None when nothing is known of one."""
    folder = _read().get(_digest(made))
    return Path(folder) if folder is not None and Path(folder).is_dir() else None


def remember(made: Mapping[str, Any], folder: Path) -> None:
    """Note where the state of an edit was left. Without a word where nothing can be written."""
    there = {digest: path for digest, path in _read().items() if Path(path).is_dir()}
    there[_digest(made)] = str(folder.absolute())
    with suppress(OSError, RuntimeError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_text(_file(), json.dumps(dict(list(there.items())[-MOST:]), indent=1) + "\n")


def _file() -> Path:
    return state_file().with_name("long-edits.json")


def _read() -> dict[str, str]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
        return {str(digest): str(path) for digest, path in found.items()}
    except (OSError, RuntimeError, ValueError, AttributeError):  # RuntimeError: nobody's home
        return {}


def _digest(made: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(made), sort_keys=True).encode()).hexdigest()
