"""Modes that are not exact say so: on the terminal, in the JSON object and in the file; a rerun takes them over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.engine.choice import ATTENTIONS, CACHES, SOLVERS, WEIGHTS
from kiwi_cli.engine.memory import LEVELS
from kiwi_cli.engine.step_cache import KINDS

from ..conftest import CHECKPOINT, ROOT
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


def test_the_words_of_the_command_line_are_the_librarys() -> None:
    from kiwi_cli.engine import attention, quantize
    from kiwi_cli.model import sampling

    assert ("off", *KINDS) == CACHES
    assert SOLVERS == sampling.SOLVERS
    assert ("auto", *attention.BACKENDS) == ATTENTIONS
    assert ("as-stored", *quantize.MODES) == WEIGHTS
    assert [name for name, level in LEVELS.items() if not level.exact] == ["tiled"]


def test_an_exact_edit_says_nothing_of_the_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *EDIT, "-o", tmp_path / "out.png", "--json")
    assert code == 0, err
    assert json.loads(out)["approximations"] == [] and "NOT exact" not in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "unipc"), "unipc"),
        (("--cache", "easy", "--cache-threshold", "0.5"), "step cache easy"),
        (("--memory", "tiled"), "blended tiles"),
        (("--quantize", "fp8-storage"), "fp8-storage weights"),
    ],
)
def test_an_approximate_edit_says_so_everywhere(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    code, stdout, err = inside(capsys, *EDIT, *options, "-o", out, "--json")
    assert code == 0, err
    data = json.loads(stdout)
    assert any(words in line and "NOT exact" in line for line in data["approximations"])
    assert "NOT exact" in err
    assert data["settings"][options[0].removeprefix("--")] == options[1]
    again = tmp_path / "again.png"
    code, stdout, err = inside(capsys, "rerun", out, "-o", again, "--json", "-q")
    assert code == 0, err
    assert json.loads(stdout)["approximations"] == data["approximations"]
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (out, again))
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "magic"), "'magic'"),
        (("--quantize", "int3"), "'int3'"),
        (("--gguf", "none.gguf"), "'none.gguf'"),
        (("--gguf", "x.gguf", "--lora", "y.safetensors"), "--gguf does not go together with --lora"),
        (("--compile", "--quantize", "fp8-storage"), "--compile does not go together"),
        (("--compile", "--cache", "sea"), "--compile does not go together"),
        (("--cache", "mag"), "needs ratios"),
        (("--cache-threshold", "0.1"), "needs --cache"),
        (("--cache", "easy", "--cache-threshold", "-1"), "-1"),
    ],
)
def test_words_that_are_none(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *EDIT, *options)
    assert code == 2 and words in err and out == ""
