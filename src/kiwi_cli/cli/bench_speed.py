"""`kiwi bench speed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.base.option import rows
from kiwi_cli.base.text import format_bytes
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import bench
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.engine.choice import ModelChoice, Sampling, check_together
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.bench.speed.measure import SpeedResult

MODELS = ("5b", "mid", "small")
STAGES = {"load": "build the model", "rounds": "measure"}


MODES = ("memory", "max_memory", "quantize", "attention", "compile", "device", "dtype")
SHORTCUTS = ("solver", "cache", "cache_threshold")


@bench.command()
@options.takes(rows(EditRequest)[name] for name in (*MODES, *SHORTCUTS))
def speed(
    model: Annotated[str, typer.Option(help="Random weights of this size: 5b, mid (0.1 billion) or small.")] = "5b",
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the clip, multiples of 32.")] = "1280x704",
    frames: Annotated[int, typer.Option(help="Frames of the clip, 4k + 1.")] = 81,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    reference: Annotated[bool, typer.Option("--reference", help="With one reference picture.")] = False,
    warmups: Annotated[int, typer.Option(help="Runs before the timed ones.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed runs; the median counts.")] = 3,
    against: Annotated[
        str, typer.Option(metavar="WHAT", help="Also time this on the same weights, in turn: diffusers, or none.")
    ] = "none",
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the final latents and frames there, as .npy, to compare runs with.",
            show_default=False,
        ),
    ] = None,
    *,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **values: Any,
) -> None:
    """Time every stage of an edit on random weights: nothing is downloaded.

    Examples:

      kiwi bench speed --model mid --size 416x224 --frames 17 --steps 4

      kiwi bench speed --device cuda --compile --against diffusers

    With --max-memory, the process is capped at that for real on a GPU. Without warm-ups, the first run counts too.
    """
    console = Console(quiet=quiet, as_json=as_json)
    if model not in MODELS:
        raise UsageError(f"unknown --model: '{model}'", f"use one of {', '.join(MODELS)}")
    width, _, height = size.partition("x")
    if not (width.isdigit() and height.isdigit()) or int(width) % 32 or int(height) % 32 or "0" in (width, height):
        raise UsageError(f"size not understood: '{size}'", "pass WIDTHxHEIGHT in multiples of 32, such as 1280x704")
    for name, value, least in (
        ("frames", frames, 1),
        ("steps", steps, 1),
        ("warmups", warmups, 0),
        ("repeats", repeats, 1),
    ):
        if value < least:
            raise UsageError(f"--{name} must be at least {least}, not {value}")
    if frames % 4 != 1:
        raise UsageError(f"--frames must be 4k + 1, not {frames}", f"use {frames // 4 * 4 + 1}")
    if against not in ("none", "diffusers"):
        raise UsageError(f"unknown --against: '{against}'", "use diffusers or none")
    choice = ModelChoice(**{name: values[name] for name in MODES})
    sampling = Sampling(**{name: values[name] for name in SHORTCUTS})
    if sampling.cache == "mag":
        raise UsageError("random weights have no ratios for --cache mag", "use first-block, easy or sea")
    check_together(choice, sampling)
    if against != "none" and choice.quantize != "as-stored":
        raise UsageError("--against compares the weights as stored", "leave --quantize out")
    if save is not None:
        _make(save)

    from kiwi_cli.bench.speed.measure import measure
    from kiwi_cli.bench.speed.request import SpeedRequest

    request = SpeedRequest(
        model=model,
        width=int(width),
        height=int(height),
        frames=frames,
        steps=steps,
        reference=reference,
        against_library=against == "diffusers",
        warmups=warmups,
        repeats=repeats,
        save=None if save is None else str(save),
        **values,
    )
    with console.stages(STAGES) as stages:
        result = measure(request, stages)
    console.result(text(result), result.as_json())


def _make(folder: Path) -> None:
    from kiwi_cli.video.failures import writing

    with writing(folder, "pass another --save", "pass a folder with --save"):
        folder.mkdir(parents=True, exist_ok=True)


ROWS = {
    "load": "build the weights",
    "compile": "compile",
    "instruction": "instruction",
    "encode": "encode",
    "step": "step, median",
    "step_p90": "step, p90",
    "denoise": "all steps",
    "decode": "decode",
    "write": "write",
    "edit": "edit, warm",
    "first": "edit, cold",
    "file": "file to file, warm",
}


def text(result: SpeedResult) -> str:
    """What was measured: what and where, a table of the stages, then memory and everything that is not exact."""
    request = result.request
    names = [f"{name} {number}" for name, number in result.versions.items()]
    names += [f"driver {result.driver}"] if result.driver else []
    product = f"matrix product {result.matrix_tflops:.3g} TFLOP/s"
    lines = [
        f"{request.model} random weights, {request.width}x{request.height}, {request.frames} frames, "
        f"{result.tokens} tokens, context {result.context_tokens}, {request.steps} steps",
        f"{result.device}, {result.dtype}, attention {result.attention}{', compiled' if request.compile else ''}; "
        f"{product}; {result.date}",
        ", ".join(names),
        table(result),
        "peak memory: " + ", ".join(f"{name} {format_bytes(size)}" for name, size in result.memory.items()),
        result.plan,
        *result.approximations,
    ]
    if request.against_library and not result.library:
        lines.append("the library is not timed: it cannot stream weights, or has no room")
    return "\n".join(lines)


def table(result: SpeedResult) -> str:
    """A row for each stage: seconds, counted operations and their rate, and the share of the floor, which is the time
    that the operations take at the matrix rate. Beside the library: its seconds, and the median of the ratios of
    neighbours with their least and most."""
    from rich.console import Console as RichConsole
    from rich.table import Table

    rows = Table("stage", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (
        "seconds",
        "TFLOP",
        "TFLOP/s",
        "of the floor",
        *(("library, s", "ours / library") if result.library else ()),
    ):
        rows.add_column(heading, justify="right")
    labels = ROWS if result.request.warmups else ROWS | {"edit": "edit, with the cold"}
    for name, label in labels.items():
        if name not in result.stages:
            continue
        seconds, floor, operations = result.stages[name], result.floors.get(name), result.tflop.get(name)
        row = [f"{seconds:.3f}"]
        row += ["", ""] if operations is None else [f"{operations:.4g}", f"{operations / seconds:.3g}"]
        row.append("" if floor is None else f"{100 * floor / seconds:.0f} % of {floor:.3g} s")
        if name in result.library:
            beside = result.library[name]
            row += [f"{beside.seconds:.3f}", f"{beside.ratio:.3f} ({beside.least:.3f} to {beside.most:.3f})"]
        rows.add_row(label, *row)
    wide = RichConsole(width=120, color_system=None)
    with wide.capture() as capture:
        wide.print(rows)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
