"""`kiwi data cache`: a table of edits to a folder of latents and vision features, once for all epochs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.cli import sharing
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.options import AsJson, Quiet, choices, flag
from kiwi_cli.cli.root import data
from kiwi_cli.engine.choice import DEVICES, DTYPES
from kiwi_cli.errors import EXIT_INTERRUPTED, KiwiError, UsageError
from kiwi_cli.weights.catalog import complete_names

if TYPE_CHECKING:
    from kiwi_cli.batch.crew import Crew
    from kiwi_cli.data.cache_jobs import Filling
    from kiwi_cli.data.latents import CacheReport

STORES = ("float32", "bfloat16")
MAX_PIXELS = 1280 * 720
DATA, MODEL = "The rows", "The model"


@data.command()
def cache(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="CSV, JSON, JSONL or parquet with the columns src_video, tgt_video, prompt and, if any, ref_image.",
            show_default=False,
            readable=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME|DIR",
            help="The model that will be trained: its autoencoder and vision tower do the work.",
            autocompletion=complete_names,
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Folder of the cache; made, or gone on with.", show_default=False),
    ],
    base: Annotated[Path | None, sharing.base(DATA)] = None,
    max_pixels: Annotated[
        str,
        typer.Option(
            "--max-pixels", metavar="WxH|N", help="Largest area of a frame; larger ones shrink.", rich_help_panel=DATA
        ),
    ] = "1280x720",
    frames: Annotated[
        int, typer.Option("--frames", metavar="N", help="Most frames of a clip, 4k+1.", rich_help_panel=DATA)
    ] = 81,
    reference_views: Annotated[
        int,
        typer.Option(
            "--reference-views",
            metavar="N",
            help="Latents of each reference, each shrunk by another random amount.",
            rich_help_panel=DATA,
        ),
    ] = 4,
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out",
            metavar="FRACTION",
            help="Rows kept for the held-out loss, by their source; 0 for none.",
            rich_help_panel=DATA,
        ),
    ] = 0.02,
    max_bad: Annotated[
        float,
        typer.Option(
            "--max-bad",
            metavar="FRACTION",
            help="Bad rows that are passed over before it stops; at least one is.",
            rich_help_panel=DATA,
        ),
    ] = 0.01,
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="PRECISION",
            help="float32, which is exact; or bfloat16, in half the space.",
            autocompletion=choices(*STORES),
        ),
    ] = "float32",
    prune: Annotated[
        bool, flag("--prune", help="Delete what earlier runs left that this table does not need.")
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            "--device", help="auto, cuda, cuda:N, mps or cpu.", autocompletion=choices(*DEVICES), rich_help_panel=MODEL
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Precision of the vision tower: auto, bfloat16, float16 or float32. Latents are always made in "
            "float32.",
            autocompletion=choices(*DTYPES),
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    workers: sharing.Workers = None,
    gpus: sharing.Gpus = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Encode a table of edits for `kiwi train`: latents of its clips and what the vision tower sees of them.

    A run that was cut off goes on where it was; what is there is not made again unless a file or a setting changed.

    Examples:

      kiwi data cache edits.csv --model instruct-reference --out cache/edits

      kiwi data cache edits.csv --model instruct-reference --out cache/edits --gpus all

      kiwi data cache refvie.parquet --base ~/videos --model ~/kiwi-5b --out cache/refvie --max-pixels 600x600
    """
    area = parse_area(max_pixels)
    _check(frames, reference_views, held_out, max_bad, store, dtype)
    from kiwi_cli.batch.crew import Crew
    from kiwi_cli.data.rows import read_rows

    crew = Crew(workers, gpus)
    crew.check()
    total = _scanned(table, base, max_bad)

    from kiwi_cli.data.cache_jobs import Filling
    from kiwi_cli.data.clips import Preparation, items
    from kiwi_cli.data.encode import Encoder
    from kiwi_cli.data.latents import write_cache
    from kiwi_cli.engine.devices import choose_device, choose_dtype
    from kiwi_cli.weights.hub import locate

    console = Console(quiet=quiet, as_json=as_json)
    place = choose_device(device)
    folder = locate(model)
    encoder = Encoder.from_folder(folder, place, choose_dtype(dtype, place), store)
    prepare = Preparation(area, frames, encoder.size_multiple, encoder.frames_per_latent)
    with _told_when_interrupted(out, total) as told:
        if crew.devices():
            sizes = (area, frames, encoder.size_multiple, encoder.frames_per_latent)
            _fill(Filling(out, table, base, folder, *sizes, reference_views, store, dtype, device), crew, console)
        with console.stages({"cache": "Encoding"}) as stages:

            def progress(number: int) -> None:
                told(number)
                stages("cache", number, total)

            report = write_cache(
                out,
                items(read_rows(table, base), prepare),
                encoder,
                held_out=held_out,
                reference_views=reference_views,
                max_bad=max_bad,
                total=total,
                prune=prune,
                progress=progress,
            )
    _report(console, out, report, store, prune)


@contextmanager
def _told_when_interrupted(out: Path, total: int) -> Iterator[Callable[[int], None]]:
    """A context that is told how many rows are done, and says so when it is interrupted."""
    done = 0

    def told(number: int) -> None:
        nonlocal done
        done = number

    try:
        yield told
    except KeyboardInterrupt:
        raise KiwiError(
            f"interrupted after {count(done, 'row')} of {total}; what is encoded is kept in '{out}'",
            "run the same command again to go on",
            EXIT_INTERRUPTED,
        ) from None


def _scanned(table: Path, base: Path | None, max_bad: float) -> int:
    """How many rows a table has, whose files are looked for."""
    from kiwi_cli.data import rows

    sharing.check_base(base)
    total, bad = rows.scan(table, base)
    rows.check_bad([f"{row.label}: {row.reason}" for row in bad], total, max_bad)
    return total


def _fill(filling: Filling, crew: Crew, console: Console) -> None:
    """Let several workers encode what is missing; the pass that writes the index finds it, or does it."""
    from kiwi_cli.cli.batch_view import view
    from kiwi_cli.data.cache_jobs import fill

    with view(console, "pieces") as told:
        rows, troubles = fill(filling, crew, told)
    console.note(f"{count(rows, 'row')} gone through by several workers")
    for trouble in troubles:
        console.warn(trouble)


def _check(frames: int, views: int, held_out: float, max_bad: float, store: str, dtype: str) -> None:
    if frames < 1 or frames % 4 != 1:
        near = max(1, (frames - 1) // 4 * 4 + 1)
        raise UsageError(f"the models take 1, 5, 9, ... 4k+1 frames, not {frames}", f"pass --frames {near}")
    if views < 1:
        raise UsageError(f"--reference-views is {views}", "pass 1 or more")
    for name, value in (("--held-out", held_out), ("--max-bad", max_bad)):
        if not (math.isfinite(value) and 0 <= value < 1):
            raise UsageError(f"{name} is {value:g}", "pass a fraction from 0 to below 1, such as 0.02")
    if store not in STORES:
        raise UsageError(f"unknown precision '{store}'", f"use {' or '.join(STORES)}")
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype: '{dtype}'", f"use one of {', '.join(DTYPES)}")


def parse_area(text: str) -> int:
    """'1280x720' or '921600' -> pixels.

    Raises:
        UsageError: anything else, or no pixels.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:[x×]\s*(\d{1,6})\s*)?", text)
    area = int(match[1]) * int(match[2] or 1) if match else 0
    if not area:
        raise UsageError(f"not an area: '{text}'", "write it as WIDTHxHEIGHT, such as 1280x720, or as pixels")
    return area


def _report(console: Console, out: Path, report: CacheReport, store: str, prune: bool) -> None:
    from kiwi_cli.data.shards import total_bytes

    size = total_bytes(out)
    for line in report.bad:
        console.warn(f"left out: {line}")
    for name in report.repaired:
        console.warn(f"'{name}' was damaged, and what it held was encoded again")
    console.note(
        f"{count(report.rows, 'row')}, {report.held_out} of them held out; {report.encoded} tensors encoded, "
        f"{report.found} found"
    )
    exact = "exact" if store == "float32" else "rounded"
    console.note(f"{format_bytes(size)} in {store} ({exact}), {format_bytes(size / report.rows)} a row")
    if report.unused:
        left = "deleted" if prune else "left; --prune deletes them"
        console.note(f"{count(len(report.unused), 'file')} of earlier runs not needed by this table: {left}")
    console.result(
        str(out),
        {
            "output": str(out),
            "rows": report.rows,
            "held_out": report.held_out,
            "encoded": report.encoded,
            "found": report.found,
            "bad": report.bad,
            "bytes": size,
        },
    )
