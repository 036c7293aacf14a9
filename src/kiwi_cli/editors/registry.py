"""The editors that there are: a row for each. Nothing heavy is imported before one is loaded."""

from __future__ import annotations

from dataclasses import fields

from kiwi_cli.base.option import Option
from kiwi_cli.editors import command, fal, folder, kiwi, library, runway
from kiwi_cli.editors.base import Kind
from kiwi_cli.engine.choice import ModelChoice, Sampling
from kiwi_cli.errors import UsageError

EDITORS: dict[str, Kind] = {
    "kiwi": kiwi,
    **library.KINDS,
    "command": command.KIND,
    "folder": folder.KIND,
    "runway": runway.KIND,
    "fal": fal.KIND,
}


def kind_of(choice: ModelChoice) -> Kind:
    """The kind of editor that a model needs: the last row that claims it.

    Raises:
        UsageError: there is none of that name.
    """
    for kind in reversed(EDITORS.values()):
        if kind.claims(choice):
            return kind
    raise UsageError(f"unknown --editor: '{choice.editor}'", f"use one of {', '.join(EDITORS)} (docs/editors.md)")


def default_model(editor: str) -> str:
    """The model that an editor takes when none is named; '' of one that has none, and of Kiwi's own, which depends on
    the task."""
    kind = library.KINDS.get(editor)
    return kind.family.model if kind is not None else ""


def check_used(choice: ModelChoice, sampling: Sampling, besides: frozenset[str] = frozenset()) -> None:
    """Refuse options that the editor has no use for, so that none is taken and does nothing.

    Args:
        besides: fields that somebody else has a use for.

    Raises:
        UsageError: the first such option; or an unknown editor.
    """
    used = kind_of(choice).uses(choice)
    for part in (choice, sampling):
        for each in fields(part):
            if each.name in used or each.name in besides or each.name == "editor":
                continue
            if getattr(part, each.name) != each.default:
                option: Option = each.metadata["option"]
                flag = option.flags[0].partition("/")[0]
                unset = f", or unset {option.env}" if option.env else ""
                raise UsageError(f"{flag} does nothing with --editor {choice.editor}", f"leave it out{unset}")
