"""A command line that cannot be read, in words: what is wrong with it, and what was probably meant."""

from __future__ import annotations

import difflib
import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

EDITS = ("edit", "ref-edit", "rerun")
INSTRUCTION = 'the instruction is an argument: kiwi edit INPUT "make it snowy"'
GUIDANCE = "leave it out: the models work without guidance"
OTHERS = {
    "--to": ("--end", "--until", "--stop"),
    "--start": ("--from", "--begin", "--ss", "-ss"),
    "--duration": ("--length", "--seconds", "-t"),
    "--frames": ("--num-frames", "--max-frames"),
    "--steps": ("--num-inference-steps", "--num-steps", "--sampling-steps"),
    "--size": ("--resolution", "--width", "--height", "--scale"),
    "--quality": ("--crf", "--bitrate", "-crf"),
    "--codec": ("--vcodec", "--encoder", "-c", "-c:v"),
    "--overwrite": ("--force", "--yes", "-y", "-f"),
    "--no-sound": ("--no-audio", "--mute", "-an"),
    "--device": ("--gpu", "--cpu"),
    "--dtype": ("--precision", "--fp16", "--bf16"),
    "--ref": ("--reference", "--image", "--reference-image"),
}
"""Options of the edits, with what other programs call them."""
MEANT = {name: f"use {option}" for option, names in OTHERS.items() for name in names}
MEANT |= dict.fromkeys(("--prompt", "--instruction", "-p", "--text"), INSTRUCTION)
MEANT |= dict.fromkeys(("--guidance", "--guidance-scale", "--cfg", "--negative-prompt"), GUIDANCE)
ONE_CLIP = 'previews are of one clip: kiwi edit INPUT "make it snowy" {option}'
COLUMN = "instructions are in the table, in the column 'instruction'"
NOT_OF_TABLES = {
    "--preview": ONE_CLIP,
    "--seeds": ONE_CLIP,
    "--calibrate-cache": "ratios are measured on one clip: kiwi edit INPUT 'make it snowy' --calibrate-cache FILE",
    **dict.fromkeys(("--output", "-o"), "results are named in the table's column 'output', and go into --out-dir DIR"),
    **dict.fromkeys(("--instruction", "-i", "--prompt", "-p", "--text"), COLUMN),
}
"""Options of `kiwi edit` that `kiwi batch` has other ways for."""
REFERENCES = "kiwi ref-edit takes reference pictures: kiwi ref-edit INPUT --ref IMAGE"


def words(error: typer.TyperException, given: Sequence[str]) -> tuple[str, str]:
    """(message, hint) of a wrong command line: lower case, with the invalid value."""
    command = _command(error)
    page = f"{command} --help lists {'the commands' if command == 'kiwi' else 'its options'}"
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if hasattr(error, "possibilities"):
        option = str(error.option_name)  # type: ignore[attr-defined]
        named = next((word for word in given if word.startswith(option) and os.path.lexists(word)), None)
        if named is not None:
            return f"no such option: {option}", f"a name that begins with a dash is typed with its folder: './{named}'"
        return f"no such option: {option}", _meant(option, error.possibilities or (), context) or page
    if message.startswith("Got unexpected extra argument") and context is not None:
        return _left_over(message, command, _usage(context), given)
    if message.startswith("Missing") and context is not None and command != "kiwi":
        return message[:1].lower() + message[1:].rstrip("."), f"{_usage(context)}; {command} --help shows examples"
    return _wrong_value(error, message, given), page


def _command(error: typer.TyperException) -> str:
    """'kiwi bench openve': the command that the error is of."""
    return _path(getattr(error, "ctx", None))


def _path(context: Any) -> str:
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(["kiwi", *names])


def _usage(context: Any) -> str:
    """'kiwi batch JOBS --out-dir DIR': a command with its arguments, and the options that it cannot do without."""
    said = [_path(context)]
    for each in sorted(context.command.params, key=lambda each: each.param_type_name != "argument"):
        value = each.metavar or each.name.upper()
        if each.param_type_name == "argument":
            said.append(value)
        elif each.required:
            said.append(f"{each.opts[-1]} {value}")
    return " ".join(said)


def _meant(option: str, near: Sequence[str], context: Any) -> str:
    """What an option that there is not is called here; empty when nothing comes near."""
    command = _path(context)
    if command == "kiwi edit" and option in ("--ref", *OTHERS["--ref"]):
        return REFERENCES
    if command == "kiwi batch" and option in NOT_OF_TABLES:
        return NOT_OF_TABLES[option].format(option=option)
    if command.removeprefix("kiwi ") in (*EDITS, "batch") and option in MEANT:
        return MEANT[option]
    if context is not None and option.lstrip("-").lower() in _arguments(context):
        return f"it is an argument, typed without {option}: {_usage(context)}"
    if option in _options_of_edit():
        return f"{option} is an option of kiwi edit; {command} --help lists its own"
    # Without the dashes, which every option has.
    bare = {name.lstrip("-"): name for name in near}
    best = difflib.get_close_matches(option.lstrip("-"), bare, 1, 0.65)
    return f"did you mean {bare[best[0]]}? {command} --help lists its options" if best else ""


def _arguments(context: Any) -> set[str]:
    """The names of a command's arguments."""
    return {str(param.name) for param in context.command.params if param.param_type_name == "argument"}


def _options_of_edit() -> set[str]:
    """The options of `kiwi edit` that come from the table of options, as they are typed."""
    from kiwi_cli.base.option import rows
    from kiwi_cli.editing.request import EditRequest

    found = [row for name, row in rows(EditRequest).items() if name not in ("input", "instruction", "references")]
    return {flag.strip() for row in found for flags in row.option.flags for flag in flags.split("/") if flag.strip()}


def _left_over(message: str, command: str, usage: str, given: Sequence[str]) -> tuple[str, str]:
    """An argument more than the command takes: another file, or an instruction without quotes."""
    extra = message.split(" (", 1)[1].removesuffix(".").removesuffix(")")
    # What follows an option is most likely its value.
    files = [word for before, word in itertools.pairwise(given) if not before.startswith("-") and _is_there(word)]
    if len(files) > 1 and command != "kiwi":
        some = " ".join([*map(shlex.quote, files[:2]), *(["..."] if len(files) > 2 else [])])
        hint = f'one at a time: for f in {some}; do {command} "$f" ...; done'
    elif "INSTRUCTION" in usage:
        hint = f'put the instruction in quotes: {command} INPUT "make it snowy"'
    elif usage == command:
        hint = f"it takes options alone: {command} --help lists them"
    else:
        hint = f"one at a time; {command} --help shows what it takes"
    return f"too many arguments: '{extra}' (it is {usage})", hint


def _is_there(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long for a name
        return False


def _wrong_value(error: typer.TyperException, message: str, given: Sequence[str]) -> str:
    names: Any = getattr(getattr(error, "param", None), "opts", ())
    said = "is not a valid" in message  # of Typer before 0.29, with the value
    values = [after for name, after in itertools.pairwise(given) if name in names and (said or after not in message)]
    for word, kind in (("valid int", "a whole number"), ("number", "a number"), ("valid float", "a number")):
        if values and message.startswith("Invalid value") and word in message:
            return f"{names[-1]} takes {kind}, not '{values[-1]}'"
    return message[:1].lower() + message[1:]
