"""`kiwi show` and `kiwi rerun`: how an output was made, and making it again."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from kiwi_cli.base.option import CLIP, INPUTS, Row, rows
from kiwi_cli.base.text import aligned
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import UsageError
from kiwi_cli.weights.catalog import VARIANTS, Variant, complete_names, find_variant

LABEL = 17  # columns
FILES = ("gguf", "cache_ratios")
UNSAID = ("parts", "format", "typed", "raw", "input", "references", "loras", *FILES, "mask", "checkpoint", "max_frames")

Shown = Annotated[
    Path,
    typer.Argument(
        metavar="OUTPUT",
        help="A result of kiwi, its sidecar (.json), or a model's name.",
        autocompletion=complete_names,
        show_default=False,
    ),
]
Result = Annotated[
    Path, typer.Argument(metavar="OUTPUT", help="A result of kiwi, or its sidecar (.json).", show_default=False)
]


@app.command()
def show(output: Shown, as_json: options.AsJson = False) -> None:
    """Print how an output was made, or what a model is.

    It is read from the file itself, or from the sidecar beside it where there is one.

    Examples:

      kiwi show clip-edited.mp4

      kiwi show clip-edited.mp4 --json

      kiwi show instruct-reference
    """
    variant = None if output.exists() else find_variant(str(output))
    if variant is not None:
        show_model(variant, Console(as_json=as_json))
        return
    from kiwi_cli.editing.record import read_settings

    _refuse_run(output)
    if not output.exists() and (near := difflib.get_close_matches(str(output), [each.name for each in VARIANTS], 1)):
        raise UsageError(f"no such file or model: '{output}'", f"did you mean '{near[0]}'?")
    settings, found = read_settings(output)
    Console(as_json=as_json).result(text(settings), {"output": str(output), "source": str(found), "settings": settings})


def _refuse_run(output: Path) -> None:
    """Raises UsageError for the folder of a run: its results are what carries settings."""
    from kiwi_cli.batch.jobs import STATE

    if (output / STATE).is_dir():
        raise UsageError(
            f"the folder of a run, not a result: '{output}'",
            f"kiwi status '{output}' says how it stands; name one file",
        )


def show_model(variant: Variant, console: Console) -> None:
    """What a model is, what it is good for, and whether it is here."""
    from kiwi_cli.weights.fetch import Access
    from kiwi_cli.weights.inventory import describe, details

    row = describe(variant, Access())
    rows = [("model", variant.name), ("for", ", ".join(variant.tasks)), ("here", row["cached"])]
    rows += [("", line) for line in details(variant, row)]
    console.result(aligned(rows, LABEL), row)


def _rerun_options() -> list[Row]:
    """Every option of the edits."""
    recorded = {name: options.as_recorded(row) for name, row in rows(EditRequest).items()}
    recorded["output"] = recorded["output"].but(unset="beside OUTPUT, 'clip-edited-rerun.mp4'")
    return list(recorded.values())


@app.command()
@options.takes(_rerun_options())
def rerun(
    made: Result,
    words: Annotated[
        str | None,
        typer.Argument(metavar="[INSTRUCTION]", help="Other words than it was made with.", show_default=False),
    ] = None,
    *,
    span: Annotated[
        str | None,
        typer.Option(
            "--span",
            metavar="FROM-TO",
            help="Make this part of it anew and leave all other frames as they are: two times of OUTPUT, such as "
            "00:12-00:15. It needs the latents that --keep-latents wrote.",
            rich_help_panel=CLIP,
            show_default=False,
        ),
    ] = None,
    allow_changed: Annotated[
        bool,
        options.flag(
            "--allow-changed",
            help="Go on although the source, a reference, the mask or the model is not the same file any more.",
            rich_help_panel=INPUTS,
        ),
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    **values: Any,
) -> None:
    """Make an output again, as it was made or with other settings.

    The source, the references and the mask must be where they were and be the same files, by sha256.
    An option that is not given is as it was. With --span one part is made anew, with another seed or other words.

    Examples:

      kiwi rerun clip-edited.mp4 --seed 5

      kiwi rerun clip-edited.mp4 --span 00:12-00:15 --seed 5

      kiwi rerun clip-edited.mp4 "make it rainy" --span 00:12-00:15

      kiwi rerun clip-edited.mp4 --steps 30 --instruction "make it rainy" -o rainy.mp4

      kiwi rerun clip-edited.mp4 --input moved/clip.mp4
    """
    from kiwi_cli.cli.edit import carry_out
    from kiwi_cli.editing import record
    from kiwi_cli.editing.paths import numbered
    from kiwi_cli.editing.remaking import parse_span, part_request

    _refuse_run(made)
    settings, found = record.read_settings(made)
    base = found.absolute().parent
    changed = options.gathered(values, unset=(None, ()))
    if words is not None:
        if "instruction" in changed:
            raise UsageError("the instruction is given twice, with --instruction too", "leave one of them out")
        changed["instruction"] = words
    if "model" in changed:
        changed.setdefault("revision", None)
    if "to" in changed:  # not together with the recorded length
        changed.setdefault("duration", None)
    result = made.with_suffix("") if made.suffix == ".json" else made
    if span is not None:
        if allow_changed:
            raise UsageError("--span needs the same source, and --allow-changed another", "leave one of them out")
        request = part_request(settings, result, base, parse_span(span), changed)
    else:
        request = record.request_from(settings, base).changed(**changed)
        if not allow_changed:
            record.check_unchanged(settings, request, base)
    if request.output is None:
        again = result.with_name(f"{result.stem}-rerun{result.suffix}")
        request = request.changed(output=numbered(request, again))
    elif request.output.absolute() == result.absolute() and not request.overwrite:
        raise UsageError(f"output exists: '{result}'", "pass --overwrite, or another --output")
    carry_out(request, Console(quiet, as_json, verbose), dry_run)


def text(settings: dict[str, Any]) -> str:
    """Settings for reading, a line each; what was left as it is by default is left out."""
    rows: list[tuple[str, Any]] = []
    unsaid = UNSAID if settings.get("mask") else (*UNSAID, "feather")
    for name, value in settings.items():
        usual = (name, value) in (("editor", "kiwi"), ("model", ""))
        if name not in unsaid and value is not None and value is not False and not usual:
            rows.append((name.replace("_", " "), value))
    rows.insert(1, ("input", _file(settings.get("input"))))
    rows += [("part", _part(part)) for part in settings.get("parts", [])]
    rows += [("reference", _file(entry)) for entry in settings.get("references", [])]
    rows += [("mask", _file(settings["mask"]))] if settings.get("mask") else []
    rows += [(name.replace("_", " "), _file(settings[name])) for name in FILES if settings.get(name)]
    rows += [("lora", f"{entry['source']} x {entry['weight']:g}") for entry in settings.get("loras", [])]
    return aligned(rows, LABEL)


def _part(part: dict[str, Any]) -> str:
    seed = "" if part.get("seed") is None else f", seed {part['seed']}"
    words = "" if part.get("instruction") is None else f", '{part['instruction']}'"
    return f"{part.get('start'):g} s to {part.get('end'):g} s of the clip made anew{seed}{words}"


def _file(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "not said"
    digest = entry.get("sha256")
    return f"'{entry.get('path')}'" + (f", sha256 {digest[:12]}" if digest else "")
