"""`kiwi doctor`: what this machine has, and whether `kiwi edit` would run on it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from kiwi_cli.base.text import aligned
from kiwi_cli.cli import options
from kiwi_cli.cli.console import Console
from kiwi_cli.cli.root import app
from kiwi_cli.errors import EXIT_FAILED

MARKS = {"ok": "ok", "warning": "!", "failed": "FAILED"}


@app.command()
def doctor(as_json: options.AsJson = False) -> None:
    """Check this machine: Python, torch, GPU, memory, disk, codecs and models.

    Ends with 1 when `kiwi edit` could not run here.

    Examples:

      kiwi doctor

      kiwi doctor --json
    """
    from kiwi_cli.editing import doctor as checks
    from kiwi_cli.weights.catalog import VARIANTS
    from kiwi_cli.weights.fetch import Access
    from kiwi_cli.weights.inventory import state

    access = Access()
    found = checks.examine({variant.name: state(variant, access) for variant in VARIANTS})
    width = max(len(check.name) for check in found) + 2
    rows = []
    for check in found:
        rows.append((f"{MARKS[check.state]:<8}{check.name}", check.text))
        rows += [("", check.hint)] if check.hint else []
    lines = [aligned(rows, 8 + width)]
    good = checks.usable(found)
    own = checks.runs_anyway(found)
    only = f", except with --model {own}" if own else ""
    lines.append("kiwi edit can run here" if good else f"kiwi edit cannot run here as it is{only}")
    data = {"usable": good, "runs_anyway": own, "checks": [asdict(check) for check in found]}
    Console(as_json=as_json).result("\n".join(lines), data)
    if not good:
        raise typer.Exit(EXIT_FAILED)
