"""`kiwi show` and `kiwi rerun`: how an output was made, and making it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kiwi_cli.cli import app, options
from kiwi_cli.console import Console, aligned
from kiwi_cli.errors import UsageError
from kiwi_cli.variants import Variant, complete_names, find_variant

LABEL = 17  # columns
INPUTS = "The inputs"
FILES = ("gguf", "cache_ratios")
UNSAID = ("format", "typed", "raw", "input", "references", "loras", *FILES, "mask", "checkpoint", "max_frames")

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
    from kiwi_cli.record import read_settings

    settings, found = read_settings(output)
    Console(as_json=as_json).result(text(settings), {"output": str(output), "source": str(found), "settings": settings})


def show_model(variant: Variant, console: Console) -> None:
    """What a model is, what it is good for, and whether it is here."""
    from kiwi_cli.cli.download import describe, details
    from kiwi_cli.weights.fetch import Access

    row = describe(variant, Access())
    rows = [("model", variant.name), ("for", ", ".join(variant.tasks)), ("here", row["cached"])]
    rows += [("", line) for line in details(variant, row)]
    console.result(aligned(rows, LABEL), row)


@app.command()
def rerun(
    output: Result,
    instruction: Annotated[
        str | None,
        typer.Option("--instruction", help="Other words.", rich_help_panel=options.WORDS, show_default=False),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option("--input", metavar="PATH", help="Another source, or where it is now.", rich_help_panel=INPUTS),
    ] = None,
    ref: options.References = [],  # noqa: B006 (Typer copies it)
    allow_changed: Annotated[
        bool,
        options.flag(
            "--allow-changed",
            help="Go on although the source, a reference, the mask or the model is not the same file any more.",
            rich_help_panel=INPUTS,
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Another seed.", rich_help_panel=options.RUN)
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Other steps.", rich_help_panel=options.RUN)
    ] = None,
    cache_ratios: options.CacheRatios = None,
    frames: options.Frames = None,
    mask: options.MaskSpec = None,
    size: options.WorkingSize = None,
    task: options.Task = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Another model, or where it is now.",
            rich_help_panel=options.MODEL,
            autocompletion=options.complete_names,
        ),
    ] = None,
    loras: options.Lora = [],  # noqa: B006
    download: options.Download = True,
    device: options.Device = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            help="Another precision.",
            rich_help_panel=options.MODEL,
            autocompletion=options.choices(*options.DTYPES),
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="LEVEL",
            help="Another memory level; all but tiled give the same result.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="PATH",
            help="Where to write. Default: beside OUTPUT, 'clip-edited-rerun.mp4'.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    codec: options.Codec = None,
    quality: options.Quality = None,
    compare: options.Compare = None,
    sheet: options.Sheet = False,
    sidecar: options.Sidecar = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make an output again, as it was made or with other settings.

    The source, the references and the mask must be where they were and be the same files, by sha256.

    Examples:

      kiwi rerun clip-edited.mp4 --seed 5

      kiwi rerun clip-edited.mp4 --steps 30 --instruction "make it rainy" -o rainy.mp4

      kiwi rerun clip-edited.mp4 --input moved/clip.mp4
    """
    from kiwi_cli import record
    from kiwi_cli.cli.edit import carry_out

    settings, found = record.read_settings(output)
    base = found.absolute().parent
    given: dict[str, Any] = {
        "instruction": instruction,
        "input": input,
        "references": tuple(ref) or None,
        "seed": seed,
        "steps": steps,
        "cache_ratios": cache_ratios,
        "frames": frames,
        "mask": mask,
        "size": size,
        "task": task,
        "model": model,
        "loras": tuple(loras) or None,
        "dtype": dtype,
        "memory": memory,
        "codec": codec,
        "quality": quality,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    if "model" in changed:
        changed["revision"] = None
    request = replace(record.request_from(settings, base), **changed)
    if not allow_changed:
        record.check_unchanged(settings, request, base)
    made = output.with_suffix("") if output.suffix == ".json" else output
    request = replace(
        request,
        output=to or made.with_name(f"{made.stem}-rerun{made.suffix}"),
        download=download,
        device=device,
        overwrite=overwrite,
        compare=compare,
        sheet=sheet,
        sidecar=sidecar,
    )
    if request.output is not None and request.output.absolute() == made.absolute() and not overwrite:
        raise UsageError(f"output exists: '{made}'", "pass --overwrite, or another --output")
    carry_out(request, Console(quiet, as_json, verbose), dry_run)


def text(settings: dict[str, Any]) -> str:
    """Settings for reading, a line each; what was left as it is by default is left out."""
    rows: list[tuple[str, Any]] = []
    unsaid = UNSAID if settings.get("mask") else (*UNSAID, "feather")
    for name, value in settings.items():
        if name not in unsaid and value is not None and value is not False:
            rows.append((name.replace("_", " "), value))
    rows.insert(1, ("input", _file(settings.get("input"))))
    rows += [("reference", _file(entry)) for entry in settings.get("references", [])]
    rows += [("mask", _file(settings["mask"]))] if settings.get("mask") else []
    rows += [(name.replace("_", " "), _file(settings[name])) for name in FILES if settings.get(name)]
    rows += [("lora", f"{entry['source']} x {entry['weight']:g}") for entry in settings.get("loras", [])]
    return aligned(rows, LABEL)


def _file(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "not said"
    digest = entry.get("sha256")
    return f"'{entry.get('path')}'" + (f", sha256 {digest[:12]}" if digest else "")
