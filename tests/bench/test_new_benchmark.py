"""To add a benchmark is to add its row: the command, its data, its items, and a judge's questions come from that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kiwi_cli.bench.suites.items import BENCHMARKS, Benchmark

from ..cli.terminal import FAST
from ..conftest import ROOT
from ..video.media import make_clip

ROW = """
from kiwi_cli.bench.suites.items import BENCHMARKS, Benchmark
BENCHMARKS["mine"] = Benchmark(
    name="mine",
    title="My-Bench",
    about="two edits of my own",
    repo="someone/My-Bench",
    table="items.csv",
    form="csv",
    columns={"type": "kind", "instruction": "words", "source": "clip"},
    patterns=("items.csv", "clips/*"),
    licence="mine",
    categories=("weather", "light"),
    headline=(),
    kind="video",
    model="instruct-reference",
    folders=("", "clips"),
)
from kiwi_cli.cli import run
import sys
sys.exit(run(sys.argv[1:]))
"""


def kiwi(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that knows one benchmark more."""
    command = [sys.executable, "-W", "ignore", "-c", ROW, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
def test_a_new_benchmark_is_its_row(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "clips").mkdir(parents=True)
    for name in ("one", "two"):
        make_clip(data / "clips" / f"{name}.mp4", frames=5)
    (data / "items.csv").write_text("kind,words,clip\nweather,make it snowy,one.mp4\nlight,make it night,two.mp4\n")
    assert "My-Bench: two edits of my own." in kiwi("bench", "mine", "--help").stdout
    planned = kiwi("bench", "mine", "--data", data, "--out", tmp_path / "run", "--dry-run", *FAST)
    assert planned.returncode == 0, planned.stderr
    made = kiwi("bench", "mine", "--stage", "edit", "--data", data, "--out", tmp_path / "run", *FAST, "--device", "cpu")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "run").rglob("*.mp4"))) == 2
    assert "mine" not in BENCHMARKS and isinstance(next(iter(BENCHMARKS.values())), Benchmark)
