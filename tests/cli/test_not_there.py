"""One rule for exit codes: an argument that names what is not there is wrong usage, whatever it is the name of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.base.whole import write_text
from kiwi_cli.weights.hub_errors import explain

from ..conftest import CHECKPOINT
from .terminal import CLIP, inside

EDIT = ("edit", CLIP, "x", "--model", CHECKPOINT)
NAMED: dict[str, tuple[Any, ...]] = {
    "input": ("edit", "gone", "x", "--model", CHECKPOINT),
    "several inputs": ("edit", CLIP, "gone.mp4", "-i", "x", "--model", CHECKPOINT, "--out-dir", "o"),
    "mask": (*EDIT, "--mask", "gone.png"),
    "reference": ("ref-edit", CLIP, "--ref", "gone.png", "--model", CHECKPOINT),
    "model": ("edit", CLIP, "x", "--model", "gone"),
    "model's folder": ("edit", CLIP, "x", "--model", "./gone"),
    "LoRA": (*EDIT, "--lora", "gone.safetensors"),
    "GGUF file": (*EDIT, "--gguf", "gone.gguf"),
    "cache ratios": (*EDIT, "--cache", "mag", "--cache-ratios", "gone.json"),
    "output folder": (*EDIT, "-o", "gone/out.mp4"),
    "folder of clips": ("edit", CLIP, "x", "--editor", "folder:gone"),
    "program": ("edit", CLIP, "x", "--editor", "command:gone-program {input} {output}"),
    "table": ("batch", "gone.csv", "--model", CHECKPOINT, "--out-dir", "o"),
    "output to show": ("show", "gone.mp4"),
    "output to make again": ("rerun", "gone.mp4"),
    "unfinished edit": ("finish", "gone.unfinished"),
    "run": ("status", "gone"),
    "run to report": ("bench", "report", "gone"),
    "model to convert": ("convert", "gone", "out"),
    "recipe": ("train", "gone.toml"),
    "model to fetch": ("download", "gone"),
    "model to ask": ("prompts", "--model", "gone"),
    "reference data": ("data", "look", "gone"),
}


@pytest.mark.parametrize("length", ["short", "too long for a name"])
@pytest.mark.parametrize("what", NAMED)
def test_it_is_wrong_usage(
    what: str, length: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "gone" if length == "short" else "gone" * 80
    code, out, err = inside(capsys, *(str(each).replace("gone", name) for each in NAMED[what]))
    assert (code, out) == (2, ""), err
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "gone" in error and "unexpected" not in error and "\nhint: " in err
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_the_system_keeps_from_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may look everywhere: the system's answer is given for it."""
    there = Path.exists

    def refuse(path: Path, **more: Any) -> bool:
        if path.name == "secret.mp4":
            raise PermissionError(13, "Permission denied", str(path))
        return there(path, **more)

    monkeypatch.setattr(Path, "exists", refuse)
    code, out, err = inside(capsys, "edit", tmp_path / "secret.mp4", "x", "--model", CHECKPOINT)
    assert (code, out) == (1, "") and "error: not allowed to read or write '" in err and "fault" not in err


def test_what_is_there_and_cannot_be_used_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "mask.png", "style.safetensors"):
        write_text(tmp_path / name, "not what it is called")
    for arguments in (
        ("edit", "clip.mp4", "x", "--model", CHECKPOINT),
        (*EDIT, "--mask", "mask.png"),
        (*EDIT, "--lora", "style.safetensors"),
    ):
        assert inside(capsys, *arguments)[0] == 1


def test_a_name_that_the_hub_does_not_have() -> None:
    """Of a model of ours it is the Hub that fails, and nobody's name is wrong."""
    import httpx
    from huggingface_hub.errors import RepositoryNotFoundError

    error = RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://x")))
    assert explain(error, "somebody/thing").exit_code == 2
    assert explain(error, "linyq/kiwi-edit-5b-instruct-reference-diffusers").exit_code == 1


def test_a_model_that_is_not_here_is_not_called_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may well be on the Hub: no name is wrong, and nothing of it is here."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    code, _, err = inside(capsys, "prompts", "--model", "nosuch/thing")
    assert code == 1 and "error: 'nosuch/thing' is not on this machine\n" in err
    assert "hint: run `kiwi download nosuch/thing` once" in err
