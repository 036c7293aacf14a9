"""The command line: a module for each command (commands.py), and one error boundary here.

Commands check their arguments before they import anything heavy, do their work through `kiwi_cli`'s library
modules, raise `KiwiError` and return nothing. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Sequence

import typer

from kiwi_cli.cli import options as _options
from kiwi_cli.cli.commands import registered
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.endings import Ending, check_folder, of_a_path, out_of_memory
from kiwi_cli.cli.usage import words
from kiwi_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, KiwiError


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


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and turn whatever ends it into an exit code: the only place that catches everything."""
    console = Console()
    if threading.current_thread() is threading.main_thread():
        Ending().install()
    _quiet_libraries()
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        check_folder(given)
        app = registered(given[0] if given else None)
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
        if error.format_message():
            console.error(*words(error, given))
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
        if (said := out_of_memory(error, given[0] if given else "")) is not None:
            console.error(*said)
            return EXIT_FAILED
        if (refused := of_a_path(error)) is not None:
            console.error(refused.message, refused.hint)
            return refused.exit_code
        console.error(
            f"unexpected {type(error).__name__}: {error}",
            "this is a fault in kiwi; run again with KIWI_DEBUG=1 for the details to report",
        )
        return EXIT_FAILED
