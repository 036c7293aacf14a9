"""`kiwi edit` and `kiwi ref-edit`: options -> request -> plan -> run -> report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.base import hardware, processes
from kiwi_cli.base.choices import CPU_PARAMETERS
from kiwi_cli.base.option import OUTPUT, WORDS, rows
from kiwi_cli.base.text import count, format_bytes, format_seconds
from kiwi_cli.cli import options, sharing
from kiwi_cli.cli.batch import Batch
from kiwi_cli.cli.batch import perform as perform_batch
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.editing.checks import check_addresses
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.tasks import REPLACEMENTS
from kiwi_cli.errors import UsageError
from kiwi_cli.weights.catalog import DEFAULT_EDIT, DEFAULT_REF_EDIT

if TYPE_CHECKING:
    from kiwi_cli.editing.kept import Kept
    from kiwi_cli.editing.plan import EditPlan
    from kiwi_cli.editing.session import EditResult


OPTIONS = rows(EditRequest)
EDIT = [row for name, row in OPTIONS.items() if name not in ("input", "instruction", "references")]
"""What `edit` takes beside its arguments."""
REF_EDIT = [OPTIONS["references"], *EDIT]


@app.command()
@options.takes(row.but(default=None, unset=DEFAULT_EDIT) if row.name == "model" else row for row in EDIT)
def edit(
    input: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT... [INSTRUCTION]",
            help="A video, a picture, or a folder of numbered pictures, and what to change, in words; or several "
            "inputs, with -i and --out-dir.",
            show_default=False,
        ),
    ],
    *,
    instruction: Annotated[
        str | None,
        typer.Option(
            "-i",
            "--instruction",
            metavar="TEXT",
            help="What to change, for all inputs.",
            rich_help_panel=WORDS,
            show_default=False,
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out-dir",
            metavar="DIR",
            help="Folder for the results of several inputs, each named as its input.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    workers: sharing.Workers = None,
    gpus: sharing.Gpus = None,
    retry_failed: sharing.RetryFailed = False,
    skip_bad: sharing.SkipBad = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    **values: Any,
) -> None:
    """Change a video or a picture by an instruction.

    The result is the same clip with the edit in it: size, length, frame rate, rotation and sound stay.

    Examples:

      kiwi edit clip.mp4 "make it snowy"

      kiwi edit clip.mp4 "remove the dog" --task remove --start 2 --duration 3 --keep-rest

      kiwi edit clip.mp4 "paint the door red" --mask 400,120,260,480 --feather 12

      kiwi edit clip.mp4 "in watercolour" --size 480p --steps 30 --compare --sheet

      kiwi edit photo.jpg "turn the sky red" --dry-run

      kiwi edit clip.mp4 "make it snowy" --preview

      kiwi edit clip.mp4 "make it snowy" --seeds 4

      kiwi edit a.mp4 b.mp4 shots/*.mov -i "make it snowy" --out-dir snowy
    """
    console = Console(quiet or not processes.is_first(), as_json, verbose)
    values["model"] = _model(values, DEFAULT_EDIT)
    inputs, words = told_apart(input, instruction)
    if out_dir is None:
        only_with = {"--workers": workers, "--gpus": gpus, "--retry-failed": retry_failed, "--skip-bad": skip_bad}
        for name, value in only_with.items():
            if value:
                raise UsageError(f"{name} is for several inputs", "say where their results go with --out-dir DIR")
        if len(inputs) > 1:
            raise UsageError(f"{len(inputs)} inputs, and no folder for their results", "pass one with --out-dir DIR")
        perform(inputs[0], words, values, console, dry_run)
        return
    for name in ("output", "calibrate_cache", "preview", "seeds"):
        if values[name] not in (None, False):
            option = OPTIONS[name].option.flags[-1]
            raise UsageError(f"{option} is for one input, --out-dir for several", "leave one of them out")
    from kiwi_cli.batch.table import Asked

    asked = [Asked(f"'{path}'", path, words) for path in inputs]
    batch = Batch(
        out_dir, options.gathered(values), workers, gpus, retry_failed=retry_failed, skip_bad=skip_bad, dry_run=dry_run
    )
    perform_batch(asked, [], batch, console)


def told_apart(arguments: Sequence[str], instruction: str | None) -> tuple[list[Path], str]:
    """The inputs and the instruction: with -i all arguments are inputs, without it there is one, and then the words.

    Raises:
        UsageError: what is what cannot be known.
    """
    if instruction is not None:
        return [Path(argument) for argument in arguments], instruction
    first, *rest = arguments
    if not rest:
        raise UsageError("missing argument 'INSTRUCTION'", 'say what to change: kiwi edit clip.mp4 "make it snowy"')
    if len(rest) == 1 and not (is_file(rest[0]) and is_file(first)):
        return [Path(first)], rest[0]
    if any(map(is_file, rest)):
        raise UsageError(
            f"{len(arguments)} arguments, and no -i that says which of them is the instruction",
            'with several inputs: kiwi edit a.mp4 b.mp4 -i "make it snowy" --out-dir DIR',
        )
    words = " ".join(rest)
    raise UsageError(f"the instruction is several arguments: {words}", f'put it in quotes: "{words}"')


@app.command("ref-edit")
@options.takes(row.but(default=None, unset=DEFAULT_REF_EDIT) if row.name == "model" else row for row in REF_EDIT)
def ref_edit(
    input: options.Input,
    instruction: Annotated[
        str, typer.Argument(metavar="[INSTRUCTION]", help="What to change, in words.", show_default=False)
    ] = "",
    *,
    replace: options.Replace = "subject",
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    **values: Any,
) -> None:
    """Change a video or a picture with what a reference picture shows.

    Examples:

      kiwi ref-edit clip.mp4 --ref cat.png

      kiwi ref-edit clip.mp4 "put the hat on the woman" --ref hat.jpg

      kiwi ref-edit clip.mp4 --ref beach.jpg --replace background
    """
    if not values["references"]:
        raise UsageError("no reference picture given", "pass one with --ref PATH")
    if replace not in REPLACEMENTS:
        raise UsageError(f"unknown --replace: '{replace}'", f"use {' or '.join(REPLACEMENTS)}")
    console = Console(quiet or not processes.is_first(), as_json, verbose)
    values["model"] = _model(values, DEFAULT_REF_EDIT)
    perform(input, instruction or REPLACEMENTS[replace], values, console, dry_run)


def is_file(argument: str) -> bool:
    """Whether an argument is the name of a file that is here; an instruction may be no name at all."""
    try:
        return Path(argument).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def _model(values: dict[str, Any], default: str) -> str:
    """The model that is named, or the default of Kiwi's; other editors have their own."""
    if values["editor"] != "kiwi":
        from kiwi_cli.editors.registry import default_model

        default = default_model(values["editor"])
    return values["model"] or default


def perform(input: Path, instruction: str, values: dict[str, Any], console: Console, dry_run: bool) -> None:
    """One edit from a command's arguments."""
    carry_out(EditRequest.of(input, instruction, **options.gathered(values)), console, dry_run)


def carry_out(request: EditRequest, console: Console, dry_run: bool, kept: Kept | None = None) -> None:
    """Plan an edit, say what is not as it was, and do it or only show it; `kept`: what was made of it before."""
    # Report cheap errors first: importing the libraries takes seconds.
    request.check()
    check_addresses(request)
    check_there(request.input)
    if dry_run:
        request.previewing.check_alone()
    else:
        console.note(f"reading '{request.input}'")

    from kiwi_cli.editing.prepare import prepare
    from kiwi_cli.editing.session import Session, stages_of
    from kiwi_cli.editors.registry import kind_of

    plan = prepare(request, console, fetch=not dry_run)
    for warning in plan.warnings:
        console.warn(warning)
    if dry_run:
        from kiwi_cli.cli import dry_run as planned

        console.result(planned.text(plan, console.verbose), planned.data(plan))
        if not hardware.gpus() and (
            request.choice.device.startswith("cuda")
            or (request.choice.device == "auto" and plan.found.parameters > CPU_PARAMETERS)
        ):
            # An edit that would be refused is no success; torch is imported for a sure answer, and for that alone.
            kind_of(request.choice).admit(plan.found, request.choice)
        return
    for notice in plan.notices:
        console.note(f"note: {notice}")
    if request.previewing.asked:
        from kiwi_cli.cli.preview import show

        show(plan, console)
        return
    console.note(f"editing {count(plan.span.frame_count, 'frame')} of '{request.input}' at {plan.size}")
    console.note(f"instruction: {plan.told(plan.asked)}")
    with Session(events=console) as session:
        result = session.run(plan, kept)
    if not processes.is_first():
        return  # the first one tells of the result
    for notice in result.notices[len(plan.warnings) + len(plan.notices) :]:
        if session.latest is None or notice not in session.latest.changes:  # those were told as they came
            console.note(f"note: {notice}")
    for name, label in stages_of(plan.request.choice).items():
        if name in result.seconds:
            console.detail(f"{label:<22}{format_seconds(result.seconds[name]):>12}")
    for name, peak in result.memory.items():
        console.detail(f"{f'peak memory, {name}':<22}{format_bytes(peak):>12}")
    console.note(
        f"wrote {count(result.frames, 'frame')} of {result.size} in {format_seconds(result.seconds['total'])} "
        f"{'by' if result.dtype == 'auto' else 'on'} {result.device}"
        + ("" if result.dtype == "auto" else f" in {result.dtype}")
    )
    if kept is None and plan.request.choice.editor == "kiwi":
        remember(plan, result)
    for kind, path in plan.extras.items():
        console.note(f"{kind}: {path}")
    console.result(str(result.output), report(plan, result))


def check_there(path: Path) -> None:
    """Refuse an input that is not there.

    Raises:
        UsageError: it is not.
    """
    if not path.exists():
        more = "; of a pipe, save what it gives first" if str(path) == "-" else ""
        raise UsageError(f"input not found: '{path}'", f"pass the path of a video, a picture or a folder{more}")


def remember(plan: EditPlan, result: EditResult) -> None:
    """Keep what an edit took, for the next dry run."""
    from kiwi_cli.cli.dry_run import last_run
    from kiwi_cli.engine import last_runs

    seconds = result.seconds
    last_runs.remember(last_run(plan, seconds["load"], seconds["total"], seconds.get("decode", 0.0)))


def report(plan: EditPlan, result: EditResult) -> dict[str, Any]:
    """The JSON object of an edit; its keys are documented in docs/json.md."""
    return {
        "output": str(result.output),
        "input": str(plan.request.input),
        **{
            kind: str(plan.extras[kind]) if kind in plan.extras else None
            for kind in ("comparison", "sheet", "sidecar", "latents", "ratios")
        },
        "frames": result.frames,
        "width": result.size.width,
        "height": result.size.height,
        "fps": float(plan.clip.fps),
        "working_size": str(plan.size),
        "windows": plan.in_windows.data if plan.in_windows else None,
        "device": result.device,
        "dtype": result.dtype,
        "settings": result.settings,
        "seconds": {name: round(value, 3) for name, value in result.seconds.items()},
        "memory": result.memory,
        "notices": result.notices,
        "approximations": result.approximations,
    }
