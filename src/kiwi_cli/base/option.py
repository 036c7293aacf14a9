"""Options, written once: at the field of the request that holds the value.

From these fields come the commands' parameters (cli/options.py), what an output records (editing/record.py) and
docs/cli.md. To add an option, add a field here or there, and use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

CLIP, WHERE, WORDS, MODEL = "Which part of the clip", "Where in the picture", "The instruction", "The model"
INPUTS, OUTPUT, RUN = "The inputs", "The output", "The run"
GROUPS = (INPUTS, CLIP, WHERE, WORDS, MODEL, OUTPUT, RUN)
"""Headings of a command's help, in their order."""

Names = tuple[str, ...] | Callable[[str], Any]


@dataclass(frozen=True)
class Option:
    """How a field is asked for.

    Attributes:
        flags: as typed; a flag with an opposite is '--on/--off'.
        unset: what happens when it is not given, in words.
        unit: what stands for the value in the help. env: an environment variable behind it.
        known: values that the shell completes, or what finds them.
        parser: of the text, for a type that is not read by itself.
        record: the key under which an output carries the value; None when it says nothing about the frames.
    """

    flags: tuple[str, ...]
    help: str
    group: str = RUN
    unit: str | None = None
    unset: str = ""
    env: str | None = None
    known: Names = ()
    parser: Callable[[str], Any] | None = None
    record: str | None = None


def option(default: Any, flags: str | tuple[str, ...], help: str, group: str, **about: Any) -> Any:
    """A dataclass's field that is an option; `about` is more of `Option`."""
    return field(default=default, metadata=described(flags, help, group, **about))


def described(flags: str | tuple[str, ...], help: str, group: str, **about: Any) -> Mapping[str, Option]:
    """The metadata of a field without a default that is an option."""
    names = (flags,) if isinstance(flags, str) else flags
    return MappingProxyType({"option": Option(names, help, group, **about)})


@dataclass(frozen=True)
class Row:
    """An option with its field: a row of the table.

    Attributes:
        name: of the field, and of a command's parameter. kind: the field's type.
    """

    name: str
    kind: Any
    default: Any
    option: Option

    @property
    def record(self) -> str | None:
        return self.option.record

    @property
    def many(self) -> bool:
        """Whether it may be given several times."""
        return get_origin(self.kind) is tuple

    @property
    def is_path(self) -> bool:
        """Whether a value is a file."""
        return Path in _kinds(self.kind)

    @property
    def is_flag(self) -> bool:
        return self.kind is bool

    def but(self, *, default: Any = ..., **about: Any) -> Row:
        """The same with another default, or another of `Option`."""
        kept = self.default if default is ... else default
        return replace(self, default=kept, option=replace(self.option, **about))


def _kinds(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (tuple, UnionType) else (kind,)


@cache
def rows(request: type) -> Mapping[str, Row]:
    """The options of a request and of what is nested in it, by name, in the order of `GROUPS`."""
    found = sorted(_rows(request), key=lambda row: GROUPS.index(row.option.group))
    return MappingProxyType({row.name: row for row in found})


def _rows(request: Any) -> Iterable[Row]:
    kinds = get_type_hints(request)
    for each in fields(request):
        if is_dataclass(kinds[each.name]):
            yield from _rows(kinds[each.name])
        elif "option" in each.metadata:
            yield Row(each.name, kinds[each.name], each.default, each.metadata["option"])
