"""`kiwi edit` and `kiwi ref-edit`: options -> request -> plan -> run -> report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from kiwi_cli.cli import app, options
from kiwi_cli.console import Console, count, format_seconds
from kiwi_cli.errors import UsageError
from kiwi_cli.variants import DEFAULT_EDIT, DEFAULT_REF_EDIT

REPLACE_INSTRUCTIONS = {
    "subject": "Replace the main subject of the video with the one in the reference image.",
    "background": "Replace the background of the video with the one in the reference image.",
}

References = Annotated[
    list[Path],
    typer.Option("--ref", metavar="IMAGE", help="A reference picture; repeat for several.", show_default=False),
]
Replace = Annotated[
    str,
    typer.Option("--replace", metavar="WHAT", help="Without an instruction: replace the subject or the background."),
]


@app.command()
def edit(
    input: options.Input,
    instruction: options.Instruction,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    model: options.Model = DEFAULT_EDIT,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    frames: options.Frames = None,
    size: options.WorkingSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    download: options.Download = True,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Change a video or a picture by an instruction.

    The result has the clip's own size, frame rate and sound.

    Examples:

      kiwi edit clip.mp4 "make it snowy"

      kiwi edit clip.mp4 "remove the dog" --size 480p -o nodog.mp4

      kiwi edit photo.jpg "turn it into a watercolour"
    """
    perform({**locals(), "references": ()})


@app.command("ref-edit")
def ref_edit(
    input: options.Input,
    instruction: Annotated[
        str, typer.Argument(metavar="[INSTRUCTION]", help="What to change, in words.", show_default=False)
    ] = "",
    ref: References = [],  # noqa: B006 (Typer copies it)
    replace: Replace = "subject",
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    model: options.Model = DEFAULT_REF_EDIT,
    steps: options.Steps = 50,
    seed: options.Seed = 0,
    frames: options.Frames = None,
    size: options.WorkingSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    download: options.Download = True,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Change a video or a picture with what a reference picture shows.

    Examples:

      kiwi ref-edit clip.mp4 --ref cat.png

      kiwi ref-edit clip.mp4 "put the hat on the woman" --ref hat.jpg

      kiwi ref-edit clip.mp4 --ref beach.jpg --replace background
    """
    if not ref:
        raise UsageError("no reference picture given", "pass one with --ref PATH")
    if replace not in REPLACE_INSTRUCTIONS:
        raise UsageError(f"unknown --replace: '{replace}'", "use subject or background")
    arguments = dict(locals())
    arguments.pop("replace")
    arguments["references"] = tuple(arguments.pop("ref"))
    arguments["instruction"] = instruction or REPLACE_INSTRUCTIONS[replace]
    perform(arguments)


def perform(arguments: dict[str, Any]) -> None:
    """Carry out one edit from a command's arguments and report it."""
    # The libraries' own progress bars and advice are not ours to pass on.
    if os.environ.get("KIWI_DEBUG") != "1":
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Console(quiet=arguments.pop("quiet"), as_json=arguments.pop("as_json"))

    from kiwi_cli import job

    request = job.EditRequest(**arguments)
    work = job.plan(request)
    for notice in work.notices:
        console.note(f"note: {notice}")
    console.note(
        f"editing {count(work.span.frame_count, 'frame')} of '{request.input}' at {work.size}: {request.instruction}"
    )
    with console.stages(job.STAGES) as stages:
        result = job.run(work, stages, console=console)
    for notice in result.notices[len(work.notices) :]:
        console.note(f"note: {notice}")
    console.note(
        f"wrote {count(result.frames, 'frame')} of {result.size} in {format_seconds(result.seconds['total'])} "
        f"on {result.device} in {result.dtype}"
    )
    console.result(str(result.output), report(work, result, stages.seconds))


def report(work: Any, result: Any, seconds: dict[str, float]) -> dict[str, Any]:
    """The JSON object of an edit; its keys are documented in docs/cli.md."""
    return {
        "output": str(result.output),
        "input": str(work.request.input),
        "frames": result.frames,
        "width": result.size.width,
        "height": result.size.height,
        "fps": float(work.clip.fps),
        "working_size": str(work.size),
        "device": result.device,
        "dtype": result.dtype,
        "settings": result.settings,
        "seconds": {name: round(value, 3) for name, value in {**seconds, **result.seconds}.items()},
        "notices": result.notices,
    }
