"""How a command ends: signals at any moment, closed and full streams, other encodings, memory used up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.editing import fitting

from .. import fakes
from ..conftest import CHECKPOINT
from .terminal import CLIP, FAST, inside

LINUX = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
COMMAND = [sys.executable, "-m", "kiwi_cli"]
RESULT = ["download", "--list"]  # a command that only reports


def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """A process that hears SIGINT, also where these tests run in the background of a shell that ignores it."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    )


def edit_at_work(out: Path) -> subprocess.Popen[str]:
    """An edit whose output is open: the model is at work."""
    process = start("edit", CLIP, "x", *FAST, "--steps", 10000, "-o", out)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("encode the clip"):
            break
    return process


@pytest.mark.parametrize(
    "how",
    [
        [signal.SIGINT] * 2,
        [signal.SIGHUP],
        [signal.SIGTERM, signal.SIGHUP],
    ],
    ids=str,
)
@pytest.mark.slow
def test_an_edit_that_is_told_to_end_leaves_nothing(how: list[signal.Signals], tmp_path: Path) -> None:
    process = edit_at_work(tmp_path / "out.mp4")
    for number in how:
        process.send_signal(number)
        time.sleep(0.02)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "") and "interrupted" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay", [0.05, 0.12, 0.2, 0.3, 0.5])
def test_an_interruption_while_modules_are_read_shows_no_traceback(delay: float) -> None:
    process = start("doctor")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    # Before __main__ has begun, Python's own handler is what hears it.
    assert process.returncode == 130 or "kiwi_cli/cli" not in err
    if process.returncode == 130:
        assert "interrupted" in err and "Traceback" not in err


@LINUX
def test_a_full_stdout_says_what_the_report_was() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, *RESULT], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "the work is done" in done.stderr and "No space left" in done.stderr
    assert "instruct-reference" in done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("closed", ["1", "2"], ids=["stdout", "stderr"])
def test_a_closed_stream_is_no_failure(closed: str) -> None:
    line = f'exec "$@" {closed}>&-'
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *COMMAND, *RESULT, "-v"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert ("instruct-reference" in done.stdout) == (closed == "2")


SNOW = "make it snowy \N{SNOWFLAKE}"


@pytest.mark.parametrize("encoding", ["cp1252", *(name for name in ("ascii", "latin-1"))])
@pytest.mark.slow
def test_other_encodings(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    output = tmp_path / "out \N{SNOWFLAKE}.png"
    picture = CLIP.parent / "reference.png"
    command = [*COMMAND, "edit", str(picture), SNOW, *FAST, "-o", str(output), "--overwrite"]
    plain = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert plain.returncode == 0 and output.is_file(), plain.stderr
    assert plain.stdout.strip() == str(output).encode(encoding, "backslashreplace")
    done = subprocess.run([*command, "--json"], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout.decode("utf-8"))  # JSON is UTF-8 whatever the locale
    assert data["output"] == str(output) and data["settings"]["instruction"] == SNOW


@pytest.mark.parametrize("where", ["instruction", "input", "output", "reference"])
def test_bytes_that_are_no_text_are_refused_at_once(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = os.fsdecode(b"caf\xe9")
    given = {"instruction": "make it snowy", "input": str(CLIP), "output": str(tmp_path / "out.mp4"), "reference": ""}
    if where == "input":
        (tmp_path / f"{bad}.mp4").write_bytes(CLIP.read_bytes())
    if where == "reference":
        (tmp_path / f"{bad}.png").write_bytes((CLIP.parent / "reference.png").read_bytes())
    names = {"instruction": bad, "input": f"{bad}.mp4", "output": f"{bad}.mp4", "reference": f"{bad}.png"}
    given[where] = names[where] if where == "instruction" else str(tmp_path / names[where])
    command = ["ref-edit" if where == "reference" else "edit", given["input"], given["instruction"], *FAST]
    command += ["--ref", given["reference"]] if where == "reference" else []
    code, out, err = inside(capsys, *command, "-o", given["output"], "--dry-run")
    assert (code, out) == (2, "") and "not UTF-8" in err and "caf\\xe9" in err and "codec" not in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=["Python", "torch", "the system"],
)
def test_memory_used_up_names_what_helps(error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fakes.commands_use(fakes.FailingEditor(error)):
        code, out, err = inside(capsys, "edit", CLIP, "x", *FAST, "-o", tmp_path / "out.mp4")
    assert (code, out) == (1, "") and "memory is used up" in err and "--size" in err and "fault in kiwi" not in err
    assert list(tmp_path.iterdir()) == []


def test_frames_that_no_memory_holds_are_refused_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "memory", lambda: (10**9, 10**9))
    huge = ("edit", CLIP, "x", "--model", CHECKPOINT, "--size", "4096x4096", "-o", tmp_path / "out.mp4")
    code, out, err = inside(capsys, *huge, "--dry-run")
    assert (code, out) == (1, "") and "48 frames of 4096x4096 take 2.4 GB of memory" in err and "--size" in err
    assert inside(capsys, *huge, "--dry-run", "--frames", 4)[0] == 0


def test_compiling_without_a_compiler_is_refused_in_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    code, out, err = inside(capsys, "edit", CLIP, "x", *FAST, "--compile", "--dry-run")
    assert (code, out) == (1, "") and "--compile needs a C++ compiler" in err and "g++" in err


@pytest.mark.parametrize(
    ("command", "code"), [(("doctor",), 1), (("edit", CLIP, "x", *FAST), 1)], ids=["doctor", "edit"]
)
def test_a_folder_that_was_deleted_is_called_so(command: tuple[Any, ...], code: int, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = 'cd "$1"; rmdir "$1"; shift; exec "$@"'
    words = ["/bin/sh", "-c", line, "sh", str(gone), *COMMAND, *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    said = done.stdout + done.stderr
    assert done.returncode == code and "unexpected" not in said and "Traceback" not in said
    assert command[0] == "edit" or "was deleted" in said
