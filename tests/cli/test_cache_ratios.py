"""Step cache `mag` on the command line: its ratios are measured in an exact edit, kept in a file, and good for that
model alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base.identity import hash_file
from kiwi_cli.editing import cache_ratios
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import CheckpointError, KiwiError, UsageError

from .. import fakes
from ..conftest import CHECKPOINT, ROOT, make_model
from ..video.media import make_clip
from .terminal import inside

EDIT = (
    "edit",
    ROOT / "examples/reference.png",
    "in red",
    "--model",
    CHECKPOINT,
    "--size",
    "64x64",
    "--steps",
    "12",
    "--detail",
    "model",
)
MAG = ("--cache", "mag", "--cache-threshold", "0.5", "--cache-ratios")


@pytest.fixture(scope="module")
def identity() -> dict[str, Any]:
    return cache_ratios.identity(CHECKPOINT, EditRequest(Path("x"), "x"))


@pytest.fixture
def measured(tmp_path: Path, identity: dict[str, Any]) -> Path:
    """A file as a calibration with 12 steps writes it."""
    head = {"kiwi": "0.1.0", "format": 1, "cache": "mag", "model": "small", "revision": None, "solver": "euler"}
    values = [1.0, *[1.0 + 0.02 * (-1) ** step for step in range(11)]]
    path = tmp_path / "ratios.json"
    path.write_text(json.dumps({**head, **identity, "steps": 12, "shift": 5.0, "ratios": values}))
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_calibration_is_an_exact_edit_and_writes_what_mag_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], identity: dict[str, Any]
) -> None:
    exact, out, file = tmp_path / "exact.png", tmp_path / "out.png", tmp_path / "ratios.json"
    code, _, err = inside(capsys, *EDIT, "-o", exact, "-q")
    assert code == 0, err
    code, stdout, err = inside(capsys, *EDIT, "-o", out, "--calibrate-cache", file, "--json")
    assert code == 0 and "NOT exact" not in err, err
    data = json.loads(stdout)
    assert data["approximations"] == [] and data["ratios"] == str(file) and data["settings"]["cache"] == "off"
    assert np.array_equal(pixels(out), pixels(exact))
    found = cache_ratios.read(file)
    assert (found.steps, found.solver, found.shift, found.identity) == (12, "euler", 5.0, identity)
    assert found.values[0] == 1.0 and all(0.9 < value < 1.1 for value in found.values)
    assert json.loads(file.read_text())["steps"] == 12

    code, stdout, err = inside(capsys, *EDIT, "-o", tmp_path / "fast.png", *MAG, file, "--json")
    assert code == 0 and "NOT exact" in err, err
    line = json.loads(stdout)["approximations"][0]
    assert line.startswith("step cache mag at threshold 0.5: NOT exact, skipped ") and "of 12 steps" in line
    change = np.abs(pixels(tmp_path / "fast.png").astype(int) - pixels(exact))
    assert 0.3 < change.mean() < 3 and change.max() <= 30  # levels: 1.0 and 9 measured


def test_an_output_of_mag_is_made_again_with_the_same_ratios(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    code, stdout, err = inside(capsys, *EDIT, "-o", out, *MAG, measured, "--json", "-q")
    assert code == 0, err
    settings = json.loads(stdout)["settings"]
    assert settings["cache_ratios"] == {"path": "ratios.json", "sha256": hash_file(measured)}
    code, _, err = inside(capsys, "rerun", out, "-o", tmp_path / "again.png", "-q")
    assert code == 0, err
    assert np.array_equal(pixels(out), pixels(tmp_path / "again.png"))
    code, stdout, _ = inside(capsys, "show", out)
    assert "'ratios.json'" in stdout

    measured.rename(tmp_path / "moved.json")
    code, _, err = inside(capsys, "rerun", out, "-o", tmp_path / "other.png", "--dry-run")
    assert code == 2 and "is not there any more" in err and "--cache-ratios FILE" in err
    code, _, err = inside(
        capsys, "rerun", out, "-o", tmp_path / "other.png", "--dry-run", "--cache-ratios", tmp_path / "moved.json"
    )
    assert code == 0, err
    measured.write_text((tmp_path / "moved.json").read_text().replace("0.98", "0.97"))
    code, _, err = inside(capsys, "rerun", out, "-o", tmp_path / "other.png", "--dry-run")
    assert code == 1 and "has changed since" in err


def test_another_schedule_is_said(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ("--steps", "20", "--solver", "unipc", "--dry-run", "-o", tmp_path / "out.png")
    code, stdout, err = inside(capsys, *EDIT, *MAG, measured, *other)
    assert code == 0, err
    assert "measured at 12 steps, not 20: the nearest are used" in stdout
    assert "measured with solver euler, not unipc" in stdout


def test_ratios_of_another_model_are_refused_before_torch_is_there(measured: Path, tmp_path: Path) -> None:
    held = json.loads(measured.read_text())
    measured.write_text(json.dumps({**held, "checkpoint": "0" * 64, "model": "another"}))
    code = (
        "import sys; from kiwi_cli.cli import run; code = run(sys.argv[1:]);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    arguments = [*map(str, EDIT), "-o", str(tmp_path / "out.png"), *MAG, str(measured)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "were measured with another model ('another')" in done.stderr and "--calibrate-cache" in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_loras_and_gguf_files_belong_to_the_model(measured: Path, tmp_path: Path) -> None:
    style, other, packed = (tmp_path / name for name in ("style.safetensors", "other.safetensors", "dit.gguf"))
    for path in (style, other, packed):
        path.write_text(path.name)

    def asks(**options: Any) -> EditRequest:
        return EditRequest.of(Path("x"), "x", cache="mag", cache_ratios=measured, **options)

    for options, words in (({"loras": (str(style),)}, "other LoRAs"), ({"gguf": packed}, "another GGUF file")):
        with pytest.raises(CheckpointError, match=words):
            cache_ratios.for_request(asks(**options), CHECKPOINT, 12)
    with_style = asks(loras=(f"{style}:0.5",))
    cache_ratios.write(measured, [1.0] * 12, with_style, CHECKPOINT, _settings())
    assert cache_ratios.for_request(with_style, CHECKPOINT, 12)[1] == []
    for loras in ((), (f"{style}:0.6",), (f"{other}:0.5",), (f"{style}:0.5", str(other))):
        with pytest.raises(CheckpointError, match="other LoRAs"):
            cache_ratios.for_request(asks(loras=loras), CHECKPOINT, 12)
    assert (
        cache_ratios.for_request(asks(loras=("owner/away:0.5",)), CHECKPOINT, 12)[1] == []
    )  # compared once it is here


def _settings() -> dict[str, Any]:
    return {"steps": 12, "solver": "euler", "shift": 5.0, "frames": 1, "size": "64x64"} | dict.fromkeys(
        ("revision", "quantize")
    )


BROKEN: dict[str, Any] = {
    "nothing": "",
    "no json": "{",
    "a list": "[1, 2]",
    "deep": "[" * 100_000,
    "another file of kiwi": '{"kiwi": "0.1.0", "format": 1}',
    "a later format": {"format": 2},
    "a format of lists": {"format": [[0] * 1000]},
    "no ratios": {"ratios": []},
    "words": {"ratios": "many"},
    "a word": {"ratios": [1.0, "1.0", *[1.0] * 10]},
    "true": {"ratios": [1.0, True, *[1.0] * 10]},
    "null": {"ratios": [1.0, None, *[1.0] * 10]},
    "negative": {"ratios": [1.0, -1.0, *[1.0] * 10]},
    "zero": {"ratios": [1.0, 0, *[1.0] * 10]},
    "not a number": {"ratios": [1.0, float("nan"), *[1.0] * 10]},
    "infinite": {"ratios": [1.0, float("inf"), *[1.0] * 10]},
    "beyond floats": {"ratios": [1.0, 10**400, *[1.0] * 10]},
    "another count": {"ratios": [1.0] * 11},
    "too many": {"ratios": [1] * 20_000},
    "a million": {"ratios": [1] * 1_000_000},
    "a solver that is none": {"solver": ["euler"]},
    "a shift that is none": {"shift": 10**400},
    "a model that is none": {"model": 3},
    "no checkpoint": {"checkpoint": None},
    "loras that are none": {"loras": 7},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_holds_something_else_is_refused(
    name: str, measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, good = BROKEN[name], json.loads(measured.read_text())
    measured.write_text(broken if isinstance(broken, str) else json.dumps({**good, **broken}))
    code, stdout, err = inside(capsys, *EDIT, *MAG, measured, "-o", tmp_path / "out.png", "--dry-run")
    assert code == 1 and stdout == "" and str(measured) in err and err.count("hint: ") == 1
    assert "unexpected" not in err and len(err) < 600


@pytest.mark.parametrize("value", ["there.json", ""])
def test_a_file_that_is_none(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / value  # not there; a folder
    code, _, err = inside(capsys, *EDIT, *MAG, path, "-o", tmp_path / "out.png")
    assert code == 2 and f"file of cache ratios not found: '{path}'" in err and "--calibrate-cache" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cache-ratios", "x.json"), "--cache-ratios needs --cache mag"),
        (("--cache", "easy", "--cache-ratios", "x.json"), "--cache-ratios needs --cache mag"),
        (("--calibrate-cache", "x.json", "--cache", "easy"), "--calibrate-cache does not go together with --cache"),
        (("--calibrate-cache", "x.json", "--compile"), "--calibrate-cache does not go together with --compile"),
        (("--calibrate-cache", "x.png"), ".json"),
        (("--calibrate-cache", "none/x.json"), "no such folder"),
        (("--compile", "--cache", "mag", "--cache-ratios", "x.json"), "--compile does not go together"),
    ],
)
def test_options_that_cannot_be_meant(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, stdout, err = inside(capsys, *EDIT, *options, "-o", tmp_path / "out.png")
    assert code == 2 and words in err and stdout == ""


def test_only_ratios_are_replaced(measured: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / "out.png.json"
    with pytest.raises(UsageError, match="output exists"):
        cache_ratios.check_new(measured, overwrite=False, taken=sidecar)
    cache_ratios.check_new(measured, overwrite=True, taken=sidecar)
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UsageError, match="not replaced"):
        cache_ratios.check_new(tmp_path / "notes.json", overwrite=True, taken=sidecar)
    with pytest.raises(UsageError, match="settings belong"):
        cache_ratios.check_new(sidecar, overwrite=True, taken=sidecar)


def test_ratios_that_make_no_sense_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(KiwiError, match="step 2 has ratio nan"):
        cache_ratios.write(
            tmp_path / "x.json", [1.0, float("nan")], EditRequest(Path("x"), "x"), CHECKPOINT, _settings()
        )
    assert list(tmp_path.iterdir()) == []


def test_windows_are_measured_together(tmp_path: Path) -> None:
    """A model that works on a few frames at a time measures once for each window; the file holds the mean."""
    clip, file = make_clip(tmp_path / "clip.mp4", frames=10), tmp_path / "ratios.json"
    model = make_model(tmp_path / "model", working={"frames": 5, "steps": 2})
    editor = fakes.CalibratingEditor([[1.0, 1.0], [1.0, 1.1]], shift=3.0)
    fakes.edit(clip, tmp_path / "out.mp4", editor, model=str(model), calibrate_cache=file, size="64x64")
    assert [len(call["frames"]) for call in editor.seen] == [5, 5]
    found = cache_ratios.read(file)
    assert found.values == pytest.approx((1.0, 1.05)) and found.shift == 3.0
