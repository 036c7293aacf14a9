"""Write docs/cli.md from the app itself: `python scripts/cli_reference.py`; `--check` only says whether it is stale."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer

from kiwi_cli.cli.commands import registered

TARGET = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

HEAD = """# Command line

<!-- Written by scripts/cli_reference.py from the app; a test fails when it is stale. -->

stdout is the result: a path, a table, or one JSON object with `--json` (keys: [json.md](json.md)). Notes, progress and
errors go to stderr, as plain lines when that is no terminal. `NO_COLOR` is respected. After an error stdout is empty,
with `--json` too; but `kiwi doctor`, a dry run of an edit that would be refused for its device, and a run of many clips
of which some failed print theirs either way.

| exit code | |
|---|---|
| 0 | done |
| 1 | the job failed, or part of it: also when what is named is there and cannot be used |
| 2 | wrong usage: an argument that cannot be meant, or names what is not there (input, mask, table, model, LoRA, ...) |
| 130 | interrupted; nothing was written (`batch`, `bench`, `train`, `data cache` keep what is done and go on) |

`KIWI_DEBUG=1` shows the traceback of an error. `kiwi --install-completion` teaches the shell the options, the models
and the choices.
"""


def reference() -> str:
    """The whole page."""
    root = typer.main.get_command(registered())
    parts = [HEAD, *_commands(root, "kiwi")]
    return "\n".join(parts).rstrip() + "\n"


def _commands(group: Any, path: str) -> list[str]:
    parts = []
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            parts += [f"## {path} {name}\n", _text(command.help), *_commands(command, f"{path} {name}")]
        else:
            parts += _command(command, f"{path} {name}")
    return parts


def _command(command: Any, path: str) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    usage = " ".join([path, *(_argument(param) for param in arguments), "[OPTIONS]"])
    parts = [f"## {path}\n", f"```\n{usage}\n```\n", _text(command.help)]
    if arguments:
        parts.append(_table([(_argument(param), param) for param in arguments], "argument"))
    panels: dict[str, list[tuple[str, Any]]] = {}
    for param in command.params:
        if param.param_type_name == "option" and "--help" not in param.opts:
            panels.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append((_flags(param), param))
    return parts + [f"**{panel}**\n\n{_table(rows, 'option')}" for panel, rows in panels.items()]


def _text(help_text: str | None) -> str:
    """Help with its examples as code."""
    lines = inspect.cleandoc(help_text or "").splitlines()
    parts: list[str] = []
    for line in lines:
        example = line.startswith("  ") and line.strip()
        if example:
            if parts and parts[-1] == "":
                parts.pop()
            parts += ["```", line.strip(), "```"] if not parts or parts[-1] != "```" else []
            if parts[-1] == "```" and line.strip() not in parts[-2:]:
                parts[-1:] = [line.strip(), "```"]
        else:
            parts.append(line)
    text = "\n".join(parts).replace(":\n```", ":\n\n```")
    return text + "\n"


def _table(rows: list[tuple[str, Any]], what: str) -> str:
    lines, bar = [f"| {what} | |", "|---|---|"], "\\|"
    for shown, param in rows:
        words = [str(getattr(param, "help", None) or "").strip()]
        default = param.default
        told = what == "option" and getattr(param, "show_default", False) is True
        if told and default is not None and default is not False and default != []:
            shown_default = param.opts[-1].lstrip("-") if default is True else default
            words.append(f"Default: {shown_default}.")
        if param.envvar:
            words.append(f"`{param.envvar}` stands behind it.")
        text = " ".join(word for word in words if word).replace("|", "\\|")
        lines.append(f"| `{shown.replace('|', bar)}` | {text} |")
    return "\n".join(lines) + "\n"


def _argument(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _flags(param: Any) -> str:
    names = ", ".join(sorted([*param.opts, *param.secondary_opts], key=len)).strip(", ")
    # Not the type's own name, which only some releases of Typer tell.
    return f"{names} {param.metavar or ''}".strip()


if __name__ == "__main__":
    text = reference()
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == text else f"{TARGET} is stale: run {sys.argv[0]}")
    TARGET.write_text(text, encoding="utf-8")
