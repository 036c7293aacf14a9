"""The house has one direction: a file imports from its own room and from rooms below it, and no two files in a circle.

Every import counts: inside functions, and for types alone (`TYPE_CHECKING`) as well, for whoever reads a file has to
know what it is about.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from .conftest import ROOT

PACKAGE = ROOT / "src" / "kiwi_cli"
RANK = {
    "errors": 0,
    "base": 1,
    "video": 2,
    "weights": 3,
    "model": 4,
    "engine": 5,
    "editors": 6,
    "editing": 7,
    "synth": 8,
    "batch": 8,
    "data": 9,
    "train": 10,
    "bench": 11,
    "cli": 12,
    "__init__": 13,
    "__main__": 13,
}
TERMINAL = {"typer", "rich", "click"}
LIBRARIES = {"torch", "diffusers", "transformers"}
NEVER = {  # what a room may not import from outside, whenever
    "errors": TERMINAL | LIBRARIES,
    "base": TERMINAL | LIBRARIES,
    "video": TERMINAL | LIBRARIES | {"safetensors", "huggingface_hub"},
    "weights": {"typer", "click", "diffusers", "transformers"},
    "model": TERMINAL | {"av", "huggingface_hub"},
    "engine": TERMINAL | {"av", "huggingface_hub"},
}


@cache
def files() -> dict[str, Path]:
    """Every file of the package by its place: 'video/clip', 'weights/__init__', 'errors'."""
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def file_of(module: str, known: dict[str, Path]) -> str | None:
    """The file that `kiwi_cli.a.b` is: 'a/b', or 'a/b/__init__'."""
    place = "/".join(module.split(".")[1:])
    for name in (place, f"{place}/__init__" if place else "__init__"):
        if name in known:
            return name
    return None


@cache
def imports(path: Path) -> set[str]:
    """All modules that a file imports, and for `from a import b` also 'a.b', which may be one."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports by full names"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def arrows() -> dict[str, set[str]]:
    """For every file of the package, by its place, the others that it imports from."""
    known, found = files(), {}
    for name, path in known.items():
        uses: set[str] = set()
        for module in imports(path):
            if module.split(".")[0] == "kiwi_cli":
                used = file_of(module, known) or file_of(module.rpartition(".")[0], known)
                assert used, f"{path}: {module} is no file of the package"
                uses.add(used)
        found[name] = uses - {name}
    return found


def room(name: str) -> str:
    return name.split("/")[0]


def circles(uses: dict[str, set[str]]) -> list[set[str]]:
    """Files that lead back to themselves, each set as large as it gets."""
    reach = {name: set(used) for name, used in uses.items()}
    for through in reach:
        for name in reach:
            if through in reach[name]:
                reach[name] |= reach[through]
    found = {frozenset(other for other in reach[name] if name in reach[other]) for name in reach if name in reach[name]}
    return [set(circle) for circle in found]


def test_every_file_lies_in_a_room() -> None:
    assert {room(name) for name in arrows()} == set(RANK)


def test_arrows_point_downwards() -> None:
    breaks = {
        f"{name} -> {used}"
        for name, below in arrows().items()
        for used in below
        if room(used) != room(name) and RANK[room(used)] >= RANK[room(name)]
    }
    assert breaks == set()


def test_no_files_lie_in_a_circle() -> None:
    assert [sorted(circle) for circle in circles(arrows())] == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_no_file_is_long() -> None:
    """Of the package and of its tests: one subject a file, and at most 400 lines of it."""
    every = [path for folder in (PACKAGE, ROOT / "tests") for path in folder.rglob("*.py")]
    assert [str(path) for path in every if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_no_function_is_long() -> None:
    """At most 60 lines, parameters not counted: a command's are a table, not code."""
    for path in files().values():
        every = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
        for node in every:
            inner = [other for other in ast.walk(node) if isinstance(other, ast.FunctionDef)]
            lines = (node.end_lineno or 0) - node.lineno + 1 - sum(one.body[0].lineno - one.lineno for one in inner)
            assert lines <= 60, f"{path}: {node.name} has {lines} lines"


def test_low_rooms_know_neither_terminal_nor_models() -> None:
    for name, path in files().items():
        roots = {module.split(".")[0] for module in imports(path)}
        # The one place in media that computes; it is imported by whoever has torch loaded already.
        allowed = {"torch"} if name.startswith("video/detail/") else set()
        assert not roots & (NEVER.get(room(name), set()) - allowed), name
