"""The commands by name, and the modules that register them: a module is read when its command is asked for."""

from __future__ import annotations

from importlib import import_module

import typer

from kiwi_cli.cli.root import app

MODULES = {
    "edit": ("edit",),
    "ref-edit": ("edit",),
    "batch": ("batch",),
    "status": ("status",),
    "prompts": ("prompts",),
    "show": ("show",),
    "rerun": ("show",),
    "finish": ("finish",),
    "doctor": ("doctor",),
    "download": ("download",),
    "convert": ("convert",),
    "train": ("train",),
    "bench": ("bench_report", "bench_runs", "bench_seams", "bench_speed"),
    "data": ("data_synth", "data_cache", "data_reference", "data_look"),
}
"""In the order of the help page; the two last are groups."""


def registered(name: str | None = None) -> typer.Typer:
    """The app with that command, or that group of commands; with all of them when there is none of that name."""
    for module in MODULES.get(name or "", [each for names in MODULES.values() for each in names]):
        import_module(f"kiwi_cli.cli.{module}")
    order = {name: place for place, name in enumerate(MODULES)}
    app.registered_commands.sort(key=lambda each: order[str(each.name or getattr(each.callback, "__name__", ""))])
    return app
