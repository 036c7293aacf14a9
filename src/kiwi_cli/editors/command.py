"""`--editor "command:PROGRAM ..."`: any program that reads a clip and writes another; arguments, never a shell."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from kiwi_cli.base.events import Events
from kiwi_cli.editors.base import Found, Named
from kiwi_cli.editors.by_file import FileEditor, Job, Made
from kiwi_cli.editors.contents import digest_of
from kiwi_cli.editors.programs import run_program
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import UsageError
from kiwi_cli.weights.settings import ModelSettings

PLACES = ("input", "text", "reference", "output", "seed")
PLACE = re.compile(r"\{([a-z_]+)\}")
EXAMPLE = "command:python edit.py --in {input} --text {text} --out {output}"
SPARE = 64 << 20  # bytes that a result may have beyond twice the clip's frames, uncompressed


def arguments_of(choice: ModelChoice) -> list[str]:
    """The program and its arguments, with their places.

    Raises:
        UsageError: not understood, without a place that is needed, or with one that there is not.
    """
    try:
        words = shlex.split(choice.editor.partition(":")[2])
    except ValueError as error:
        raise UsageError(f"--editor command: {error}: '{choice.editor}'", f"write it as '{EXAMPLE}'") from None
    found = {name for word in words for name in PLACE.findall(word)}
    for name in sorted(found - set(PLACES)):
        known = ", ".join(f"{{{place}}}" for place in PLACES)
        raise UsageError(f"--editor command has an unknown place: '{{{name}}}'", f"use some of {known}")
    for name in ("input", "output"):
        if name not in found:
            raise UsageError(f"--editor command has no place {{{name}}}", f"write it as '{EXAMPLE}'")
    if PLACE.search(words[0]):
        raise UsageError(f"--editor command begins with a place: '{words[0]}'", "name the program first")
    return words


class Command(Named):
    """A kind of editor: programs."""

    def uses(self, choice: ModelChoice) -> Collection[str]:
        return {"editor_timeout", *(["seed"] if "{seed}" in choice.editor else [])}

    def find(self, choice: ModelChoice) -> Found:
        """The program, if it is here."""
        words = arguments_of(choice)
        if shutil.which(words[0]) is None:
            raise UsageError(f"no such program: '{words[0]}'", "pass the path of a program that can be run")
        settings = ModelSettings(multiple=FileEditor.multiple)
        return Found(None, settings=settings, takes_references="{reference}" in choice.editor, pads=False)

    def identify(self, found: Found, choice: ModelChoice) -> str:
        """The arguments, and what the files and folders among them hold; of a program, when it is named by a path."""
        words = arguments_of(choice)
        named = [words[0]] if os.sep in words[0] else []
        for word in words[1:]:
            named += [part for part in (word, word.partition("=")[2]) if part and Path(part).exists()]
        return digest_of(choice.editor, map(Path, named))

    def load(self, found: Found, choice: ModelChoice, events: Events) -> CommandEditor:
        return CommandEditor(choice, found.takes_references)


KIND = Command("command")


class CommandEditor(FileEditor):
    """Runs the program once for each clip."""

    def make(self, job: Job) -> Made:
        values = {
            "input": str(job.given.path),
            "text": job.instruction,
            "output": str(job.output),
            "seed": str(job.seed),
        }
        words = filled(arguments_of(self.choice), values, [str(path) for path in job.references])
        run_program(words, job.output, self.timeout, 2 * job.raw + SPARE)
        return Made(job.output)


def filled(words: Sequence[str], values: dict[str, str], references: Sequence[str]) -> list[str]:
    """The arguments with their places taken, each in one go: a value that looks like a place stays what it is.

    An argument with {reference} is repeated for each picture, with the option before it, and left out when there is
    none.
    """
    done: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if "{reference}" not in word:
            done.append(_fill(word, values))
            continue
        belongs = word == "{reference}" and before.startswith("-") and not PLACE.search(before)
        option = [done.pop()] if belongs else []
        for reference in references:
            done += [*option, _fill(word, values | {"reference": reference})]
    return done


def _fill(word: str, values: dict[str, str]) -> str:
    return PLACE.sub(lambda match: values[match[1]], word)
