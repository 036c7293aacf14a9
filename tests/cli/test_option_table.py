"""An option is written once, at its field: the commands, the record and docs/cli.md have it from there."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer

from kiwi_cli.base.option import RUN, Row, option, rows
from kiwi_cli.cli import bench_runs, options
from kiwi_cli.cli.commands import registered
from kiwi_cli.editing.plain import as_plain, from_plain
from kiwi_cli.editing.previewing import Previewing
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.windowing import Windowing
from kiwi_cli.engine.choice import ModelChoice, Sampling

from .. import fakes
from ..conftest import ROOT
from ..video.media import make_sequence

TABLE = rows(EditRequest)
ARGUMENTS = {"input", "instruction"}
OF_RERUN = {"parts", "latents"}
"""What `rerun --span` fills, and no other command asks for."""
OF_COMMANDS = {"dry_run", "as_json", "quiet", "verbose"}
OF_MANY = {"out_dir", "workers", "gpus", "retry_failed", "skip_bad"}
OF_TABLES = {"jobs", "base", "ray", "shard", "lease"}
PARTS = {"choice": ModelChoice, "sampling": Sampling, "windowing": Windowing, "previewing": Previewing}
NESTED = [each.name for part in PARTS.values() for each in fields(part)]
WITHOUT_AN_OPTION = {"kiwi", "format", "checkpoint", "instruction", "frames", "worked", "device"}
"""What a record says that nobody asked for."""


def parameters(*names: str) -> dict[str, Any]:
    command: Any = typer.main.get_command(registered())
    for name in names:
        command = command.commands[name]
    return {parameter.name: parameter for parameter in command.params if parameter.name != "help"}


def test_every_field_of_a_request_is_an_option() -> None:
    own = {each.name for each in fields(EditRequest)} - set(PARTS) - OF_RERUN
    assert set(TABLE) == own | set(NESTED)
    assert len(own) + len(NESTED) == len(TABLE), "a name that two parts of a request have"
    request = EditRequest.of(Path("x"), "x", seed=5, model="tiny", frames=3)
    assert (request["seed"], request["model"], request["frames"]) == (5, "tiny", 3)
    assert (request.sampling.seed, request.choice.model, request.frames) == (5, "tiny", 3)


@pytest.mark.parametrize(
    ("command", "left_out", "more"),
    [
        (("edit",), {"references"}, OF_COMMANDS | OF_MANY),
        (
            ("batch",),
            {"input", "instruction", "output", "calibrate_cache", "preview", "seeds"},
            OF_COMMANDS | OF_MANY | OF_TABLES,
        ),
        (("ref-edit",), set(), OF_COMMANDS | {"replace"}),
        (("rerun",), set(), OF_COMMANDS | {"made", "allow_changed", "span", "words"}),
    ],
)
def test_the_edits_take_the_table(command: tuple[str, ...], left_out: set[str], more: set[str]) -> None:
    assert set(parameters(*command)) == set(TABLE) - left_out | more


@pytest.mark.parametrize("name", ["openve", "refvie", "imgedit"])
def test_the_benchmarks_take_what_decides_how_items_are_edited(name: str) -> None:
    taken = {*NESTED, "frames", "size"} - {
        "calibrate_cache",
        *(each.name for part in (Windowing, Previewing) for each in fields(part)),
    }
    assert taken == {row.name for row in bench_runs.ROWS} <= set(parameters("bench", name))


@pytest.mark.parametrize("command", [("edit",), ("ref-edit",), ("bench", "speed")])
def test_parameters_are_as_the_table_says(command: tuple[str, ...]) -> None:
    found = parameters(*command)
    for name, row in TABLE.items():
        if name not in found or name in ARGUMENTS:
            continue
        if command == ("bench", "speed") and found[name].help != row.option.help:
            assert name in ("model", "size", "frames", "steps")  # of random weights, not of an edit
            continue
        parameter, about = found[name], row.option
        typed = {part for flag in about.flags for part in flag.replace(" ", "").split("/") if part}
        assert set(parameter.opts + parameter.secondary_opts) - {""} == typed
        assert parameter.help.startswith(about.help) and (about.unset in parameter.help)
        assert parameter.envvar == about.env
        if name != "model":
            expected = list(row.default) if row.many else row.default
            given = (
                parameter.default if about.parser is None or row.default is None else about.parser(parameter.default)
            )
            assert given == expected, name


def test_a_rerun_knows_no_defaults_and_no_environment() -> None:
    found = parameters("rerun")
    for name, row in TABLE.items():
        if row.record is not None:
            assert found[name].default in (None, []) and found[name].envvar is None, name


def test_a_record_has_the_table(tmp_path: Path) -> None:
    source = make_sequence(tmp_path / "frames", 2, (64, 48))
    settings = fakes.edit(source, tmp_path / "out.png", frames=1).settings
    asked = {str(row.record) for row in TABLE.values() if row.record is not None}
    assert settings.keys() == asked | WITHOUT_AN_OPTION
    assert not asked & WITHOUT_AN_OPTION


def test_the_reference_has_the_table() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for command in ("edit", "ref-edit", "rerun"):
        section = page.split(f"\n## kiwi {command}\n")[1].split("\n## ")[0]
        for name, row in TABLE.items():
            if name in ARGUMENTS or (command, name) == ("edit", "references"):
                continue
            assert row.option.flags[-1].split("/")[-1] in section, (command, name)
            assert row.option.help.replace("|", "\\|") in section, (command, name)


def test_a_new_option_needs_its_field_alone() -> None:
    @dataclass(frozen=True)
    class Shiny(EditRequest):
        shine: float | None = option(None, "--shine", "How much it shines.", RUN, unit="X", unset="1", record="shine")

    taken: list[Any] = []
    own = typer.Typer()

    @own.command()
    @options.takes(row for name, row in rows(Shiny).items() if name not in ARGUMENTS)
    def command(**values: Any) -> None:
        taken.append(Shiny.of(Path("x"), "x", **options.gathered(values)))

    own(["--shine", "2.5", "--steps", "3", "--lora", "a", "--lora", "b:2"], standalone_mode=False)
    assert taken == [Shiny.of(Path("x"), "x", shine=2.5, steps=3, loras=("a", "b:2"))]
    assert taken[0]["shine"] == 2.5


PRICED = {"editor_timeout": 60.0, "editor_price": 0.5}


def sample(row: Row) -> list[Any]:
    """Values that differ from the default."""
    if row.is_flag:
        return [True, False]
    if row.many:
        return [(), tuple(map(Path if row.is_path else str, ("a.safetensors", "b:0.5")))]
    if row.is_path:
        return [Path("some file.json")]
    return [
        {"seed": 7, "steps": 3, "frames": 5, "cache_threshold": 0.25, "seeds": 4, **PRICED}.get(row.name, "some-thing")
    ]


@pytest.mark.parametrize("row", [row for name, row in TABLE.items() if name not in ARGUMENTS], ids=lambda row: row.name)
def test_another_process_is_given_the_same(row: Row) -> None:
    for value in sample(row):
        request = EditRequest.of(Path("clip.mp4"), "make it snowy", **{row.name: value})
        assert from_plain(json.loads(json.dumps(as_plain(request)))) == request
