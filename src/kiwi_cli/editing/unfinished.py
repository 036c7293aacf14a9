"""An edit that was made and could not be written: its file beside the output, and the request that finishes it."""

from __future__ import annotations

import itertools
import json
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kiwi_cli.base.events import Events
from kiwi_cli.base.whole import whole_file
from kiwi_cli.editing import record
from kiwi_cli.editing.kept import HINT, SUFFIX, Keeper, Kept
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.engine.last_runs import state_file
from kiwi_cli.errors import CheckpointError, DeviceError, KiwiError, MediaError
from kiwi_cli.video import FrameWriter

UNRECORDED = ("overwrite", "compare", "sheet", "sidecar", "device", "max_memory", "download")
"""What a request says beside its record, its output and the ratios it measures."""
_LONGEST = 200  # bytes of an output's name in the name of what is kept


@contextmanager
def keeping(
    plan: EditPlan,
    keeper: Keeper,
    settings: dict[str, Any],
    writers: Sequence[FrameWriter],
    events: Events,
    kept: Kept | None = None,
) -> Iterator[None]:
    """When the block fails and the output is not there, what the model made is kept, and the error says how it is used.

    Args:
        settings: that the output would carry. kept: the file that this edit goes on from; it is replaced.
    """
    try:
        yield
    except Exception as error:
        if any(writer.published for writer in writers[:1]) or not _worth_keeping(error):
            raise
        path = _keep(plan, keeper, settings, kept)
        if path is None:
            raise
        said, command = f"what the model made is kept in '{path}'", f"kiwi finish {shlex.quote(str(path))}"
        if isinstance(error, KiwiError):
            hint = f"{error.hint}: {command}" if error.hint else command
            raise type(error)(f"{error.message}; {said}", hint, error.exit_code) from error
        events.warn(f"{said}: {command} writes it")
        raise


def _worth_keeping(error: Exception) -> bool:
    """False when the edit itself is what is wrong, such as values that are not finite: it would fail again."""
    return not isinstance(error, KiwiError) or isinstance(error, MediaError | DeviceError)


def _keep(plan: EditPlan, keeper: Keeper, settings: dict[str, Any], kept: Kept | None) -> Path | None:
    """The file that was written: beside the output, else where there is room; None when there is nothing to keep.

    One of a run of many lies where its output would: a full disk must not fill the next one with all of them.
    """
    output = (plan.home or plan.output.parent).absolute() / plan.output.name
    asked: dict[str, Any] = {name: plan.request[name] for name in UNRECORDED}
    asked |= {name: _text(plan.request[name]) for name in ("calibrate_cache",)}
    places = [output.parent, *(elsewhere() if plan.home is None else ())]
    for folder in places:
        beside = folder == output.parent
        text = {
            "kiwi": json.dumps(settings, ensure_ascii=False),
            "asked": json.dumps({**asked, "output": output.name if beside else str(output)}),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = _place(folder, output.name, text["kiwi"], kept)
            with whole_file(path, synced=True) as part:
                if not keeper.write(part, text):
                    return None
        except (OSError, ValueError):
            continue
        return path if not beside else (plan.home or plan.output.parent) / path.name
    return None


def elsewhere() -> Iterator[Path]:
    """Folders that are likely to be on another disk."""
    with suppress(RuntimeError):  # nobody's home
        yield state_file().parent
    with suppress(OSError):  # no temporary files either
        yield Path(tempfile.gettempdir())


def _place(folder: Path, name: str, settings: str, kept: Kept | None) -> Path:
    """The name of a file to be kept in `folder`: of one with the same settings, which it replaces, or a free one."""
    if kept is not None and kept.path.absolute().parent == folder:
        return kept.path.absolute()
    stem = name.encode()[:_LONGEST].decode("utf-8", "ignore")
    for number in itertools.count(1):
        path = folder / (f"{stem}{SUFFIX}" if number == 1 else f"{stem}-{number}{SUFFIX}")
        if not (path.exists() or path.is_symlink()):
            return path
        with suppress(KiwiError, OSError):
            if Kept(path).text.get("kiwi") == settings:
                return path
    raise AssertionError


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def request_of(kept: Kept) -> EditRequest:
    """The request that an unfinished edit was made for, checked against the files that it names.

    Raises:
        CheckpointError: the file is damaged. UsageError, MediaError: an input is missing, or is not the same any more.
    """
    try:
        settings, asked = json.loads(kept.text["kiwi"]), json.loads(kept.text["asked"])
        output = kept.path.absolute().parent / asked.pop("output")
        ratios = asked.pop("calibrate_cache")
        more = {"output": output, "calibrate_cache": None if ratios is None else Path(ratios)}
        known = {name: asked[name] for name in UNRECORDED}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(f"the unfinished edit in '{kept.path}' is damaged", HINT) from None
    request = record.request_from(settings, output.parent).changed(**known, **more)
    record.check_unchanged(settings, request, output.parent)
    return request
