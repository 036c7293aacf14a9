"""The scripts around the looks' benchmark: what they refuse is said in words, before anything long is begun."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from kiwi_cli.video.geometry import Size
from kiwi_cli.weights.settings import ModelSettings

from ..conftest import ROOT
from .miniature import clip


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOOKS, CURVES = script("benchmarks/tiny_looks.py"), script("benchmarks/tiny_curves.py")
PICTURE = script("scripts/looks_picture.py")


@pytest.mark.parametrize(
    "given",
    (
        "--size abc",
        "--size 64",
        "--size 72x64",
        "--frames 4",
        "--times 0",
        "--crops 0",
        "--steps 0",
        "--processes 0",
        "--count -1",
        "--count 0 --natural 0",
    ),
)
def test_wrong_arguments_of_the_benchmark(given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        LOOKS.main(["tiny", "--out", str(out), *given.split()])
    error = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and given.split()[0] in error.split("error: ")[1]
    assert not out.exists()


def test_the_benchmark_names_a_wrong_model_before_it_reads_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(model: str, *clips: Path) -> str:
        assert LOOKS.main([model, "--out", str(tmp_path / "out"), "--clips", *map(str, clips)]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    missing, short = tmp_path / "missing.mp4", tmp_path / "short.mp4"
    clip(short, 0, frames=3)
    error = refused(str(tmp_path / "no-model"), missing)
    assert error.startswith("error: ") and "no-model" in error and "missing.mp4" not in error
    assert f"input not found: '{missing}'" in refused("tiny", missing)
    assert f"'{short}' has 3 frames, not 5" in refused("tiny", short)


def test_crops_have_the_frames_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    clip(path, 0, frames=6)
    for count in (1, 3):
        found = LOOKS.crops(path, count, 5, Size(48, 32))
        assert [crop.shape for crop in found] == [(5, 32, 48, 3)] * count


def test_curves_of_runs_without_figures(tmp_path: Path) -> None:
    def metrics(name: str, *lines: dict[str, Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    whole = metrics("whole.jsonl", *({"stage": "model", "step": step, "loss": 1 / step} for step in range(1, 30)))
    others = metrics("others.jsonl", {"stage": "autoencoder", "step": 1, "loss": 1.0})
    cut_off = tmp_path / "cut-off.jsonl"
    cut_off.write_text('{"stage": "mo')
    for path in (tmp_path / "missing.jsonl", others, cut_off):
        with pytest.raises(SystemExit, match=rf"^error: .*'{path}'.*\n\nhint: "):
            CURVES.main(["--out", str(tmp_path / "out"), "--minutes", str(whole), str(path)])
    assert not (tmp_path / "out").exists()
    CURVES.main(["--out", str(tmp_path / "out"), "--minutes", str(whole)])
    assert Image.open(tmp_path / "out/colourist-curve.png").size[0] == 960


def test_a_picture_of_looks_has_sentences_without_slots() -> None:
    texts = {
        "night": ("make it night",),
        "tint": ("tint it {colour}", "tint it red"),
        "remove": ("remove the {object}",),
        "reference-background": ("use the picture as the background",),
    }
    settings = ModelSettings(offers=(*texts, "unsaid"), understands=texts)
    assert PICTURE.sentences(settings) == ["make it night", "tint it red"]


def test_a_picture_of_looks_needs_a_model_and_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "clip.mp4", tmp_path / "looks.jpg"
    clip(path, 0)

    def refused(*given: object) -> str:
        assert PICTURE.main([*map(str, given), "--out", str(out)]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "no-model" in refused(path, "--model", tmp_path / "no-model")
    assert "input not found" in refused(tmp_path / "missing.mp4")
    assert "has no frame 60" in refused(path)
