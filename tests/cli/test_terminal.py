"""A real terminal: bars, colours, Ctrl-C; and how soon the first word comes."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

from kiwi_cli.console import format_bytes, format_seconds

from ..conftest import ROOT
from .terminal import CLIP, FAST

WIDTH = 80


def at_a_terminal(arguments: list[str], until: str = "", keys: bytes = b"", **environment: str) -> tuple[int, str]:
    """(exit code, everything the terminal showed); `keys` are typed when `until` has been seen."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cli.with_identity", *arguments],
        cwd=ROOT,
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
        env={**os.environ, "COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color", **environment},
    )
    os.close(child)
    shown, typed, end = b"", not keys, time.monotonic() + 100
    while time.monotonic() < end:
        if select.select([parent], [], [], 0.1)[0]:
            try:
                data = os.read(parent, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        if not typed and until in shown.decode("utf-8", "replace"):
            typed = True
            # The terminal's driver would turn Ctrl-C into this for the foreground group.
            os.killpg(process.pid, 2) if keys == b"\x03" else os.write(parent, keys)
    os.close(parent)
    return process.wait(timeout=30), shown.decode("utf-8", "replace")


def test_bars_fit_the_width_and_the_result_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    code, shown = at_a_terminal(["edit", str(CLIP), "x", *FAST, "--frames", "9", "-o", str(out)])
    assert code == 0 and out.is_file(), shown
    assert "\x1b[" in shown and "denoise" in shown and "encode the clip" in shown
    lines = re.split(r"[\r\n]+|\x1b\[\d*[AK]", shown)  # also where the cursor goes up, or a line is cleared
    bars = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in lines if "━" in line]
    assert bars and max(map(len, bars)) <= WIDTH


def test_no_color_means_none(tmp_path: Path) -> None:
    code, shown = at_a_terminal(
        ["edit", str(CLIP), "x", *FAST, "--frames", "1", "-o", str(tmp_path / "out.png")], NO_COLOR="1"
    )
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    arguments = ["edit", str(CLIP), "x", *FAST, "-o", str(tmp_path / "out.mp4")]
    code, shown = at_a_terminal(arguments, until="denoise", keys=b"\x03", KIWI_TEST_STEPS="100000")
    assert code == 130 and "interrupted; nothing was written" in shown and "Traceback" not in shown
    assert "\x1b[?25h" in shown  # the cursor is back
    assert list(tmp_path.iterdir()) == []


def test_the_first_word_comes_soon(tmp_path: Path) -> None:
    """Bounded loosely here; docs/clips.md has the measured figure."""
    command = [sys.executable, "-m", "kiwi_cli", "edit", str(CLIP), "x", *FAST, "-o", str(tmp_path / "out.mp4")]
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stderr is not None and process.stderr.readline()
        times.append(time.perf_counter() - begin)
        process.kill()
        process.communicate()
    assert min(times) < 1.5


def test_seconds_and_bytes_in_words() -> None:
    assert [format_seconds(s) for s in (0.44, 12, 185, 7800)] == ["0.4 s", "12 s", "3 min 05 s", "2 h 10 min"]
    assert [format_bytes(n) for n in (812, 3_100_000, 19.4e9, 2.5e12)] == ["812 B", "3.1 MB", "19.4 GB", "2500.0 GB"]
