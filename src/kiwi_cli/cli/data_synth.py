"""`kiwi data synth`: rows to train and test with, made by procedure, with exact truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.options import AsJson, Overwrite, Quiet, choices, flag
from kiwi_cli.cli.root import data
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.synth.wordings import Split
    from kiwi_cli.synth.writer import Settings, TableFormat, Written

FORMATS = ("csv", "json", "jsonl")
WORDINGS = ("seen", "held-out", "both")
GRID = 32  # pixels: training floors the sides to multiples of it

CLIPS, ROWS = "The clips", "The rows"


@data.command()
def synth(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder that is not there yet.", show_default=False, readable=False)
    ],
    rows: Annotated[
        int,
        typer.Option("--count", metavar="N", help="How many rows.", show_default=False, rich_help_panel=ROWS),
    ],
    kinds: Annotated[
        list[str],
        typer.Option(
            "--kinds",
            metavar="KINDS",
            help="Kinds of edits, with commas between: black-and-white, sepia, night, snow, negative, pencil, "
            "posterise, background, change, remove, add, reference-background, reference-subject (these by default); "
            "'looks' for the 31 looks, or some of them by name (docs/synthetic-data.md).",
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = [],  # noqa: B006 (Typer wants a list; it is not changed)
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Pixels, 32 to 4096 a side.", rich_help_panel=CLIPS)
    ] = "64x64",
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames",
            metavar="N",
            help="Frames of a clip: 1, 5, 9, ... 4k+1. Default: 5; 1 with --images.",
            rich_help_panel=CLIPS,
            show_default=False,
        ),
    ] = None,
    fps: Annotated[float, typer.Option("--fps", metavar="RATE", help="Frames a second.", rich_help_panel=CLIPS)] = 24.0,
    natural: Annotated[
        bool,
        flag(
            "--natural",
            help="Scenes nearer to filmed ones; drawn things lie on them where a kind is about things.",
            rich_help_panel=CLIPS,
        ),
    ] = False,
    images: Annotated[
        bool,
        flag("--images", help="PNG pictures instead of clips, of one frame each.", rich_help_panel=CLIPS),
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="The same seed makes the same bytes.", rich_help_panel=ROWS)
    ] = 0,
    held_out: Annotated[
        bool,
        flag(
            "--held-out",
            help="For tests: textures and colours that no other row has, and both sorts of wordings in turn.",
            rich_help_panel=ROWS,
        ),
    ] = False,
    wordings: Annotated[
        str | None,
        typer.Option(
            "--wordings",
            metavar="SPLIT",
            help="seen (for training), held-out or both. Default: seen; both with --held-out.",
            autocompletion=choices(*WORDINGS),
            rich_help_panel=ROWS,
            show_default=False,
        ),
    ] = None,
    table_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Of the table: csv, json or jsonl.",
            autocompletion=choices(*FORMATS),
            rich_help_panel=ROWS,
        ),
    ] = "csv",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make synthetic rows: source clip, instruction, edited clip, reference picture and mask.

    Shapes move over textured grounds; each clip is edited in one of 13 ways, or has one
    of 31 looks, and the truth is exact.

    Examples:

      kiwi data synth rows --count 1000

      kiwi data synth styles --count 500 --kinds night,snow,sepia --size 128x96 --frames 17

      kiwi data synth graded --count 620 --kinds looks --natural

      kiwi data synth test-rows --count 260 --held-out --format jsonl
    """
    width, height = _size(size)
    if table_format not in FORMATS:
        raise UsageError(f"unknown format '{table_format}'", f"use one of {', '.join(FORMATS)}")
    if wordings not in (None, *WORDINGS):
        raise UsageError(f"unknown wordings '{wordings}'", f"use one of {', '.join(WORDINGS)}")
    from kiwi_cli.synth import writer
    from kiwi_cli.synth.wordings import KINDS, LOOK_KINDS, SPLITS

    splits = SPLITS if wordings == "both" or (wordings is None and held_out) else (cast("Split", wordings or "seen"),)
    named = [kind.strip() for text in kinds for kind in text.split(",")]
    chosen = tuple(one for kind in named for one in (LOOK_KINDS if kind == "looks" else (kind,)))
    settings = writer.Settings(
        rows,
        kinds=chosen or KINDS,
        width=width,
        height=height,
        frames=(1 if images else 5) if frames is None else frames,
        fps=fps,
        seed=seed,
        held_out=held_out,
        splits=splits,
        images=images,
        natural=natural,
    )
    writer.check_folder(out, overwrite)
    console = Console(quiet=quiet, as_json=as_json)
    _warn(console, settings)
    with console.stages({"rows": "Making rows"}) as stages:
        written = writer.write_rows(
            out,
            settings,
            cast("TableFormat", table_format),
            overwrite,
            lambda done, total: stages("rows", done, total),
        )
    console.note(f"{count(written.rows, 'row')} of {count(len(written.kinds), 'kind')}, {format_bytes(written.bytes)}")
    console.result(str(written.table), _data(written, stages.seconds["rows"]))


def _data(written: Written, seconds: float) -> dict[str, Any]:
    """What `--json` prints of the rows."""
    return {
        "output": str(written.folder),
        "table": str(written.table),
        "rows": written.rows,
        "kinds": written.kinds,
        "bytes": written.bytes,
        "seconds": round(seconds, 3),
    }


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d{1,6})\s*[x×]\s*(\d{1,6})\s*", text)
    if match is None:
        raise UsageError(f"not a size: '{text}'", "write it as WIDTHxHEIGHT, such as 64x64")
    return int(match[1]), int(match[2])


def _warn(console: Console, settings: Settings) -> None:
    floored = tuple(side // GRID * GRID for side in (settings.width, settings.height))
    if floored != (settings.width, settings.height):
        console.note(
            f"{settings.width}x{settings.height} is not in multiples of {GRID}: training takes the middle, at "
            f"{floored[0]}x{floored[1]}"
        )
    if settings.count < len(settings.kinds):
        left = ", ".join(settings.kinds[settings.count :])
        console.note(f"{count(settings.count, 'row')}: no room for {left}")
