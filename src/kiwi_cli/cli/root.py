"""The app that the commands register on, and its groups."""

from __future__ import annotations

import sys

import typer

from kiwi_cli.base.version import __version__

app = typer.Typer(
    name="kiwi",
    help="Edit video from the command line with the Kiwi-Edit models.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"kiwi {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    pass


bench = typer.Typer(help="Measure speed, and quality on the published benchmarks.", no_args_is_help=True)
data = typer.Typer(help="Make clips to train on, and prepare people's own.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
