"""`kiwi data`: the group. Its commands are in data_synth.py and data_cache.py."""

from __future__ import annotations

import typer

from kiwi_cli.cli import app, data_cache, data_synth

data = typer.Typer(help="Make clips to train on, and prepare people's own.", no_args_is_help=True)
app.add_typer(data, name="data")
data.command("synth")(data_synth.synth)
data.command("cache")(data_cache.cache)
