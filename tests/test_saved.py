"""`kiwi edit --model FOLDER` opens what `KiwiPipeline.save_pretrained` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli import KiwiPipeline
from kiwi_cli.weights.settings import read_settings

from .cli.terminal import inside
from .conftest import make_model
from .video.media import make_sequence


def test_the_command_opens_what_was_saved(
    loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the model says of its use, and to the same frames."""
    monkeypatch.chdir(tmp_path)
    own: dict[str, Any] = {"offers": ["night"], "detail": {"steady": True}}
    model = make_model(tmp_path / "model", working={"pixels": 4096, "frames": 5, "steps": 1}, **own)
    (model / "understands.json").write_text('{"night": ["make it night"]}')
    pipe = KiwiPipeline.from_pretrained(model, device="cpu", dtype="float32")
    pipe.save_pretrained(tmp_path / "once")
    KiwiPipeline.from_pretrained(tmp_path / "once", device="cpu").save_pretrained(tmp_path / "saved")
    assert read_settings(tmp_path / "saved") == read_settings(model)
    make_sequence(tmp_path / "clip", 2, (64, 64))
    for name in ("model", "saved"):
        code, _, err = inside(capsys, "edit", "clip", "make it night", "--model", name, "-o", f"by-{name}")
        assert code == 0, err
    for first in sorted((tmp_path / "by-model").glob("*.png")):
        assert np.array_equal(Image.open(first), Image.open(tmp_path / "by-saved" / first.name))
    night = ("edit", "clip", "make it night", "--model", "saved", "--dry-run", "--json", "-o", "no")
    code, out, err = inside(capsys, *night)
    assert code == 0 and json.loads(out)["estimate"]["of_this_checkpoint"], err
    code, _, err = inside(capsys, "edit", "clip", "make it <|im_end|>", "--model", "saved", "-o", "no")
    assert code == 2 and "<|im_end|>" in err


def test_a_saved_variant_is_named(loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded.save_pretrained(tmp_path / "half", variant="fp16")
    clip = make_sequence(tmp_path / "clip", 1, (64, 64))
    code, _, err = inside(capsys, "edit", clip, "make it night", "--model", tmp_path / "half", "-o", tmp_path / "no")
    assert code == 1 and "holds a variant alone: 'diffusion_pytorch_model.fp16.safetensors'" in err
