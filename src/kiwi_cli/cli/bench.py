"""`kiwi bench`: the group. Its commands are in bench_speed.py, bench_runs.py and bench_report.py."""

from __future__ import annotations

import typer

from kiwi_cli.cli import app

bench = typer.Typer(help="Measure speed, and quality on the published benchmarks.", no_args_is_help=True)
app.add_typer(bench, name="bench")

from kiwi_cli.cli import bench_report as _report  # noqa: E402  (each registers its commands on `bench`)
from kiwi_cli.cli import bench_runs as _runs  # noqa: E402
from kiwi_cli.cli import bench_speed as _speed  # noqa: E402

COMMAND_MODULES = (_speed, _runs, _report)
