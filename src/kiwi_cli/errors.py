"""Errors that are addressed to the person at the terminal.

Every failure somebody can cause, meet or mend is a KiwiError: what happened (with the offending value), and
one thing to do next. The command line prints it as `error: ...`, an empty line, `hint: ...` and exits with
`exit_code`; everything else that escapes is a bug of ours.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class KiwiError(Exception):
    """A failure of the job, in words for the person.

    Args:
        message: what happened, lower case, with the offending value in quotes.
        hint: one thing to do next; empty when there is none.
        exit_code: what the process ends with (1: the job failed; 2: wrong usage, and names of what is not there).
    """

    exit_code = EXIT_FAILED

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(KiwiError):
    """An invalid argument, found before anything is loaded. Exit code 2."""

    exit_code = EXIT_USAGE


class MediaError(KiwiError):
    """A video, picture or sound file that cannot be read or written."""


class CheckpointError(KiwiError):
    """Model files that are missing, broken, or not the model they say they are."""


class NoSuchModelError(CheckpointError):
    """A model, a LoRA or a file of weights by a name that nothing has, here or on the Hub. Exit code 2, as an input."""

    exit_code = EXIT_USAGE


class DeviceError(KiwiError):
    """A device that is not there, or too small for what was asked."""
