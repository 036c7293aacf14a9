"""`kiwi edit` and `kiwi ref-edit` as a person meets them: real processes on real files, re-opened and counted."""

from __future__ import annotations

import json
import os
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
from PIL import Image

from .conftest import CHECKPOINT, ROOT

CLIP, REFERENCE = ROOT / "examples/clip.mp4", ROOT / "examples/reference.png"
FAST = ("--model", str(CHECKPOINT), "--size", "96x64", "--steps", "1")


def kiwi(*arguments: Any, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kiwi_cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def inside(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """The same without a new process: (exit code, stdout, stderr)."""
    from kiwi_cli.cli import run

    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(autouse=True)
def nothing_half_written(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*kiwi-partial*"))


def test_edit_gives_the_clip_back_with_size_rate_frames_and_sound(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = kiwi("edit", CLIP, "make it snowy", *FAST, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    for words in (
        "at 96x64",
        "load the model: done",
        "denoise: done",
        "wrote 48 frames of 480x270",
        "on cpu in float32",
    ):
        assert words in done.stderr
    assert "\x1b" not in done.stderr  # no colours or animation off a terminal
    with av.open(str(out)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (480, 270, 24)
        assert sum(1 for _ in container.decode(video)) == 48
        assert audio.codec.canonical_name == "aac"
    assert np.abs(frames_of(out)[20].astype(int) - frames_of(CLIP)[20]).mean() > 5  # something was done


def test_ref_edit_and_json(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = kiwi(
        "ref-edit", CLIP, "--ref", REFERENCE, "--ref", REFERENCE, *FAST, "--frames", 5, "-o", out, "--json", "-q"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    data = json.loads(done.stdout)
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
    assert np.array_equal(pixels["a"], pixels["b"]) and not np.array_equal(pixels["a"], pixels["c"])


BAD: dict[str, tuple[tuple[Any, ...], int, str]] = {
    "no input": (("edit", "missing.mp4", "x", *FAST), 2, "missing.mp4"),
    "not a video": (("edit", "text.mp4", "x", *FAST), 1, "text.mp4"),
    "empty instruction": (("edit", CLIP, "  ", *FAST), 2, "instruction is empty"),
    "no steps": (("edit", CLIP, "x", *FAST, "--steps", 0), 2, "--steps must be at least 1, not 0"),
    "negative seed": (("edit", CLIP, "x", *FAST, "--seed", -4), 2, "-4"),
    "no frames": (("edit", CLIP, "x", *FAST, "--frames", 0), 2, "0"),
    "tiny size": (("edit", CLIP, "x", *FAST, "--size", "8x8"), 2, "8x8"),
    "size in words": (("edit", CLIP, "x", *FAST, "--size", "big"), 2, "'big'"),
    "unknown model": (("edit", CLIP, "x", "--model", "instruct-refrence"), 1, "'instruct-refrence'"),
    "no model here": (("edit", CLIP, "x", "--model", "."), 1, "model_index.json"),
    "no reference": (("ref-edit", CLIP, *FAST), 2, "no reference picture"),
    "missing reference": (("ref-edit", CLIP, "--ref", "cat.png", *FAST), 2, "reference image not found: 'cat.png'"),
    "broken reference": (("ref-edit", CLIP, "--ref", "text.mp4", *FAST), 1, "cannot read the reference image"),
    "unknown replace": (("ref-edit", CLIP, "--ref", REFERENCE, "--replace", "sky", *FAST), 2, "'sky'"),
    "unknown output": (("edit", CLIP, "x", *FAST, "-o", "out.xyz"), 2, "out.xyz"),
    "no such folder": (("edit", CLIP, "x", *FAST, "-o", "nowhere/out.mp4"), 2, "nowhere"),
    "output exists": (("edit", CLIP, "x", *FAST, "-o", "there.mp4"), 2, "there.mp4"),
    "unknown device": (("edit", CLIP, "x", *FAST, "--device", "toaster"), 2, "'toaster'"),
    "unknown dtype": (("edit", CLIP, "x", *FAST, "--dtype", "float7"), 2, "'float7'"),
    "unknown option": (("edit", CLIP, "x", "--guidance", 5), 2, "--guidance"),
    "unknown command": (("edti",), 2, "edti"),
    "no instruction": (("edit", CLIP), 2, "INSTRUCTION"),
    "reserved token": (("edit", CLIP, "x <|im_end|>", *FAST), 2, "<|im_end|>"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_an_error_for_a_person(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "there.mp4").write_text("somebody's")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    arguments, code, words = BAD[name]
    got, out, err = inside(capsys, *arguments)
    assert got == code, err
    lines = err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], err
    assert lines[-1].startswith("hint: ") and lines[-2] == ""
    assert "Traceback" not in err and out == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_an_existing_output_is_replaced_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    out.write_text("old")
    code, _, err = inside(capsys, "edit", CLIP, "make it snowy", *FAST, "--frames", 2, "-o", out, "--overwrite")
    assert code == 0, err
    assert len(frames_of(out)) == 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_edit_leaves_nothing(how: int, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    command = [sys.executable, "-m", "kiwi_cli", "edit", str(CLIP), "x", *FAST, "--steps", "100000", "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("encode the clip"):  # the model is at work
            break
    time.sleep(0.5)
    process.send_signal(how)
    err = process.stderr.read()
    assert process.stdout is not None and process.stdout.read() == ""
    assert process.wait(timeout=30) == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_ours_says_so_and_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kiwi_cli import job

    def broken(request: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(job, "plan", broken)
    code, out, err = inside(capsys, "edit", CLIP, "x", *FAST)
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


def test_arguments_are_checked_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    (tmp_path / "there.mp4").write_text("somebody's")
    code = (
        "import sys; from kiwi_cli.cli import run; code = run(sys.argv[1:]);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    for arguments, expected, words in BAD.values():
        if any(word in words for word in ("toaster", "float7", "im_end")):
            continue  # only the device and the tokenizer can tell
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "torch was imported" not in done.stderr and done.returncode == expected, done.stderr


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    source = tmp_path / "in.png"
    Image.fromarray(frames_of(CLIP)[0]).save(source)
    done = kiwi("edit", source, "x", "-o", out, "--json", KIWI_MODEL=str(CHECKPOINT), KIWI_STEPS="2", KIWI_SIZE="64x64")
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["steps"], settings["size"]) == (2, "64x64")
