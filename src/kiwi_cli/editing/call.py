"""Edits from Python: what `kiwi edit` and `kiwi ref-edit` do, as a call. Nothing is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.base.option import rows
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.windowing import Windowing
from kiwi_cli.engine.choice import ModelChoice, Sampling
from kiwi_cli.errors import UsageError
from kiwi_cli.weights.catalog import DEFAULT_EDIT, DEFAULT_REF_EDIT

if TYPE_CHECKING:
    from kiwi_cli.editing.session import EditResult
    from kiwi_cli.editors.base import Editor

PATHS = tuple(row.name for row in rows(EditRequest).values() if row.is_path and not row.many and row.name != "mask")
NOT_OPTIONS = {"choice", "sampling", "windowing", "previewing", "input", "instruction", "references"}


def edit(
    input: str | Path,
    instruction: str,
    *,
    references: Sequence[str | Path] = (),
    editor: Editor | str | None = None,
    events: Events = SILENT,
    **options: Any,
) -> EditResult:
    """What was written and how, after one edit of a video, a picture or a folder of numbered pictures.

    Args:
        input: its path.
        instruction: what to change.
        references: paths of reference pictures.
        editor: a model that `load` gave, for several edits; None loads one for this edit, and a name
            (docs/editors.md) another editor than Kiwi's.
        events: told of progress and of what a person should know.
        options: the command's, by their names: output, model, seed, steps, size, start, duration, frames, mask, ...
            (docs/cli.md; `EditRequest`, `ModelChoice` and `Sampling` have them all).

    Raises:
        KiwiError: what cannot be done, with what would help.
    """
    from kiwi_cli.editing.prepare import prepare
    from kiwi_cli.editing.session import Session

    with Session(None if isinstance(editor, str) else editor, events) as session:
        return session.run(prepare(request(input, instruction, references, editor, **options), events))


def request(
    input: str | Path,
    instruction: str,
    references: Sequence[str | Path] = (),
    editor: Editor | str | None = None,
    **options: Any,
) -> EditRequest:
    """A request from a call's arguments; what is not said of the model is the loaded editor's."""
    values = _checked(options, EditRequest, ModelChoice, Sampling, Windowing)
    if values.get("mask") is not None:
        values["mask"] = str(values["mask"])
    choice = ModelChoice(DEFAULT_REF_EDIT if references else DEFAULT_EDIT)
    if isinstance(editor, str):
        choice, editor = _named(editor), None
    if editor is not None:
        choice = editor.identity().choice
    asked = EditRequest(Path(input), instruction, tuple(map(Path, references)), choice=choice).changed(**values)
    if editor is not None and asked.detail == "auto" and not editor.gives_round_trip:
        return asked.changed(detail="model")  # the plan only knows what the model's own editor could give
    return asked


def load(model: str = DEFAULT_EDIT, *, events: Events = SILENT, **options: Any) -> Editor:
    """A loaded model for several edits: `edit(..., editor=load("tiny"))`. `close()` it, or let the process end.

    Args:
        model: a variant's name, a Hub id or a folder; what is missing is fetched.
        events: told of a download.
        options: of `ModelChoice`: device, dtype, memory, loras, quantize, ...

    Raises:
        KiwiError: it cannot be had, or not on this machine.
    """
    from kiwi_cli.editors.registry import check_used, kind_of

    values = _checked(options, ModelChoice)
    choice = _named(values.pop("editor", "kiwi"))
    if choice.editor == "kiwi" or model != DEFAULT_EDIT:
        values["model"] = model
    choice = replace(choice, **values)
    choice.check()
    check_used(choice, Sampling())
    kind = kind_of(choice)
    found = kind.find(choice)
    kind.admit(found, choice)
    if found.missing:
        found = kind.fetch(choice, events)
        kind.admit(found, choice)
    return kind.load(found, choice, events)


def _named(editor: str) -> ModelChoice:
    """The choice of an editor by its name, with its own model."""
    from kiwi_cli.editors.registry import default_model

    return ModelChoice(default_model(editor), editor=editor)


def _checked(options: dict[str, Any], *classes: type) -> dict[str, Any]:
    """Options that there are, in the types that requests hold."""
    known = {each.name for cls in classes for each in fields(cls)} - NOT_OPTIONS
    for name in options:
        if name not in known:
            raise UsageError(f"no such option: '{name}'", f"use some of {', '.join(sorted(known))}")
    values = dict(options)
    for name in PATHS:
        if values.get(name) is not None:
            values[name] = Path(values[name])
    if "loras" in values:
        values["loras"] = (values["loras"],) if isinstance(values["loras"], str) else tuple(values["loras"])
    return values
