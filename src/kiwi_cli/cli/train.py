"""`kiwi train`: one stage from its TOML file."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kiwi_cli.base import processes
from kiwi_cli.base.text import count
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.endings import endings
from kiwi_cli.cli.options import AsJson, DryRun, Quiet, Verbose, choices, flag
from kiwi_cli.cli.root import app
from kiwi_cli.errors import EXIT_INTERRUPTED, KiwiError, UsageError

if TYPE_CHECKING:
    from kiwi_cli.train.loop import Stop

DEVICES = ("auto", "cpu")


@app.command()
def train(
    stage: Annotated[
        Path,
        typer.Argument(
            metavar="STAGE.toml",
            help="The stage's settings; recipes/ has examples.",
            show_default=False,
            readable=False,
        ),
    ],
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another value for one of them, such as optimiser.lr=1e-4 or data.0.ratio=2; repeat for several.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 (Typer copies it)
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="The run's folder, instead of the file's.", show_default=False),
    ] = None,
    resume: Annotated[bool, flag("--resume", help="Go on from the last state in the run's folder.")] = False,
    device: Annotated[
        str,
        typer.Option("--device", help="auto (a GPU where there is one) or cpu.", autocompletion=choices(*DEVICES)),
    ] = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a stage: alignment, instruction or reference.

    Ctrl-C finishes the step, saves the state and ends; --resume goes on to the same numbers.

    Examples:

      kiwi train recipes/instruction.toml --dry-run

      kiwi train recipes/lora-one-gpu.toml --set data.0.cache=cache/mine --out runs/mine

      kiwi train recipes/lora-one-gpu.toml --out runs/mine --resume

      torchrun --nproc-per-node 8 -m kiwi_cli train recipes/instruction.toml --set strategy=ddp
    """
    from kiwi_cli.train.config import load_config

    if device not in DEVICES:
        raise UsageError(f"unknown device: '{device}'", f"use {' or '.join(DEVICES)}")
    config = load_config(stage, settings, out=None if out is None else str(out))
    console = Console(quiet=quiet or not processes.is_first(), as_json=as_json, verbose=verbose)
    if dry_run:
        from kiwi_cli.train.plan import plan_run

        plan = plan_run(config)
        console.result(plan.text(), plan.as_dict())
        return

    from kiwi_cli.train.run import run_stage

    with _stopping(console) as stop:
        outcome = run_stage(config, events=console, resume=resume, stop=stop, device=device)
    result = outcome.result
    if result.interrupted:
        raise KiwiError(
            f"interrupted after {count(result.step, 'step')} of {config.steps}; the state is saved in '{result.state}'",
            "the same command with --resume goes on",
            EXIT_INTERRUPTED,
        )
    if processes.is_first():
        data: dict[str, Any] = {
            "out": config.out,
            "stage": config.stage,
            "steps": result.step,
            "loss": result.loss,
            "held_out": dict(result.held_out[-1:]).get(result.step),
            "state": str(result.state),
            "exports": {form: str(path) for form, path in outcome.exports.items()},
        }
        console.result("\n".join(str(path) for path in outcome.exports.values()) or config.out, data)


@contextmanager
def _stopping(console: Console) -> Iterator[Stop]:
    """Turn the first interruption of the steps into a request to stop; any other ends the process at once."""
    from kiwi_cli.train.loop import Stop

    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the main thread's
        return

    def handle(number: int, frame: Any) -> None:
        if stop.requested or not stop.running:
            raise KeyboardInterrupt
        stop.request()
        console.note("finishing this step, then saving the state; interrupt again to end at once")

    before = {number: signal.signal(number, handle) for number in endings()}
    try:
        yield stop
    except KeyboardInterrupt:
        raise KiwiError(
            "interrupted; the last saved state, if there is one, is whole",
            "the same command with --resume goes on from there",
            EXIT_INTERRUPTED,
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
