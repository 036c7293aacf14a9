"""`kiwi bench seams`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.base.option import rows
from kiwi_cli.base.text import aligned
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import bench
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.bench.seams.figures import Spread, Summary

OF_EDITS = ("windows", "overlap", "anchor", "contexts", "detail", "steps", "seed", "solver")
LABEL = 22


@bench.command()
@options.takes(rows(EditRequest)[name] for name in (*OF_EDITS, "device", "dtype"))
def seams(
    outputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[OUTPUT]...",
            help="Results of kiwi that were edited in windows; none: drawn clips are edited now.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Of drawn clips: what edits them.")] = "tiny",
    clips: Annotated[int, typer.Option(metavar="N", help="How many are drawn.")] = 4,
    frames: Annotated[int, typer.Option(metavar="N", help="Frames of each.")] = 61,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Edits that they get in turn; repeat for several. Default: sepia, negative, black-and-white.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw every clip's changes, as .svg.", show_default=False)
    ] = None,
    *,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **values: Any,
) -> None:
    """Measure whether it is seen where windows meet: on results with their sources, or on drawn clips with exact truth.

    Every figure stands beside its null, which is the same at all other frames (docs/long-clips.md).

    Examples:

      kiwi bench seams clip-edited.mp4

      kiwi bench seams --clips 8 --windows independent --plot seams.svg
    """
    console = Console(quiet=quiet, as_json=as_json)
    for name, value in (("clips", clips), ("frames", frames)):
        if value < 1:
            raise UsageError(f"--{name} must be at least 1, not {value}")
    if plot is not None and plot.exists() and not overwrite:
        raise UsageError(f"'{plot}' exists", "pass --overwrite, or another --plot")

    from kiwi_cli.bench.seams import run
    from kiwi_cli.bench.seams.figures import Summary
    from kiwi_cli.bench.seams.plot import plot as drawing

    if outputs:
        found = [(str(path), run.of_output(path)[0]) for path in outputs]
    else:
        choice = ModelChoice(model, device=values.pop("device"), dtype=values.pop("dtype"))
        kinds = kind or ["sepia", "negative", "black-and-white"]
        with console.stages({"clips": "edit and measure"}) as stages:
            measured = run.drawn(
                choice, clips, frames, kinds, values, done=lambda count, total: stages("clips", count, total)
            )
        found = [(f"clip {number}", one) for number, one in enumerate(measured, start=1)]
    if plot is not None:
        from kiwi_cli.base.whole import write_text
        from kiwi_cli.video.failures import writing

        with writing(plot, "pass another --plot", "pass a file with --plot"):
            write_text(plot, drawing(found))
    summary = Summary.of([one for _, one in found])
    console.result(text(summary), {**asdict(summary), "unseen": summary.unseen})


def text(summary: Summary) -> str:
    """The figures, a line each, with their nulls."""
    lines = [
        ("clips", f"{summary.clips}"),
        ("seam ratio", _both(summary.ratio, summary.ratio_null)),
        ("colour step, Lab", _both(summary.step, summary.step_null)),
        ("drift, Lab", _mean(summary.drift)),
    ]
    if summary.psnr is not None:
        lines += [("PSNR to truth, dB", _mean(summary.psnr)), ("... where windows meet", _mean(summary.psnr_gap, "+"))]
    if summary.unseen is not None:
        lines.append(
            ("verdict", "within the null" if summary.unseen else "seen: the 95th percentile is above the null's")
        )
    return aligned(lines, LABEL)


def _both(spread: Spread | None, null: Spread | None) -> str:
    return f"{_spread(spread)}   elsewhere {_spread(null)}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "nothing meets"
    return f"median {spread.median:.2f}, 95 % {spread.p95:.2f}, worst {spread.worst:.2f} ({spread.count})"


def _mean(value: tuple[float, float] | None, sign: str = "") -> str:
    return "too short to say" if value is None else f"{value[0]:{sign}.2f} (standard error {value[1]:.2f})"
