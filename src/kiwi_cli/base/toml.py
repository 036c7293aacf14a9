"""TOML to frozen dataclasses, strictly: nothing unknown, nothing of another type, and words that help."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kiwi_cli.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path, named: Sequence[str] = ()) -> dict[str, Any]:
    """A file's tables.

    Args:
        named: what may be asked for instead of a file.

    Raises:
        UsageError: no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors put a mark before
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"'{path}' is not TOML: {error}", "mend that line") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        there = {each.name: str(each) for each in path.parent.glob("*.toml")} | {name: name for name in named}
        near = difflib.get_close_matches(path.name, there, 1, 0.7) if isinstance(error, FileNotFoundError) else []
        hint = " or ".join(["pass a TOML file, as in recipes/", *(f"'{name}'" for name in named)])
        hint = f"did you mean '{there[near[0]]}'?" if near else hint
        raise UsageError(f"cannot read '{path}': {reason}", hint) from None


def override(tree: dict[str, Any], text: str) -> None:
    """Set one value in nested tables, in place: `optimiser.lr=1e-4`, `data.0.ratio=2`, `trackers=["tensorboard"]`.

    The value is TOML, or the text itself where it is none.

    Raises:
        UsageError: no KEY=VALUE, or a key that goes through something without keys.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set takes KEY=VALUE, not '{text}'", "such as --set optimiser.lr=1e-4")
    place: Any = tree
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(place, list):
            if not part.isdigit() or int(part) >= len(place):
                count = f"0 to {len(place) - 1}" if place else "none"
                raise UsageError(f"--set {key}: '{part}' is no entry of that list", f"there are entries {count}")
            if last:
                place[int(part)] = _value(value)
            place = place[int(part)]
        elif isinstance(place, dict):
            if last:
                place[part] = _value(value)
            elif not isinstance(place.get(part), (dict, list)):
                place[part] = {}
            place = place[part]
        else:
            raise UsageError(f"--set {key}: '{'.'.join(parts[:number])}' has no keys", "give the whole value")


def _value(text: str) -> Any:
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return tree["value"] if len(tree) == 1 else text.strip()


def build(cls: Any, tree: Any) -> Any:
    """Nested plain values -> `cls`, a frozen dataclass of texts, numbers, booleans, choices, tuples and its like.

    Raises:
        UsageError: an unknown key, with the nearest known one; a value of another type; a missing key.
    """
    return _build(cls, tree, "", known_keys(cls))


def _build(cls: Any, tree: Any, where: str, known: Sequence[str]) -> Any:
    if not isinstance(tree, Mapping):
        raise wrong(where.rstrip("."), tree, f"a table with {', '.join(f.name for f in fields(cls))}")
    hints = get_type_hints(cls)
    for key, value in tree.items():
        if key not in hints:
            meant = f"{where}{key}.{next(iter(value))}" if isinstance(value, Mapping) and value else f"{where}{key}"
            hint = _nearest(meant, known) or f"the keys here are {', '.join(hints)}"
            raise UsageError(f"unknown key '{where}{key}' (= {value!r})", hint)
    values = {key: _typed(hints[key], value, f"{where}{key}", known) for key, value in tree.items()}
    for entry in fields(cls):
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            key = f"{where}{entry.name}"
            raise UsageError(f"'{key}' is missing", f"add it to the file, or pass --set {key}=...")
    return cls(**values)


def known_keys(cls: Any, where: str = "") -> list[str]:
    """Every key of a dataclass in dotted form; `N` stands for the number of a list's entry."""
    keys: list[str] = []
    for name, hint in get_type_hints(cls).items():
        inner = get_args(hint)[0] if get_origin(hint) is tuple else hint
        if is_dataclass(inner):
            keys += known_keys(inner, f"{where}{name}.{'N.' if inner is not hint else ''}")
        else:
            keys.append(f"{where}{name}")
    return keys


def _typed(hint: Any, value: Any, key: str, known: Sequence[str]) -> Any:
    """`value` as `hint` asks for it; a whole number may stand for a fraction, nothing else for anything else."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _build(hint, value, f"{key}.", known)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise wrong(key, value, f"one of {', '.join(map(str, arguments))}", _nearest(value, arguments))
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong(key, value, "a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise wrong(key, value, f"a list of {len(arguments)}")
        kinds: Iterable[Any] = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_typed(kind, item, f"{key}.{number}", known) for number, (kind, item) in pairs)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise wrong(key, value, words[hint])
    return value


def _nearest(value: Any, choices: Sequence[Any]) -> str:
    """A question with the choice that is most like `value`; '' when none is.

    Of keys in dotted form, first those of the same table are looked at, then whole names, then last parts.
    """
    text, names = str(value), [str(choice) for choice in choices]
    table, _, last = re.sub(r"\.\d+\.", ".N.", text).rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == table}
    ends = {name.rpartition(".")[2]: name for name in reversed(names)}
    others = {name: name for name in names if name not in beside.values()}
    for typed, known, cutoff in ((last, beside, 0.6), (text, others, 0.8), (last, ends, 0.75)):
        if near := difflib.get_close_matches(typed, known, 1, cutoff):
            return f"did you mean '{known[near[0]]}'?"
    return ""


def wrong(key: str, value: Any, wanted: str, hint: str = "") -> UsageError:
    """The error of an invalid value."""
    shown = json.dumps(value, default=str) if not isinstance(value, str) else f"'{value}'"
    return UsageError(f"'{key}' is {wanted}, not {shown}", hint or f"correct it, or pass --set {key}=...")
