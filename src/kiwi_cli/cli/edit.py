"""`kiwi edit` and `kiwi ref-edit`: options -> request -> plan -> run -> report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli import parallel
from kiwi_cli.cli import app, options
from kiwi_cli.console import Console, count, format_bytes, format_seconds
from kiwi_cli.errors import UsageError
from kiwi_cli.tasks import REPLACEMENTS
from kiwi_cli.variants import DEFAULT_EDIT, DEFAULT_REF_EDIT

if TYPE_CHECKING:
    from kiwi_cli.editplan import EditPlan
    from kiwi_cli.job import EditResult
    from kiwi_cli.request import EditRequest


@app.command()
def edit(
    input: options.Input,
    instruction: options.Instruction,
    start: options.Start = "0",
    duration: options.Duration = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    keep_rest: options.KeepRest = False,
    allow_truncated: options.AllowTruncated = False,
    mask: options.MaskSpec = None,
    feather: options.Feather = 0,
    size: options.WorkingSize = None,
    fit: options.FitChoice = "stretch",
    task: options.Task = None,
    raw: options.Raw = False,
    model: options.Model = DEFAULT_EDIT,
    revision: options.Revision = None,
    loras: options.Lora = [],  # noqa: B006 (Typer copies it)
    download: options.Download = True,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    memory: options.Memory = "auto",
    max_memory: options.MaxMemory = None,
    gguf: options.Gguf = None,
    quantize: options.Quantize = "as-stored",
    attention: options.Attention = "auto",
    compile: options.Compile = False,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    codec: options.Codec = None,
    quality: options.Quality = None,
    sound: options.KeepSound = True,
    compare: options.Compare = None,
    sheet: options.Sheet = False,
    sidecar: options.Sidecar = False,
    steps: options.Steps = None,
    solver: options.Solver = "euler",
    cache: options.Cache = "off",
    cache_threshold: options.CacheThreshold = None,
    cache_ratios: options.CacheRatios = None,
    calibrate_cache: options.CalibrateCache = None,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Change a video or a picture by an instruction.

    The result is the same clip with the edit in it: size, length, frame rate, rotation and sound stay.

    Examples:

      kiwi edit clip.mp4 "make it snowy"

      kiwi edit clip.mp4 "remove the dog" --task remove --start 2 --duration 3 --keep-rest

      kiwi edit clip.mp4 "paint the door red" --mask 400,120,260,480 --feather 12

      kiwi edit clip.mp4 "in watercolour" --size 480p --steps 30 --compare --sheet

      kiwi edit photo.jpg "turn the sky red" --dry-run
    """
    perform(locals())


@app.command("ref-edit")
def ref_edit(
    input: options.Input,
    instruction: Annotated[
        str, typer.Argument(metavar="[INSTRUCTION]", help="What to change, in words.", show_default=False)
    ] = "",
    ref: options.References = [],  # noqa: B006 (Typer copies it)
    replace: options.Replace = "subject",
    start: options.Start = "0",
    duration: options.Duration = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    keep_rest: options.KeepRest = False,
    allow_truncated: options.AllowTruncated = False,
    mask: options.MaskSpec = None,
    feather: options.Feather = 0,
    size: options.WorkingSize = None,
    fit: options.FitChoice = "stretch",
    task: options.Task = None,
    raw: options.Raw = False,
    model: options.Model = DEFAULT_REF_EDIT,
    revision: options.Revision = None,
    loras: options.Lora = [],  # noqa: B006
    download: options.Download = True,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    memory: options.Memory = "auto",
    max_memory: options.MaxMemory = None,
    gguf: options.Gguf = None,
    quantize: options.Quantize = "as-stored",
    attention: options.Attention = "auto",
    compile: options.Compile = False,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    codec: options.Codec = None,
    quality: options.Quality = None,
    sound: options.KeepSound = True,
    compare: options.Compare = None,
    sheet: options.Sheet = False,
    sidecar: options.Sidecar = False,
    steps: options.Steps = None,
    solver: options.Solver = "euler",
    cache: options.Cache = "off",
    cache_threshold: options.CacheThreshold = None,
    cache_ratios: options.CacheRatios = None,
    calibrate_cache: options.CalibrateCache = None,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Change a video or a picture with what a reference picture shows.

    Examples:

      kiwi ref-edit clip.mp4 --ref cat.png

      kiwi ref-edit clip.mp4 "put the hat on the woman" --ref hat.jpg

      kiwi ref-edit clip.mp4 --ref beach.jpg --replace background
    """
    arguments = dict(locals())
    references, replaced = arguments.pop("ref"), arguments.pop("replace")
    if not references:
        raise UsageError("no reference picture given", "pass one with --ref PATH")
    if replaced not in REPLACEMENTS:
        raise UsageError(f"unknown --replace: '{replaced}'", f"use {' or '.join(REPLACEMENTS)}")
    perform({**arguments, "references": references, "instruction": instruction or REPLACEMENTS[replaced]})


def perform(arguments: dict[str, Any]) -> None:
    """One edit from a command's arguments."""
    values = dict(arguments)
    quiet = values.pop("quiet") or not parallel.is_first()
    console = Console(quiet, values.pop("as_json"), values.pop("verbose"))
    dry_run = values.pop("dry_run")

    from kiwi_cli.request import EditRequest

    values["loras"], values["references"] = tuple(values["loras"]), tuple(values.get("references", ()))
    carry_out(EditRequest(**values), console, dry_run)


def carry_out(request: EditRequest, console: Console, dry_run: bool) -> None:
    """Plan an edit, say what is not as it was, and do it or only show it."""
    # What needs no library is said before one is imported, which takes longer than a person expects.
    request.check()
    if not request.input.exists():
        raise UsageError(f"input not found: '{request.input}'", "pass the path of a video, a picture or a folder")
    if not dry_run:
        console.note(f"reading '{request.input}'")

    from kiwi_cli import job

    work = job.plan(request)
    if dry_run:
        from kiwi_cli.cli import planned

        console.result(planned.text(work), planned.data(work))
        return
    for notice in work.notices:
        console.note(f"note: {notice}")
    console.note(f"editing {count(work.span.frame_count, 'frame')} of '{request.input}' at {work.size}")
    console.note(f"instruction: {request.prompt}")
    told = work.notices
    work = job.prepare(work, console)  # a download has a display of its own
    for notice in work.notices:
        if notice not in told:
            console.note(f"note: {notice}")
    with console.stages(job.STAGES) as stages:
        result = job.run(work, stages, console=console)
    for notice in result.notices[len(work.notices) :]:
        console.note(f"note: {notice}")
    for name, seconds in stages.seconds.items():
        console.detail(f"{job.STAGES.get(name, name):<22}{format_seconds(seconds):>12}")
    for name, peak in result.memory.items():
        console.detail(f"{f'peak memory, {name}':<22}{format_bytes(peak):>12}")
    console.note(
        f"wrote {count(result.frames, 'frame')} of {result.size} in {format_seconds(result.seconds['total'])} "
        f"on {result.device} in {result.dtype}"
    )
    for kind, path in work.extras.items():
        console.note(f"{kind}: {path}")
    console.result(str(result.output), report(work, result, stages.seconds))


def report(work: EditPlan, result: EditResult, seconds: dict[str, float]) -> dict[str, Any]:
    """The JSON object of an edit; its keys are documented in docs/json.md."""
    return {
        "output": str(result.output),
        "input": str(work.request.input),
        **{
            kind: str(work.extras[kind]) if kind in work.extras else None
            for kind in ("comparison", "sheet", "sidecar", "ratios")
        },
        "frames": result.frames,
        "width": result.size.width,
        "height": result.size.height,
        "fps": float(work.clip.fps),
        "working_size": str(work.size),
        "windows": work.windows.data if work.windows else None,
        "device": result.device,
        "dtype": result.dtype,
        "settings": result.settings,
        "seconds": {name: round(value, 3) for name, value in {**seconds, **result.seconds}.items()},
        "memory": result.memory,
        "notices": result.notices,
        "approximations": result.approximations,
    }
