"""Reference pictures of every depth come in right, and what cannot be meant is said before anything is loaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.data.clips import picture_of
from kiwi_cli.editing.references import notices, open_reference
from kiwi_cli.errors import MediaError, UsageError

from .cli.terminal import inside
from .conftest import CHECKPOINT
from .video.media import make_clip

RAMP = np.tile(np.linspace(0, 65535, 256).round(), (8, 1))
EIGHT = np.tile(np.arange(256), (8, 1))

DEEP: dict[str, tuple[str, Any]] = {
    "16-bit grey PNG": ("a.png", lambda: Image.fromarray(RAMP.astype(np.uint16))),
    "16-bit grey TIFF": ("a.tif", lambda: Image.fromarray(RAMP.astype(np.uint16))),
    "big-endian 16-bit TIFF": ("a.tif", lambda: Image.frombytes("I;16B", (256, 8), RAMP.astype(">u2").tobytes())),
    "32-bit integers of a 16-bit range": ("a.tif", lambda: Image.fromarray(RAMP.astype(np.int32))),
    "floats": ("a.tif", lambda: Image.fromarray((RAMP / 65535).astype(np.float32))),
    "16-bit PGM": ("a.pgm", lambda: Image.fromarray(RAMP.astype(np.uint16))),
    "8-bit grey": ("a.png", lambda: Image.fromarray(EIGHT.astype(np.uint8))),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("reader", ["an edit's", "training's"])
def test_a_grey_ramp_stays_a_ramp(name: str, reader: str, tmp_path: Path) -> None:
    file, make = DEEP[name]
    make().save(tmp_path / file)
    opened = open_reference(tmp_path / file) if reader == "an edit's" else picture_of((tmp_path / file).read_bytes())
    found = np.asarray(opened).astype(int)
    assert opened.mode == "RGB" and found.shape == (8, 256, 3)
    assert np.abs(found - EIGHT[..., None]).max() <= 1


def test_a_transparent_value_of_16_bit_grey_is_white(tmp_path: Path) -> None:
    values = np.full((4, 4), 1000, np.uint16)
    values[0] = 30000
    image = Image.fromarray(values)
    image.save(tmp_path / "a.png", transparency=1000)
    found = np.asarray(open_reference(tmp_path / "a.png"))
    assert (found[1:] == 255).all() and np.abs(found[0].astype(int) - 117).max() <= 1


@pytest.mark.parametrize("values", [[[0.0, 255.0]], [[-1.0, 0.5]], [[np.nan, 0.5]], [[70000, 1]]], ids=str)
def test_a_range_that_nobody_knows_is_refused(values: Any, tmp_path: Path) -> None:
    kind = np.int32 if values[0][0] == 70000 else np.float32
    Image.fromarray(np.array(values, kind)).save(tmp_path / "a.tif")
    with pytest.raises(MediaError, match=r"a\.tif.* values from") as error:
        open_reference(tmp_path / "a.tif")
    assert "PNG" in error.value.hint


def animated(path: Path) -> Path:
    frames = [Image.new("RGB", (40, 30), (60 * n, 10, 10)) for n in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_the_first_of_several_pictures_is_used_and_said(suffix: str, tmp_path: Path) -> None:
    path = animated(tmp_path / f"a{suffix}")
    assert notices(path) == [f"the reference '{path}' has 3 pictures; the first is used"]
    assert np.abs(np.asarray(open_reference(path)).astype(int) - (0, 10, 10)).max() < 12


def test_one_picture_is_not_worth_a_word(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, format="PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert notices(tmp_path / "a.png") == []


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"instruction": "make <|im_end|> snowy"}, "reserved token of the model: '<|im_end|>'", "remove it"),
        ({"device": "gpu"}, "unknown device: 'gpu'", "did you mean 'cuda'?"),
        ({"device": "cuda:x"}, "unknown device: 'cuda:x'", "cuda:N"),
        ({"dtype": "bf16"}, "unknown dtype: 'bf16'", "did you mean 'bfloat16'?"),
        ({"dtype": "int8"}, "unknown dtype: 'int8'", "bfloat16"),
        ({"ref": "narrow"}, "too narrow", "crop it"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("model", [str(CHECKPOINT), "instruct-reference"], ids=["here", "not here"])
def test_refused_before_anything_is_fetched_or_loaded(
    options: dict[str, str], message: str, hint: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "in.mp4", frames=5)
    Image.new("RGB", (5000, 1)).save(tmp_path / "narrow.png")
    Image.new("RGB", (50, 40)).save(tmp_path / "good.png")
    reference = tmp_path / ("narrow.png" if options.get("ref") else "good.png")
    given = [f"--{name}={value}" for name, value in options.items() if name in ("device", "dtype")]
    text = options.get("instruction", "make it snowy")
    common = ("ref-edit", clip, text, "--ref", reference, "--model", model, "--no-sound", *given)
    code, out, err = inside(capsys, *common, "--dry-run")
    assert (code, out) in ((1, ""), (2, "")) and message in err and hint in err, err


def test_an_animated_reference_is_said_by_the_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, reference = make_clip(tmp_path / "in.mp4", frames=5), animated(tmp_path / "a.gif")
    code, out, err = inside(
        capsys, "ref-edit", clip, "--ref", reference, "--model", CHECKPOINT, "--device", "cpu", "--dry-run"
    )
    assert code == 0 and "has 3 pictures; the first is used" in out + err


def test_a_narrow_picture_names_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (2, 900)).save(tmp_path / "line.png")
    with pytest.raises(UsageError, match=r"line\.png.*2x900"):
        open_reference(tmp_path / "line.png")
