"""The command line: a module for each command, and one error boundary here.

Commands check their arguments before they import anything heavy, do their work through `kiwi_cli`'s library
modules, raise `KiwiError` and return nothing. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from kiwi_cli import __version__
from kiwi_cli.console import Console
from kiwi_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, KiwiError

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


from kiwi_cli.cli import bench as _bench  # noqa: E402  (each registers its commands on `app`)
from kiwi_cli.cli import convert as _convert  # noqa: E402
from kiwi_cli.cli import data as _data  # noqa: E402
from kiwi_cli.cli import doctor as _doctor  # noqa: E402
from kiwi_cli.cli import download as _download  # noqa: E402
from kiwi_cli.cli import edit as _edit  # noqa: E402
from kiwi_cli.cli import options as _options  # noqa: E402
from kiwi_cli.cli import show as _show  # noqa: E402
from kiwi_cli.cli import train as _train  # noqa: E402

app.command("train")(_train.train)

COMMAND_MODULES = (_edit, _show, _doctor, _download, _convert, _bench, _data, _train)
ORDER = ("edit", "ref-edit", "show", "rerun", "doctor", "download", "convert", "train")  # in the help page
app.registered_commands.sort(key=lambda command: ORDER.index(command.name or getattr(command.callback, "__name__", "")))


def _quiet_libraries() -> None:
    """The libraries' progress bars, advice and warnings are not ours to pass on; KIWI_DEBUG=1 lets them through."""
    if os.environ.get("KIWI_DEBUG") == "1":
        return
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_LOGS", "-all")  # torch sets its loggers' levels by this when it is imported
    warnings.simplefilter("ignore")
    for name in ("torch.utils._pytree", "torchao"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _terminate(number: int, frame: Any) -> None:
    """A polite kill is an interruption: `with` blocks clean up."""
    raise KeyboardInterrupt


def _words(error: typer.TyperException, given: list[str]) -> str:
    """A wrong argument in the house's words: lower case, with the value that cannot be meant."""
    message = error.format_message()
    names: Any = getattr(getattr(error, "param", None), "opts", ())
    values = [after for name, after in itertools.pairwise(given) if name in names and after not in message]
    for word, kind in (("integer", "a whole number"), ("number", "a number")):
        if values and message.startswith("Invalid value") and word in message:
            return f"{names[-1]} takes {kind}, not '{values[-1]}'"
    return message[:1].lower() + message[1:]


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and turn whatever ends it into an exit code: the only place that catches everything."""
    console = Console()
    signal.signal(signal.SIGTERM, _terminate)
    _quiet_libraries()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(args=_options.expand(given), standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # Typer turns Ctrl-C into this code without a word
            raise KeyboardInterrupt
        return code if isinstance(code, int) else EXIT_OK
    except KiwiError as error:
        if os.environ.get("KIWI_DEBUG") == "1":
            raise
        console.error(error.message, error.hint)
        return error.exit_code
    except typer.TyperException as error:
        message = _words(error, given)
        if message:
            console.error(message, "kiwi --help lists the commands and their options")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.error("interrupted; nothing was written")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (the reader is gone: nothing may flush to it)
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get("KIWI_DEBUG") == "1":
            raise
        console.error(
            f"unexpected {type(error).__name__}: {error}",
            "this is a fault in kiwi; run again with KIWI_DEBUG=1 for the details to report",
        )
        return EXIT_FAILED
