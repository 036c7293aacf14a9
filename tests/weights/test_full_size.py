"""The full-size checkpoint, random: 19 GB on disk, opened and built within its largest part plus 2 GB."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT

FULL_SIZE = 19e9


def script(name: str, *arguments: str) -> dict[str, float]:
    """Run a script of `benchmarks/`; its last line is JSON."""
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layers", [1, None], ids=["one layer of each kind", "all"])
def test_peak_of_resident_memory(layers: int | None, tmp_path: Path) -> None:
    needed = 1.2 * FULL_SIZE if layers is None else 4e9
    if shutil.disk_usage(tmp_path).free < needed:
        pytest.skip("not enough room on this disk")
    out = tmp_path / "checkpoint"
    try:
        written = script("random_checkpoint.py", str(out), *([] if layers is None else ["--layers", str(layers)]))
        row = script("load_checkpoint.py", str(out))
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assert row["total_gb"] == pytest.approx(written["bytes"] / 1e9, rel=1e-3)
    if layers is None:
        assert row["total_gb"] == pytest.approx(18.99, abs=0.01)
    assert row["opened_peak_gb"] < 0.2
    assert row["built_peak_gb"] < row["largest_part_gb"] + 2.0
