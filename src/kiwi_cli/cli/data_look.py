"""`kiwi data look`: the rows of `kiwi data reference` as a page, with thresholds to move."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kiwi_cli.cli.console import Console
from kiwi_cli.cli.options import AsJson, Quiet
from kiwi_cli.cli.root import data
from kiwi_cli.errors import KiwiError


@data.command()
def look(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="What was given to `kiwi data reference --out`.", show_default=False, readable=False
        ),
    ],
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="Only the first N rows; a page of many is slow.", min=1)
    ] = 1000,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a page with each row's source, target, mask, reference, figures and verdict; it needs no network.

    Thresholds can be moved in it, and the page says what to pass to `kiwi data reference` for them.

    Examples:

      kiwi data look refs

      kiwi data look refs --limit 200
    """
    from kiwi_cli.data.reference.looking import write_page

    console = Console(quiet=quiet, as_json=as_json)
    try:
        with console.stages({"rows": "Making stills"}) as stages:
            page = write_page(folder, limit, lambda done, total: stages("rows", done, total))
    except OSError as error:
        raise KiwiError(
            f"cannot write in '{folder}': {error.strerror or error}", "free some space, or mend it"
        ) from None
    console.result(str(page), {"output": str(page)})
