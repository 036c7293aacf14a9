"""`python -m kiwi_cli.batch.process ORDER`: one worker of a run, started by local.py."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from kiwi_cli.batch.serve import Order, serve
from kiwi_cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, KiwiError


def _interrupted(number: int, frame: Any) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # a second one must not cut the cleaning short
    raise KeyboardInterrupt


def main(text: str) -> int:
    """The exit code of a worker.

    Args:
        text: JSON of `order`, and of `device`, `index` and `parent`, the process that started it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    said = json.loads(text)
    order, parent = Order(**said["order"]), said["parent"]
    try:
        serve(order, device=said["device"], index=said["index"], stop=lambda: os.getppid() != parent)
    except KiwiError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
