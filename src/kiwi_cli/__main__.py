"""`python -m kiwi_cli` and the `kiwi` command."""

from __future__ import annotations

import sys


def main() -> None:
    from kiwi_cli.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
