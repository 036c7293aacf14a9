"""`kiwi bench speed`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.cli import options
from kiwi_cli.cli.bench import bench
from kiwi_cli.console import Console, format_bytes
from kiwi_cli.errors import UsageError

if TYPE_CHECKING:
    from kiwi_cli.bench.speed import SpeedResult

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
    against: Annotated[
        str, typer.Option(metavar="WHAT", help="Also time this on the same weights: diffusers, or none.")
    ] = "none",
    memory: options.Memory = "auto",
    max_memory: options.MaxMemory = None,
    attention: options.Attention = "auto",
    compile_blocks: options.Compile = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Time every stage of an edit on random weights: nothing is downloaded.

    Example:

      kiwi bench speed --model mid --size 416x224 --frames 17 --steps 4

    With --max-memory, the process is capped at that for real on a GPU.
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

    if against not in ("none", "diffusers"):
        raise UsageError(f"unknown --against: '{against}'", "use diffusers or none")

    from kiwi_cli.bench.speed import SpeedRequest, measure

    request = SpeedRequest(
        model=model,
        width=int(width),
        height=int(height),
        frames=frames,
        steps=steps,
        reference=reference,
        device=device,
        dtype=dtype,
        memory=memory,
        max_memory=max_memory,
        attention=attention,
        compile=compile_blocks,
        against_library=against == "diffusers",
        warmups=warmups,
        repeats=repeats,
    )
    with console.stages(STAGES) as stages:
        result = measure(request, stages)
    console.result(table(result), result.as_json())


def table(result: SpeedResult) -> str:
    """The result as text: a line for each stage, then rates and memory."""
    request, stages = result.request, result.stages
    rows: list[tuple[str, Any]] = [
        ("build the weights", f"{stages['load']:9.3f} s"),
        ("instruction", f"{stages['instruction']:9.3f} s"),
        ("encode", f"{stages['encode']:9.3f} s"),
        ("step, median", f"{stages['step']:9.3f} s"),
        ("step, p90", f"{stages['step_p90']:9.3f} s"),
        (f"{request.steps} steps", f"{stages['denoise']:9.3f} s"),
        ("decode", f"{stages['decode']:9.3f} s"),
        ("edit, warm", f"{stages['edit']:9.3f} s"),
        ("edit, cold", f"{stages['first']:9.3f} s"),
        ("file to file, warm", f"{stages['file']:9.3f} s"),
        ("step, rate", f"{result.step_tflops:9.3f} TFLOP/s of {result.tflop['step']:.3f} TFLOP"),
        ("matrix product", f"{result.matrix_tflops:9.3f} TFLOP/s; the step reaches {share(result)}"),
        *((f"library, {name}", against(stages[name], seconds)) for name, seconds in result.library.items()),
        *((f"peak, {name}", f"{format_bytes(count):>11}") for name, count in result.memory.items()),
    ]
    head = (
        f"{request.model} random weights, {request.width}x{request.height}, {request.frames} frames, "
        f"{result.tokens} tokens, context {result.context_tokens}; "
        f"{result.device}, {result.dtype}, {result.attention}{', compiled' if request.compile else ''}; "
        + ", ".join(f"{name} {number}" for name, number in result.versions.items())
    )
    return "\n".join([head, *(f"  {label:<20}{value}" for label, value in rows), f"  {result.plan}"])


def against(ours: float, library: float) -> str:
    """The library's seconds, and how many times ours they are."""
    return f"{library:9.3f} s, {library / ours:.2f} times ours"


def share(result: SpeedResult) -> str:
    """Of the device's own matrix rate."""
    return f"{100 * result.step_tflops / result.matrix_tflops:.0f} % of it"
