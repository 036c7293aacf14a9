"""`kiwi finish`: an edit that was made and could not be written, written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kiwi_cli.base import processes
from kiwi_cli.base.option import OUTPUT, rows
from kiwi_cli.base.text import count
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.editing.request import EditRequest

CHANGEABLE = ("device", "memory", "max_memory")
"""What may be changed beside the output: where and how the model works, not what it makes."""
Unfinished = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="What a failed edit kept: 'OUTPUT.unfinished'.", show_default=False),
]


@app.command()
@options.takes(
    options.as_recorded(row).but(env=None, default=() if row.many else None, unset="")
    for name, row in rows(EditRequest).items()
    if (row.option.group == OUTPUT and name != "keep_latents") or name in CHANGEABLE  # what is kept is single windows
)
def finish(
    file: Unfinished,
    *,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    **values: Any,
) -> None:
    """Write an edit that was made and could not be written.

    When an output cannot be written after the model has worked, because the disk is full for one, what the model made
    is kept beside it. This goes on from there: it decodes and writes what is kept, edits what is not made yet, and
    removes the file when the output is whole. An option that is not given is as it was.

    Examples:

      kiwi finish clip-edited.mp4.unfinished

      kiwi finish clip-edited.mp4.unfinished -o /elsewhere/clip-edited.mkv --codec ffv1
    """
    from kiwi_cli.cli.edit import carry_out
    from kiwi_cli.editing.kept import Kept
    from kiwi_cli.editing.unfinished import request_of

    console = Console(quiet or not processes.is_first(), as_json, verbose)
    kept = Kept(file)
    request = request_of(kept).changed(**options.gathered(values, unset=(None, ())))
    console.note(f"made already: {count(kept.windows, 'window')}, in '{file}'")
    carry_out(request, console, dry_run, kept)
    if not dry_run and processes.is_first():
        file.unlink(missing_ok=True)
        console.note(f"removed '{file}'")
