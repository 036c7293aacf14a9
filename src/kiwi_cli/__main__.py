"""`python -m kiwi_cli` and the `kiwi` command."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def _early(number: int, frame: Any) -> None:
    """An interruption while the first modules are read: nothing has begun that would have to be cleaned up."""
    os.write(2, b"error: interrupted; nothing was written\n")
    os._exit(130)


def main() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _early)
    from kiwi_cli.cli import run

    code = run()
    if code == 130:  # a second interruption must not cut the end short
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
