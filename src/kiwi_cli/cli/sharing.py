"""Options of commands whose work several workers share: `batch`, several inputs of `edit`, `bench`, `data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kiwi_cli.base.option import RUN
from kiwi_cli.cli.options import flag
from kiwi_cli.errors import UsageError

WORKERS = "The workers"

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", help="So many processes, each with a model of its own.", rich_help_panel=WORKERS, metavar="N"
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option("--gpus", help="A process on each: all, or 0,1,...", rich_help_panel=WORKERS, metavar="LIST"),
]
RetryFailed = Annotated[
    bool, flag("--retry-failed", help="Try again what failed in an earlier run.", rich_help_panel=RUN)
]
SkipBad = Annotated[
    bool,
    flag("--skip-bad", help="Go on without what cannot be used, instead of stopping.", rich_help_panel=RUN),
]
Lease = Annotated[
    float,
    typer.Option(
        "--lease",
        help="Seconds without a sign of life after which a worker's clip is another's.",
        rich_help_panel=WORKERS,
        metavar="SECONDS",
    ),
]


def ray(help: str, metavar: str) -> Any:
    """`--ray`, which takes no address everywhere."""
    return typer.Option("--ray", help=help, rich_help_panel=WORKERS, metavar=metavar)


def shard(help: str) -> Any:
    """`--shard`, which some commands find out by themselves."""
    return typer.Option("--shard", help=help, envvar="KIWI_SHARD", rich_help_panel=WORKERS, metavar="I/N")


def base(panel: str) -> Any:
    """`--base` of a table."""
    help = "What the table's paths are relative to. Default: the table's folder."
    return typer.Option("--base", help=help, metavar="DIR", rich_help_panel=panel, show_default=False)


def check_base(folder: Path | None) -> None:
    """Refuse a `--base` that is no folder.

    Raises:
        UsageError: it is none.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"no such folder: '{folder}'", "pass the folder that the paths are relative to with --base")
