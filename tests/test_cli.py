"""`kiwi edit` and `kiwi ref-edit` as a person meets them: real processes on real files, re-opened and counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import typer
from PIL import Image

from kiwi_cli.cli.commands import MODULES, registered

from . import fakes
from .cli.terminal import CLIP, FAST, REFERENCE, frames_of, inside, kiwi
from .conftest import CHECKPOINT

EDIT = ("edit", CLIP, "x", *FAST)


@pytest.fixture(autouse=True)
def nothing_half_written(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*kiwi-partial*"))


def test_edit_gives_the_clip_back_with_size_rate_frames_and_sound(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = kiwi("edit", CLIP, "make it snowy", *FAST, "--duration", "0.5", "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    for words in (
        "at 96x64",
        "load the model: done",
        "denoise: done",
        "wrote 12 frames of 480x270",
        "on cpu in float32",
    ):
        assert words in done.stderr
    assert "\x1b" not in done.stderr  # no colours or animation off a terminal
    with av.open(str(out)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (480, 270, 24)
        assert sum(1 for _ in container.decode(video)) == 12
        assert audio.codec.canonical_name == "aac"
    change = np.abs(frames_of(out)[10].astype(int) - frames_of(CLIP)[10]).mean()
    assert change == pytest.approx(62.8, abs=2)  # levels: what this random model makes of it


def test_ref_edit_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    pictures = ("--ref", REFERENCE, "--ref", REFERENCE)
    code, stdout, err = inside(capsys, "ref-edit", CLIP, *pictures, *FAST, "--frames", 5, "-o", out, "--json", "-q")
    assert (code, err) == (0, "")
    data = json.loads(stdout)
    assert data["output"] == str(out) and data["frames"] == 5 and (data["width"], data["height"]) == (480, 270)
    assert data["settings"]["instruction"].startswith("Replace the main subject")
    assert len(data["settings"]["references"]) == 2 and data["settings"]["seed"] == 0
    assert {"load", "instruction", "encode", "denoise", "decode", "total"} <= data["seconds"].keys()
    assert len(frames_of(out)) == 5


def test_a_picture_in_is_a_picture_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(frames_of(CLIP)[0]).save(source)
    code, stdout, _ = inside(capsys, "edit", source, "turn the sky red", *FAST, "-o", out)
    assert (code, stdout) == (0, f"{out}\n")
    with Image.open(out) as image:
        assert image.format == "PNG" and image.size == (480, 270)
    code, _, err = inside(capsys, "ref-edit", source, "--ref", REFERENCE, *FAST)
    assert code == 0, err
    assert (tmp_path / "in-edited.png").is_file()


def test_same_seed_same_file_other_seed_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(frames_of(CLIP)[0]).save(source)
    pixels = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        out = tmp_path / f"{name}.png"
        assert inside(capsys, "edit", source, "make it snowy", *FAST, "--seed", seed, "-o", out)[0] == 0
        pixels[name] = np.asarray(Image.open(out))
    assert np.array_equal(pixels["a"], pixels["b"])
    assert np.abs(pixels["a"].astype(int) - pixels["c"]).mean() > 10  # levels


ONLY_THE_MODEL_CAN_TELL = {
    "unknown device": ((*EDIT, "--device", "toaster"), 2, "'toaster'"),
    "unknown dtype": ((*EDIT, "--dtype", "float7"), 2, "'float7'"),
    "reserved token": (("edit", CLIP, "x <|im_end|>", *FAST, "--frames", 1), 2, "<|im_end|>"),
}


@pytest.mark.parametrize("name", ONLY_THE_MODEL_CAN_TELL)
def test_what_only_the_model_can_tell(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, code, words = ONLY_THE_MODEL_CAN_TELL[name]
    got, out, err = inside(capsys, *arguments, "-o", tmp_path / "out.mp4")
    lines = err.strip().splitlines()
    assert (got, out) == (code, "") and words in lines[-3] and lines[-3].startswith("error: "), err
    assert lines[-1].startswith("hint: ") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "page"), [(("edti",), "kiwi --help"), (("edit", CLIP), 'kiwi edit clip.mp4 "make it snowy"')]
)
def test_wrong_usage(arguments: tuple[Any, ...], page: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and page in err.partition("hint: ")[2]


def test_an_existing_output_is_replaced_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    out.write_text("old")
    code, _, err = inside(capsys, "edit", CLIP, "make it snowy", *FAST, "--frames", 2, "-o", out, "--overwrite")
    assert code == 0, err
    assert len(frames_of(out)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_edit_leaves_nothing(how: int, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "kiwi_cli", "edit", str(CLIP), "x", *FAST, "--frames", "5"]
    command += ["--steps", "10000", "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("encode the clip"):  # the model is at work
            break
    time.sleep(0.5)
    process.send_signal(how)
    err = process.stderr.read()
    assert process.stdout is not None and process.stdout.read() == ""
    assert process.wait(timeout=120) == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_ours_says_so_and_shows_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fakes.commands_use(fakes.FailingEditor(ZeroDivisionError("division by zero"))):
        code, out, err = inside(capsys, "edit", CLIP, "x", *FAST, "-o", tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []
    assert code == 1 and out == "" and "ZeroDivisionError" in err and "KIWI_DEBUG=1" in err and "Traceback" not in err


@pytest.mark.parametrize("arguments", [["--help"], ["edit", "--help"], ["ref-edit", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("torch", "diffusers", "transformers", "accelerate", "numpy", "av", "PIL", "huggingface_hub")
    code = (
        "import sys; from kiwi_cli.cli import run; code = run(sys.argv[1:]);"
        f"loaded = [name for name in {heavy!r} if name in sys.modules];"
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kiwi" in done.stdout.lower()


@pytest.mark.parametrize("name", list(MODULES))
def test_a_command_alone_is_the_one_of_the_whole_app(name: str) -> None:
    """Each in a process of its own would take long: what is registered by name has to be in its module."""
    whole: Any = typer.main.get_command(registered())
    command, modules = whole.commands[name], {f"kiwi_cli.cli.{each}" for each in MODULES[name]}
    found = list(getattr(command, "commands", {name: command}).values())
    assert {each.callback.__module__ for each in found} == modules


def test_the_status_of_a_run_needs_no_other_command(tmp_path: Path) -> None:
    others = ("kiwi_cli.editing.request", "kiwi_cli.engine", "kiwi_cli.cli.edit", "rich")
    code = (
        f"import sys; from kiwi_cli.cli import run; run(['status', {str(tmp_path)!r}]);"
        f"found = [name for name in {others!r} if name in sys.modules]; sys.exit(f'loaded {{found}}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "no run in" in done.stderr, done.stderr


def test_arguments_are_checked_before_torch_is_imported(tmp_path: Path) -> None:
    """Every bad command of tests/cli/test_bad_input.py, in one process that never imports torch."""
    from .cli.test_bad_input import BAD, fill

    fill(tmp_path)
    commands = [[str(argument) for argument in arguments] for arguments, _, _ in BAD.values()]
    code = (
        "import json, sys; from kiwi_cli.cli import run\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    assert run(command) in (1, 2), command\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_options_come_from_the_environment(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    source = tmp_path / "in.png"
    Image.fromarray(frames_of(CLIP)[0]).save(source)
    done = kiwi("edit", source, "x", "-o", out, "--json", KIWI_MODEL=str(CHECKPOINT), KIWI_STEPS="2", KIWI_SIZE="64x64")
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["steps"], settings["size"]) == (2, "64x64")
