"""Torch's threads leave the cores to others soon, as the library that they belong to has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from kiwi_cli.__main__ import SPINS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torch has libgomp on Linux only")


@pytest.mark.parametrize(
    ("asked", "rounds"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "passive"}, 0)],
    ids=["kiwi's", "a person's own", "a person's policy"],
)
def test_threads_that_wait_sleep_soon(asked: dict[str, str], rounds: int) -> None:
    """Two edits at once took four times as long as one after the other, when each thread waited in a loop."""
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-m", "kiwi_cli", "doctor"]
    environment = own | {"OMP_DISPLAY_ENV": "verbose"} | asked
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [str(rounds)]
