"""`scripts/train_tiny.py`: what its options refuse, what its failures say, and a run from nothing."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.train.ondevice.saving import STATE
from kiwi_cli.weights.hub import locate

from ..cli.terminal import inside
from ..conftest import ROOT
from ..video.media import make_clip


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script; instead of its steps there is a list of them, `done`."""
    spec = importlib.util.spec_from_file_location("train_tiny", ROOT / "scripts/train_tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WORK", tmp_path / "work")
    monkeypatch.setattr(module, "done", [], raising=False)
    monkeypatch.setattr(module, "stage", module.done.append)
    for step in ("vae", "base", "install", "measure"):
        monkeypatch.setattr(module, step, lambda work, step=step: module.done.append(step))
    monkeypatch.setattr(module, "cache", lambda work, names: module.done.extend(["cache", *names]))
    return module


@pytest.fixture
def call(script: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["train_tiny.py", *map(str, arguments)])
        return script.main()

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recipe", "colourist"), "--recipe: only with --minutes"),
        (("install", "--device", "cuda", "--seed", 0), "--device, --seed: only with --minutes"),
        (("vae", "base", "--minutes", 8), "vae, base: not with --minutes"),
        (("--data", "images", "--minutes", 8), "--data: not with --minutes"),
        (("--unpack", "a", "b", "--minutes", 8), "--minutes: not with --unpack"),
        (("--unpack", "a", "b", "measure"), "measure: not with --unpack"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    arguments: tuple[object, ...],
    said: str,
    script: Any,
    call: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert not script.done and not list(tmp_path.iterdir())


def test_failures_are_said_in_words(
    tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / STATE).write_bytes(b"no state")
    run = ("--minutes", 1, "--device", "cpu", "--workers", 0, "--state")
    model = ("--from", locate("tiny"), "--out")
    for arguments, said in (
        (("--unpack", tmp_path, tmp_path / "model"), "holds no whole parts"),
        ((*run, tmp_path / "new", *model, tmp_path / "file/out"), f"'{tmp_path}/file/out': Not a directory"),
        ((*run, tmp_path / "file/state", "--out", tmp_path / "out"), "Not a directory"),  # from nothing
        ((*run, tmp_path / "state", *model, tmp_path / "out"), f"{STATE}' cannot be read"),
        ((*run, tmp_path / "new", "--from", tmp_path, "--out", tmp_path / "out"), "is not a Kiwi-Edit checkpoint"),
    ):
        assert call(*arguments) == 1
        told = capsys.readouterr().err
        assert told.startswith("error: ") and said in told and "Traceback" not in told


def test_all_steps_are_carried_out_where_none_is_named(script: Any, call: Callable[..., int]) -> None:
    assert call() == 0 and [step for step in script.done if step not in script.DATA] == list(script.STEPS)
    script.done.clear()
    assert call("base", "cache", "--data", "images", "wide") == 0 and script.done == ["base", "cache", "images", "wide"]


@pytest.mark.slow
def test_the_script_goes_from_nothing_to_a_model_that_edits(
    tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """All sizes and forms of the recipe, with steps enough to see that it runs."""
    out, folder = tmp_path / "out", tmp_path / "model"
    small = ("--max-steps", 2, "--positions", 128, "--scale", 0.01, "--workers", 0)
    assert call("--device", "cpu", "--minutes", 60, *small, "--out", out, "--state", tmp_path / "state") == 0
    assert call("--unpack", out, folder) == 0
    clip = make_clip(tmp_path / "in.mp4", frames=5)
    code, _, err = inside(capsys, "edit", clip, "make it sepia", "--model", folder, "--device", "cpu", "--steps", 1)
    assert code == 0, err
    figures = json.loads((out / "figures.json").read_text())
    assert {"clip clip", "clip picture", "long clip", "autoencoder long"} <= {*figures}
