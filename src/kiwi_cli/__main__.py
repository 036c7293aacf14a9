"""`python -m kiwi_cli` and the `kiwi` command."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

SPINS = 6000
"""Rounds of a loop in which torch's threads (libgomp's) wait for the next operation before they sleep. By itself it
waits for 300,000, some milliseconds, in which it keeps a core from everybody else's threads and often from its own."""


def _early(number: int, frame: Any) -> None:
    """An interruption while the first modules are read: nothing has begun that would have to be cleaned up."""
    os.write(2, b"error: interrupted; nothing was written\n")
    os._exit(130)


def main() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _early)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # read once, when torch comes
    from kiwi_cli.cli import run

    code = run()
    if code == 130:  # a second interruption must not cut the end short
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
