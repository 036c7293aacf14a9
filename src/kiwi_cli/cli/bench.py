"""`kiwi bench`: the group, and `speed`. The benchmarks of quality are in bench_runs.py and bench_report.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.cli import app, options
from kiwi_cli.console import Console, format_bytes
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.bench.speed import SpeedResult

bench = typer.Typer(help="Measure speed, and quality on the published benchmarks.", no_args_is_help=True)
app.add_typer(bench, name="bench")

MODELS = ("5b", "mid", "small")
STAGES = {"load": "build the model", "rounds": "measure"}


@bench.command()
def speed(
    model: Annotated[str, typer.Option(help="Random weights of this size: 5b, mid (0.1 billion) or small.")] = "5b",
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the clip, multiples of 32.")] = "1280x704",
    frames: Annotated[int, typer.Option(help="Frames of the clip, 4k + 1.")] = 81,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    reference: Annotated[bool, typer.Option("--reference", help="With one reference picture.")] = False,
    warmups: Annotated[int, typer.Option(help="Runs before the timed ones.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed runs; the median counts.")] = 3,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Time every stage of an edit on random weights: nothing is downloaded.

    Example:

      kiwi bench speed --model mid --size 416x224 --frames 17 --steps 4
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

    from kiwi_cli.bench.speed import SpeedRequest, measure

    request = SpeedRequest(
        model, int(width), int(height), frames, steps, reference, device, dtype, warmups=warmups, repeats=repeats
    )
    with console.stages(STAGES) as stages:
        result = measure(request, stages)
    console.result(table(result), result.as_json())


def table(result: SpeedResult) -> str:
    """The result as text: a line for each stage, then rates and memory."""
    request, stages = result.request, result.stages
    rows: list[tuple[str, Any]] = [
        ("load", f"{stages['load']:9.3f} s"),
        ("instruction", f"{stages['instruction']:9.3f} s"),
        ("encode", f"{stages['encode']:9.3f} s"),
        ("step, median", f"{stages['step']:9.3f} s"),
        ("step, p90", f"{stages['step_p90']:9.3f} s"),
        (f"{request.steps} steps", f"{stages['denoise']:9.3f} s"),
        ("decode", f"{stages['decode']:9.3f} s"),
        ("edit, all of it", f"{stages['edit']:9.3f} s"),
        ("step, rate", f"{result.step_tflops:9.3f} TFLOP/s of {result.tflop['step']:.3f} TFLOP"),
        ("matrix product", f"{result.matrix_tflops:9.3f} TFLOP/s; the step reaches {share(result)}"),
        *((f"peak, {name}", f"{format_bytes(count):>11}") for name, count in result.memory.items()),
    ]
    head = (
        f"{request.model} random weights, {request.width}x{request.height}, {request.frames} frames, "
        f"{result.tokens} tokens, context {result.context_tokens}; {result.device}, {result.dtype}; "
        + ", ".join(f"{name} {number}" for name, number in result.versions.items())
    )
    return "\n".join([head, *(f"  {label:<18}{value}" for label, value in rows)])


def share(result: SpeedResult) -> str:
    """Of the device's own matrix rate."""
    return f"{100 * result.step_tflops / result.matrix_tflops:.0f} % of it"


from kiwi_cli.cli import bench_report as _report  # noqa: E402  (each registers its commands on `bench`)
from kiwi_cli.cli import bench_runs as _runs  # noqa: E402

COMMAND_MODULES = (_runs, _report)
