"""`kiwi bench report`: your runs beside the published ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import bench
from kiwi_cli.errors import MediaError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.bench.run import Run

LEAST_WIDTH, PLAIN_WIDTH = 80, 140  # characters; the second off a terminal


@bench.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of runs.", show_default=False)] = [],  # noqa: B006 (Typer copies it)
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Where the files go. Default: DIR/report of the first.", metavar="DIR"),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two runs of the same data, item by item.", metavar="A B")
    ] = None,
    cap: Annotated[bool, typer.Option("--cap", help="Hold the later scores down to the first.")] = False,
    embed: Annotated[bool, typer.Option("--embed", help="Put the clips into the page.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Print your runs beside the published ones, and write Markdown, CSV, JSON and one HTML page.

    The page opens from the disk with no network. Its clips are found beside it, or are in it with --embed.

    Examples:

      kiwi bench report runs/mine

      kiwi bench report runs/before runs/after --out report

      kiwi bench report --compare runs/before runs/after
    """
    console = Console(quiet=quiet, as_json=as_json)
    from kiwi_cli.bench.report.data import names_of
    from kiwi_cli.bench.run import open_run

    paths = list(dict.fromkeys(path.resolve() for path in [*folders, *(compare or ())]))
    if not paths:
        raise UsageError("no run given", "name the folders of runs, or --compare A B")
    if compare is not None and compare[0].resolve() == compare[1].resolve():
        raise UsageError(f"'{compare[0]}' is compared with itself", "name two runs")
    names_of(paths)
    runs = [open_run(path) for path in paths]
    pair = (open_run(compare[0]), open_run(compare[1])) if compare is not None else None
    write_and_show(runs, out or runs[0].folder / "report", console, cap, pair, embed)


def write_and_show(
    runs: Sequence[Run],
    folder: Path,
    console: Console,
    capped: bool = False,
    pair: tuple[Run, Run] | None = None,
    embed: bool = False,
) -> None:
    """Write the report's files and print its tables.

    Raises:
        MediaError: the folder cannot be written to.
    """
    from kiwi_cli.bench.report import html as report_html
    from kiwi_cli.bench.report import text as report_text
    from kiwi_cli.bench.report.data import build

    data = build(runs, capped, pair)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("report.md", report_text.markdown(data)),
            ("summary.csv", report_text.summary_csv(data)),
            ("items.csv", report_text.items_csv(data)),
            ("report.json", report_text.as_json(data)),
            ("report.html", report_html.render(data, folder, embed)),
        ):
            part = folder / f".{name}.part"
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)
    except OSError as error:
        raise MediaError(
            f"cannot write '{error.filename}': {error.strerror}", "pass another folder with --out"
        ) from None
    console.note(f"wrote '{folder / 'report.html'}', report.md, report.json, summary.csv and items.csv")
    width = max(LEAST_WIDTH, shutil.get_terminal_size((PLAIN_WIDTH, 50)).columns)
    console.result(report_text.terminal(data, width), data)
