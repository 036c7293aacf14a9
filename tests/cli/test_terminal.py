"""A real terminal: bars, colours, Ctrl-C; and how soon the first word comes."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kiwi_cli.base.events import WINDOWS, Stages
from kiwi_cli.base.text import count, format_bytes, format_seconds
from kiwi_cli.batch.jobs import Job, JobStore, job_id
from kiwi_cli.cli.batch_view import view
from kiwi_cli.cli.console import Console, WindowClock
from kiwi_cli.editing.session import STAGES

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
    return process.wait(timeout=120), shown.decode("utf-8", "replace")


def test_bars_fit_the_width_and_the_result_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    code, shown = at_a_terminal(["edit", str(CLIP), "x", *FAST, "--frames", "9", "-o", str(out)])
    assert code == 0 and out.is_file(), shown
    assert "\x1b[" in shown and "denoise" in shown and "encode the clip" in shown
    lines = re.split(r"[\r\n]+|\x1b\[\d*[AK]", shown)  # also where the cursor goes up, or a line is cleared
    bars = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in lines if "━" in line]
    assert bars and max(map(len, bars)) <= WIDTH


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_talk_is_wrapped_at_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    note = "the model was trained for no more than: black-and-white, sepia, night, snow, negative, reference-background"
    path = f"'/{'a-long-folder/' * 6}clip.mp4'"
    error = (
        f"2 edits cannot be used; nothing was begun\n  line 3: the file is cut off: {path}, 5 of 30 frames are there"
    )
    shown = {}
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "60")
        console = Console()
        console.warn(note)
        console.error(error, "mend them")
        shown[type(stream)] = stream.getvalue()
    assert shown[io.StringIO] == f"warning: {note}\nerror: {error}\n\nhint: mend them\n"
    lines = shown[Terminal].splitlines()
    assert all(len(line) <= 60 or line.strip() == f"{path}," for line in lines)
    assert " ".join(shown[Terminal].split()) == " ".join(shown[io.StringIO].split())
    listed = lines.index("  line 3: the file is cut off:")
    assert lines[listed + 1 : listed + 3] == [f"    {path},", "    5 of 30 frames are there"]


def report_windows(stages: Stages) -> None:
    """What a clip of three windows reports, with two steps in each."""
    stages("load", 1, 1)
    for window in range(3):
        stages(WINDOWS, window, 3)
        for stage in ("instruction", "denoise", "decode"):
            for step in range(2):
                stages(stage, 2 * window + step + 1, 6)
    stages(WINDOWS, 3, 3)


def test_windows_share_one_line_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    with Console().stages(STAGES) as stages:
        report_windows(stages)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue()).strip("\n").splitlines()[-2:]
    assert last[0].startswith("load the model") and last[1].startswith("3 windows")
    assert "denoise" not in shown.getvalue() and "read the instruction" not in shown.getvalue()
    assert set(stages.seconds) == {"load", "instruction", "denoise", "decode"}


def test_bars_give_way_to_the_words_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "54")
    with Console().stages({"decode": "decode and write"}) as stages:
        stages("decode", 1, 4000)
        time.sleep(0.3)
        stages("decode", 2000, 4000)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert lines and all(line.startswith("decode and write") for line in lines), lines
    assert re.search(r"2000/4000 \d.* left\s*$", lines[-1])


def test_windows_share_one_line_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().stages(STAGES) as stages:
        report_windows(stages)
    err = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in err] == ["load the model", "3 windows"]


def test_the_time_that_windows_have_left_is_that_of_all_of_them() -> None:
    times = iter([0.0, 0.0, 5.0, 14.0, 14.0, 20.0, 42.0])
    clock = WindowClock(lambda: next(times))
    clock.at(0, 3)
    assert (clock.name, clock.times()) == ("window 1/3", "5.0 s")
    clock.at(1, 3)
    assert (clock.name, clock.times()) == ("window 2/3", "14 s, 28 s left")
    assert clock.times() == "20 s, 22 s left"
    clock.at(3, 3)
    assert clock.over and (clock.name, clock.times()) == ("3 windows", "42 s")


def test_a_page_takes_the_place_of_the_last_one_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_terminal, kind, shown in ((False, "xterm", "\n"), (True, "dumb", "\n"), (True, "xterm", "\x1b[H\x1b[2J\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setenv("TERM", kind)
        Console().page()
        assert capsys.readouterr().out == shown
        Console(as_json=True).page()  # one object a line
        assert capsys.readouterr().out == ""


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


def test_a_watch_ends_with_ctrl_c_and_says_that_the_run_does_not(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.begin("edits")
    store.write_jobs([Job(job_id(name), name, output=name) for name in ("a.mp4", "b.mp4")])
    code, shown = at_a_terminal(["status", str(tmp_path), "--watch"], until="2 waiting", keys=b"\x03")
    assert code == 130 and "error: interrupted; 0 of 2 are done, and whoever works at the rest goes on" in shown
    assert "nothing was written" not in shown


def test_a_clips_name_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    with view(Console(), "clips") as told:
        told.settled(0, 0, 2)
        told.advanced(Job("1", "[/b].mp4"), "denoise", 1, 2)
    assert "[/b].mp4: denoise" in shown.getvalue()


def test_a_run_that_is_done_has_no_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiwi_cli.cli.batch_view.PLAIN_INTERVAL", 0)
    with view(Console(), "clips") as told:
        for done in range(3):
            told.settled(done, 0, 2)
    assert [" left" in line for line in capsys.readouterr().err.splitlines()] == [False, True, False]


def test_the_first_word_comes_before_the_libraries(tmp_path: Path) -> None:
    """They take seconds; docs/clips.md has the measured figure."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch is imported')")
    command = [sys.executable, "-m", "kiwi_cli", "edit", str(CLIP), "x", *FAST, "-o", str(tmp_path / "out.mp4")]
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    first, *rest = done.stderr.splitlines()
    assert first == f"reading '{CLIP}'" and rest[-1] == "torch is imported"


def test_one_thing_is_not_called_several() -> None:
    """Whatever is counted by its length is put in words by `count`, unless it is a share of something."""
    assert (count(1, "frame"), count(0, "frame"), count(81, "frame")) == ("1 frame", "0 frames", "81 frames")
    nouns = "files|frames|clips|threads|edits|rows|items"
    several = re.compile(rf"(?<!of )(?<!of the )\{{(?:len|sum)\([^}}]*\)\}} (?:{nouns})\b")
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "src/kiwi_cli").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if several.search(line) and "if picture else" not in line  # there are several frames, or a picture
    ]
    assert found == []


def test_seconds_and_bytes_in_words() -> None:
    assert [format_seconds(s) for s in (0.44, 12, 185, 7800)] == ["0.4 s", "12 s", "3 min 05 s", "2 h 10 min"]
    assert [format_bytes(n) for n in (812, 3_100_000, 19.4e9, 2.5e12)] == ["812 B", "3.1 MB", "19.4 GB", "2500.0 GB"]
