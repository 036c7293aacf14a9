"""Whether a plan fits: the loaded editor that it is for, the model's kind, this machine's memory."""

from __future__ import annotations

from typing import Any, TypeGuard

from kiwi_cli.base.hardware import memory
from kiwi_cli.base.identity import fingerprint
from kiwi_cli.base.option import rows
from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.editing.checks import length_warnings
from kiwi_cli.editing.plan import EditPlan
from kiwi_cli.editors.base import Editor, Identity, LongEditor
from kiwi_cli.engine.choice import BLOCK_CACHES, ModelChoice
from kiwi_cli.engine.memory import is_exact
from kiwi_cli.errors import DeviceError, UsageError

TOLD_APART = ("model", "revision", "download")
"""Choices that say which model it is, or how it is had: compared by what was loaded."""

HINT = "load the model with the same choices, or ask for what it has"


def check_fits(plan: EditPlan, editor: Editor) -> None:
    """Refuse an editor that has not what a plan asks for, so that no output says what it is not.

    Raises:
        UsageError: the first choice that is another one, or a size, a length or references that it cannot take.
    """
    asked, has = plan.request.choice, editor.identity()
    if not _same_model(plan, has):
        raise UsageError(f"the loaded model is '{has.choice.model}', not '{asked.model}'", HINT)
    for row in rows(ModelChoice).values():
        wanted, there = getattr(asked, row.name), getattr(has.choice, row.name)
        if row.name not in TOLD_APART and wanted != there and wanted not in _also(row.name, has):
            raise UsageError(
                f"the loaded model '{editor.name}' works with {row.option.flags[0].partition('/')[0]} {_words(there)}, "
                f"not {_words(wanted)}",
                HINT,
            )
    check_takes(plan, editor.name, editor.takes_references)
    if plan.windows is not None and plan.windows.layout is not None and not joins(editor):
        raise UsageError(
            f"'{editor.name}' does not edit in windows that are denoised together", "pass --windows independent"
        )
    if plan.detail == "source" and not editor.gives_round_trip:
        raise UsageError(f"'{editor.name}' does not give the source back beside the edit", "pass --detail model")
    if plan.size.width % editor.multiple or plan.size.height % editor.multiple:
        raise UsageError(f"'{editor.name}' works at multiples of {editor.multiple}, not at {plan.size}", HINT)
    at_once = plan.span.frame_count if plan.windows is None else plan.windows.frames
    warned = bool(length_warnings(plan.request, plan.settings, at_once))
    asked_for = plan.request.frames is not None or warned
    if editor.most_frames is not None and at_once > editor.most_frames and not asked_for:
        raise UsageError(f"'{editor.name}' takes {editor.most_frames} frames at a time, not {at_once}", HINT)


def joins(editor: Editor) -> TypeGuard[LongEditor]:
    """Whether an editor edits long clips in windows that are denoised together."""
    return bool(getattr(editor, "joins_windows", False))


def _also(name: str, has: Identity) -> tuple[Any, ...]:
    """Values of a choice that a loaded editor meets as well as its own."""
    return {
        "attention": ("auto",),
        "memory": ("auto",),
        "max_memory": (None,),
        "device": ("auto", has.device, has.device.partition(":")[0]),
        "dtype": ("auto", has.dtype),
    }.get(name, ())


def check_takes(plan: EditPlan, name: str, takes_references: bool) -> None:
    """Refuse reference pictures for an editor that takes none.

    Raises:
        UsageError: there are some.
    """
    if plan.request.references and not takes_references:
        raise UsageError(f"'{name}' takes no reference pictures", "leave --ref out, or use another --model")


def check_room(plan: EditPlan) -> None:
    """Refuse more frames at a time than this machine's memory holds: as they are read, three bytes a pixel.

    Raises:
        DeviceError: they are.
    """
    has, needed = memory(), 3 * plan.size.width * plan.size.height * plan.at_once
    if has is not None and needed > has[0]:
        raise DeviceError(
            f"{count(plan.at_once, 'frame')} of {plan.size} take {format_bytes(needed)} of memory, and this machine "
            f"has {format_bytes(has[0])}",
            "use a smaller --size, or fewer frames with --frames",
        )


def check_joint(plan: EditPlan) -> None:
    """Refuse what does not go together with windows that are denoised together.

    Raises:
        UsageError: a step cache whose state is one window's, or blended tiles.
    """
    if plan.windows is None or plan.windows.layout is None:
        return
    sampling, hint = plan.request.sampling, "pass --windows independent, or fewer --frames"
    if plan.request.needs_latents:
        hint = "leave it out, or --keep-latents"
    if sampling.calibrate_cache is not None:
        raise UsageError("--calibrate-cache measures one window, and this clip has several", hint)
    if sampling.cache in BLOCK_CACHES:
        raise UsageError(
            f"--cache {sampling.cache} keeps its state in the transformer's blocks, of one window alone: "
            "of all windows it would not fit the device",
            "use --cache easy, or leave --keep-latents out"
            if plan.request.needs_latents
            else "use --cache easy, or --windows independent",
        )
    if not is_exact(plan.request.choice.memory):
        raise UsageError(f"--memory {plan.request.choice.memory} decodes a clip in one piece", hint)


def _same_model(plan: EditPlan, has: Identity) -> bool:
    """By what is in the files where both are known, else by name."""
    if plan.found.folder is not None and has.checkpoint is not None:
        return fingerprint(plan.found.folder) == has.checkpoint
    asked = plan.request.choice
    return asked.model == has.choice.model and asked.revision in (None, has.choice.revision)


def _words(value: Any) -> str:
    """A choice as it is typed: 'none' where there is nothing."""
    if isinstance(value, tuple):
        return ", ".join(f"'{each}'" for each in value) or "none"
    return "none" if value is None else "on" if value is True else "off" if value is False else f"'{value}'"
