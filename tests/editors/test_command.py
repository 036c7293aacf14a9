"""`--editor command:...`: a program gets a clip as a file and gives one back; whatever else it may do is an error."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base.events import SILENT
from kiwi_cli.editors import programs
from kiwi_cli.editors.base import Denoising, Edited, Origin
from kiwi_cli.editors.command import KIND, arguments_of, filled
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError

from ..conftest import random_frames

COPY = "open(a[1], 'wb').write(open(a[0], 'rb').read())"
ORIGIN = Origin(Path("clip.mp4"), Path("out.mp4"), Fraction(8))


def program(folder: Path, text: str) -> str:
    """The command line of a program that is written here; `a` are its arguments."""
    path = folder / "edit.py"
    path.write_text(f"import os, sys, time\na = sys.argv[1:]\n{text}\n")
    return f"{sys.executable} -S {path}"


def edit(line: str, frames: np.ndarray | None = None, text: str = "go", references: Any = (), **more: Any) -> Edited:
    choice = ModelChoice(editor=f"command:{line}", **more)
    editor = KIND.load(KIND.find(choice), choice, SILENT)
    frames = random_frames(5) if frames is None else frames
    return editor.edit(frames, text, references, denoising=Denoising(1, seed=7), origin=ORIGIN)


def test_a_program_that_copies_its_input() -> None:
    frames = random_frames(5)
    done = edit("cp {input} {output}", frames)
    found = np.concatenate(list(done.frames))
    assert found.shape == frames.shape and np.abs(found.astype(int) - frames).mean() < 4
    assert done.changes == () and done.dollars is None and done.approximations == ()


def test_the_instruction_is_one_argument_whatever_is_in_it(tmp_path: Path) -> None:
    """No shell reads it, and what looks like a place in it stays what it is."""
    said = tmp_path / "said.txt"
    line = program(
        tmp_path, f"open({str(said)!r}, 'w').write('\\0'.join(a[2:])); open(a[1], 'wb').write(open(a[0], 'rb').read())"
    )
    text = "make {output} \"it\" $(touch pwned); 'snowy' `id` {seed} \\ ü"
    edit(line + " {input} {output} --text={text} {text} {seed}", text=text)
    assert said.read_text().split("\0") == [f"--text={text}", text, "7"]


def test_references_are_given_with_their_option() -> None:
    words = ["p", "--in", "{input}", "--ref", "{reference}", "--one={reference}", "{reference}", "{output}"]
    values = {"input": "i", "output": "o"}
    assert filled(words, values, []) == ["p", "--in", "i", "o"]
    assert filled(words, values, ["a", "b"]) == [
        *("p", "--in", "i", "--ref", "a", "--ref", "b", "--one=a", "--one=b", "a", "b", "o")
    ]


def test_references_arrive_as_files(tmp_path: Path) -> None:
    line = program(
        tmp_path, "open(a[1], 'wb').write(open(a[0], 'rb').read()); assert open(a[3], 'rb').read(4) == b'\\x89PNG'"
    )
    picture = Image.new("RGB", (8, 8), "red")
    edit(line + " {input} {output} --ref {reference}", references=[picture])


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    frames = random_frames(1)
    assert np.array_equal(np.concatenate(list(edit("cp {input} {output}", frames).frames)), frames)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "ended well but wrote nothing at {output}"),
        (
            "print('first'); print('no \\x1b[31mGPU\\x1b[0m here', file=sys.stderr); sys.exit(3)",
            "failed with 3: no GPU here",
        ),
        ("sys.exit(3)", "failed with 3: it printed nothing"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("open(a[1], 'w').write('not a clip')", "gave no clip that can be read"),
        ("os.mkdir(a[1])", "gave no clip that can be read"),
    ],
)
def test_a_program_that_fails_says_why(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(KiwiError) as error:
        edit(program(tmp_path, text) + " {input} {output}")
    assert words in error.value.message and error.value.hint


def test_another_length_is_an_error(tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    from kiwi_cli.video import Size
    from kiwi_cli.video.plain import write_mp4

    write_mp4(other, [random_frames(30)], Fraction(8), Size(64, 64), "20")
    with pytest.raises(KiwiError, match=r"gave 30 frames \(3\.75 s\) for a clip of 5 \(0\.62 s\)"):
        edit(f"sh -c 'cp {other} \"$0\"' {{output}} {{input}}")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_a_program_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    late = 1e6  # seconds: its time is up as soon as it waits
    monkeypatch.setattr(programs, "monotonic", lambda: time.monotonic() + (late if pids.exists() else 0))
    line = program(
        tmp_path,
        f"import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pids) + '.part'!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids) + '.part'!r}, {str(pids)!r})\nprint('waiting', flush=True)\ntime.sleep(1000)",
    )
    with pytest.raises(KiwiError, match=r"was not done after .* and was ended: waiting") as error:
        edit(line + " {input} {output}", editor_timeout=1000.0)
    assert "--editor-timeout" in error.value.hint
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_what_a_program_prints_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MOST_SAID", 1 << 20)
    with pytest.raises(KiwiError, match=r"printed more than 1\.0 MB and was ended"):
        edit(program(tmp_path, "while True: print('x' * 60000, flush=True)") + " {input} {output}")


def test_a_result_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiwi_cli.editors.command.SPARE", 1 << 20)
    line = program(tmp_path, "f = open(a[1], 'wb')\nwhile True: f.write(bytes(60000)); time.sleep(0.001)")
    with pytest.raises(KiwiError, match=r"wrote more than 1\.2 MB for one clip"):
        edit(line + " {input} {output}")
    quick = program(tmp_path, "open(a[1], 'wb').write(bytes(3 << 20))")  # done before anybody looks
    with pytest.raises(KiwiError, match="wrote more than"):
        edit(quick + " {input} {output}")


def test_an_interruption_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    line = program(tmp_path, f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)")
    real = programs._check_size

    def interrupt(*arguments: Any) -> None:
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(programs, "_check_size", interrupt)
    with pytest.raises(KeyboardInterrupt):
        edit(line + " {input} {output}")
    assert gone(int(pid.read_text()))


KILLED = """
import sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from kiwi_cli.base.events import SILENT
from kiwi_cli.editors.base import Denoising, Origin
from kiwi_cli.editors.command import KIND
from kiwi_cli.engine.choice import ModelChoice
choice = ModelChoice(editor="command:" + sys.argv[1])
editor = KIND.load(KIND.find(choice), choice, SILENT)
origin = Origin(Path("clip.mp4"), Path("out.mp4"), Fraction(8))
editor.edit(np.zeros((5, 64, 64, 3), np.uint8), "go", denoising=Denoising(1, seed=7), origin=origin)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGKILL nor flock")
def test_a_killed_run_takes_its_program_along_and_its_folder_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, pids = tmp_path / "temporary", tmp_path / "pids"
    temporary.mkdir()
    (temporary / "somebodys").mkdir()
    line = program(
        tmp_path,
        "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(pids) + '.part'!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(pids) + '.part'!r}, {str(pids)!r})\ntime.sleep(1000)",
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    run = subprocess.Popen([sys.executable, "-c", KILLED, line + " {input} {output}"], env=environment)
    while not pids.exists():
        assert run.poll() is None
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert all(gone(int(pid)) for pid in pids.read_text().split())
    left = {path.name for path in temporary.iterdir()} - {"somebodys"}
    assert len(left) == 1 and "kiwi-partial" in left.pop()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    edit("cp {input} {output}")
    assert [path.name for path in temporary.iterdir()] == ["somebodys"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no place {input}"),
        ("cp {input}", "no place {output}"),
        ("cp {input} {output} {mask}", "unknown place: '{mask}'"),
        ("cp '{input} {output}", "No closing quotation"),
        ("{input} {output}", "begins with a place"),
        ("there-is-no-such-program {input} {output}", "no such program: 'there-is-no-such-program'"),
    ],
)
def test_a_command_that_cannot_be_meant(line: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        KIND.find(ModelChoice(editor=f"command:{line}"))
    assert words in error.value.message and error.value.hint


def test_braces_that_are_no_places_stay(tmp_path: Path) -> None:
    assert arguments_of(ModelChoice(editor="command:p {input} {output} '{\"a\": 1}'"))[-1] == '{"a": 1}'


def test_what_tells_a_commands_results_from_others(tmp_path: Path) -> None:
    """Its arguments, the program that is named by its path, and what the files and folders among the arguments hold."""
    weights, code = tmp_path / "w.pth", tmp_path / "code"
    weights.write_bytes(bytes(5 << 20))
    (code / "sub").mkdir(parents=True)
    (code / "sub" / "model.py").write_text("1")
    (code / ".git").mkdir()

    def fingerprint(more: str = "") -> str:
        choice = ModelChoice(editor=f"command:cp {{input}} {{output}} --ckpt={weights} {code} {more}".strip())
        return KIND.identify(KIND.find(choice), choice)

    first = fingerprint()
    (code / ".git" / "HEAD").write_text("x")
    assert fingerprint() == first != fingerprint("--steps 5")
    changed = bytearray(5 << 20)
    changed[2_000_000] = 1  # one byte in the middle
    weights.write_bytes(changed)
    second = fingerprint()
    assert second != first
    (code / "sub" / "model.py").write_text("2")
    assert fingerprint() not in (first, second)
