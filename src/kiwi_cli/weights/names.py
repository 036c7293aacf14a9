"""Models by name: what a person writes -> the repository on the Hub."""

from __future__ import annotations

import difflib
import re

from kiwi_cli.errors import CheckpointError, NoSuchModelError
from kiwi_cli.weights.catalog import VARIANTS, Variant, find_variant


def resolve(name: str) -> tuple[str, Variant | None]:
    """A name as a person writes it -> Hub repository, and its variant if it is one of ours.

    Raises:
        NoSuchModelError: neither a variant nor the form of a Hub id; suggests the nearest name.
        CheckpointError: an embedded model.
    """
    variant = find_variant(name)
    if variant is not None and variant.kind == "embedded":
        raise CheckpointError(f"'{name}' is part of kiwi itself, not on the Hub", "there is nothing to fetch")
    if variant is not None:
        return variant.repo, variant
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and ".." not in name and "--" not in name:
        return name, None
    names = [v.name for v in VARIANTS]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known models: {', '.join(names)}"
    raise NoSuchModelError(f"no such model or folder: '{name}'", hint)


def missing_error(name: str, repo: str, begun: bool) -> CheckpointError:
    """For a model that may not be fetched now; `begun`: some of it is here."""
    known = f" ('{repo}')" if name != repo else ""
    state = "not complete on this machine" if begun else "not on this machine"
    return CheckpointError(f"'{name}' is {state}{known}", f"run `kiwi download {name}` once")
