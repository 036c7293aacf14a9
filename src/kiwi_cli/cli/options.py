"""Options as parameters of commands: those of a request come from its fields (base/option.py), the rest is here."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from kiwi_cli.base.option import OUTPUT, RUN, WORDS, Row
from kiwi_cli.editing.tasks import REPLACEMENTS

Command = TypeVar("Command", bound=Callable[..., None])


def choices(*names: str) -> Any:
    """Completion of one of a few names."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


# Typer would write <bool> where other options have their unit.
flag = partial(typer.Option, metavar=" ")

Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A video, a picture, or a folder of numbered pictures.",
        show_default=False,
        readable=False,  # checked where it is opened, with words of ours
    ),
]
Replace = Annotated[
    str,
    typer.Option(
        "--replace",
        metavar="WHAT",
        help="What the reference replaces when there is no instruction: subject or background.",
        rich_help_panel=WORDS,
        autocompletion=choices(*REPLACEMENTS),
    ),
]
Overwrite = Annotated[bool, flag("--overwrite", help="Replace what is there.", rich_help_panel=OUTPUT)]
DryRun = Annotated[bool, flag("--dry-run", help="Say what would be done; load and write nothing.", rich_help_panel=RUN)]
AsJson = Annotated[bool, flag("--json", help="Print one JSON object on stdout.", rich_help_panel=RUN)]
Quiet = Annotated[bool, flag("-q", "--quiet", help="Only warnings and errors on stderr.", rich_help_panel=RUN)]
Verbose = Annotated[
    bool,
    flag(
        "-v",
        "--verbose",
        help="Also each stage's time and the peak memory; with --dry-run, what is counted.",
        rich_help_panel=RUN,
    ),
]


def takes(rows: Iterable[Row]) -> Callable[[Command], Command]:
    """A decorator that gives a command a parameter for each row in place of its `**values`."""

    def dress(command: Command) -> Command:
        before: list[inspect.Parameter] = []
        after: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
                before.append(parameter)
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                after.append(parameter)
        parameters = [*before, *map(_parameter, rows), *after]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return dress


def as_recorded(row: Row) -> Row:
    """A row of `rerun`: not given is as it was, whatever the environment says of new edits."""
    if row.record is None:
        return row
    flags = row.option.flags
    if row.is_flag:
        name = flags[0].split("--")[-1].removeprefix("no-")
        flags = (f"--{name}/--no-{name}",)
    return row.but(default=() if row.many else None, flags=flags, unset="", env=None)


def gathered(values: dict[str, Any], unset: tuple[Any, ...] = ()) -> dict[str, Any]:
    """A command's values as a request has them: tuples for lists, without those that are `unset`."""
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return {name: value for name, value in lists.items() if value not in unset}


def _parameter(row: Row) -> inspect.Parameter:
    about = row.option
    kind: Any = row.kind
    default = row.default
    if row.many:
        kind, default = list[Path] if row.is_path else list[str], list(default)
    elif about.parser is not None:
        kind, default = Any, default if default is None else f"{default:g}"
    elif default is None:
        kind = kind | None
    more: dict[str, Any] = {}
    if row.is_path:
        more["readable"] = False  # checked where it is opened, with words of ours
    if about.parser is not None:
        more["parser"] = about.parser
    if about.known:
        more["autocompletion"] = about.known if callable(about.known) else choices(*about.known)
    information = typer.Option(
        *about.flags,
        metavar=" " if row.is_flag else about.unit,
        help=f"{about.help} Default: {about.unset}." if about.unset else about.help,
        envvar=about.env,
        rich_help_panel=about.group,
        show_default=default not in (None, []) and not about.flags[0].startswith(" "),
        **more,
    )
    annotation = Annotated[kind, information]
    return inspect.Parameter(row.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def expand(arguments: list[str]) -> list[str]:
    """Give `--compare` of the edits and `--ray` of a batch the value that they may be typed without: Typer has no
    options whose value may be left out. Another command's option of that name is left alone."""
    if not arguments or arguments[0] not in ("edit", "ref-edit", "rerun", "batch"):
        return arguments
    expanded: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return expanded + arguments[position:]
        expanded.append(argument)
        after = (arguments[position + 1 :] or [""])[0]
        if argument == "--compare" and not _is_comparison(after):
            expanded.append("side")
        if argument == "--ray" and arguments[0] == "batch" and not _is_address(after):
            expanded.append("")
    return expanded


def _is_comparison(text: str) -> bool:
    """Whether it is meant for the value of `--compare`: 'wippe' is, and is refused."""
    from kiwi_cli.editing.request import COMPARISONS  # only here: it takes most of what edits are made of along

    return bool(difflib.get_close_matches(text, COMPARISONS, 1, 0.8))


def _is_address(text: str) -> bool:
    """Whether it is a Ray cluster's address: 'auto', 'HOST:PORT' or 'ray://HOST:PORT'."""
    return text in ("auto", "local") or re.fullmatch(r"(ray://)?[^/\s:]+:\d+", text) is not None
