"""`import kiwi_cli`: the call that does what the command does, and the examples of docs/python.md as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kiwi_cli as kiwi
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.video import probe

from . import fakes
from .cli.terminal import CLIP, REFERENCE, inside
from .conftest import CHECKPOINT, ROOT

SMALL = {"model": str(CHECKPOINT), "size": "64x64", "steps": 1, "frames": 2, "device": "cpu"}


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, kiwi_cli\n"
        "assert set(kiwi_cli.__all__) <= set(dir(kiwi_cli))\n"
        "kiwi_cli.edit, kiwi_cli.load, kiwi_cli.EditRequest, kiwi_cli.KiwiError\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'typer', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_every_name_is_there() -> None:
    for name in kiwi.__all__:
        assert getattr(kiwi, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        kiwi.nothing_such  # noqa: B018


def test_the_call_does_what_the_command_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = kiwi.edit(str(CLIP), "make it snowy", output=str(tmp_path / "a.mkv"), codec="ffv1", seed=3, **SMALL)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert result.output == tmp_path / "a.mkv" and result.frames == 2 and result.seconds["denoise"] > 0
    options = [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    command = ("edit", str(CLIP), "make it snowy", "-o", str(tmp_path / "b.mkv"), "--codec", "ffv1", "--seed", "3")
    assert inside(capsys, *command, *options)[0] == 0
    assert probe(result.output).size == probe(tmp_path / "b.mkv").size
    assert _without_metadata(result.output) == _without_metadata(tmp_path / "b.mkv")


def _without_metadata(path: Path) -> list[bytes]:
    import av

    with av.open(path) as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]


def test_references_ask_for_the_model_that_is_made_for_them(tmp_path: Path) -> None:
    """Without a model's name it is the command's default, which is not here and may not be fetched."""
    for references, name in (((), "instruct-reference"), ((REFERENCE,), "reference-only")):
        with pytest.raises(kiwi.CheckpointError, match=name):
            kiwi.edit(CLIP, "x", references=references, output=tmp_path / "a.mp4", download=False)


def test_a_loaded_model_serves_several_edits(tmp_path: Path) -> None:
    editor = kiwi.load(str(CHECKPOINT), device="cpu")
    few = {name: SMALL[name] for name in ("size", "steps", "frames")}
    results = [
        kiwi.edit(CLIP, "x", references=references, output=tmp_path / f"{number}.mp4", editor=editor, **few)
        for number, references in enumerate(((), (REFERENCE,)))
    ]
    assert [result.frames for result in results] == [2, 2] and all(result.output.is_file() for result in results)
    with pytest.raises(kiwi.UsageError, match="--quantize"):
        kiwi.edit(CLIP, "x", output=tmp_path / "c.mp4", editor=editor, quantize="int8", **few)
    editor.close()


def test_an_editor_of_ones_own(tmp_path: Path) -> None:
    editor = fakes.FakeEditor(lambda frames: 255 - frames)
    editor.choice = ModelChoice(str(CHECKPOINT))
    result = kiwi.edit(CLIP, "x", output=tmp_path / "a.mp4", editor=editor, frames=2)
    assert result.frames == 2 and len(editor.seen) == 1


def test_what_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(kiwi.UsageError, match="no such option: 'stepz'"):
        kiwi.edit(CLIP, "x", stepz=3)
    with pytest.raises(kiwi.UsageError, match="no such option: 'seed'"):
        kiwi.load("tiny", seed=3)
    with pytest.raises(kiwi.UsageError, match="input not found"):
        kiwi.edit(tmp_path / "nothing.mp4", "x", **SMALL)
    with pytest.raises(kiwi.UsageError, match="steps"):
        kiwi.edit(CLIP, "x", **{**SMALL, "steps": 0})


BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_examples_of_the_page(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(CLIP, "clip.mp4")
    with Image.open(REFERENCE) as picture:
        for name in ("photo.png", "hat.png"):
            picture.convert("RGB").resize((96, 64)).save(name)
    small = BLOCKS[number].replace('"tiny"', repr(str(CHECKPOINT)))
    small = small.replace("output=", 'size="64x64", steps=1, output=') if "kiwi.edit(" in small else small
    exec(compile(small, f"docs/python.md, block {number}", "exec"), {"__name__": "example"})  # noqa: S102


def test_the_page_has_its_examples() -> None:
    assert len(BLOCKS) >= 7 and "docs/python.md" in (ROOT / "README.md").read_text()
    assert np.all([("KiwiPipeline" in block) or ("kiwi." in block) for block in BLOCKS])
