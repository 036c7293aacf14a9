"""README's commands are run as they stand, on stand-in files and the tiny checkpoint."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from .cli.terminal import CLIP, REFERENCE, inside
from .conftest import CHECKPOINT, ROOT

BLOCK = re.compile(r"^```(?:bash|sh|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN = ("edit", "ref-edit", "batch", "status", "show", "rerun")  # the others need the network, a GPU or an hour


def commands(page: str) -> list[list[str]]:
    """Every `kiwi ...` line of a page's code blocks, split as a shell does, without comments."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    lines = [line.strip() for block in BLOCK.findall(text) for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("kiwi ")]


@pytest.mark.parametrize("page", ["README.md", "docs/clips.md"])
def test_the_examples_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"KIWI_MODEL": str(CHECKPOINT), "KIWI_STEPS": "1", "KIWI_SIZE": "64x64"}.items():
        monkeypatch.setenv(name, value)
    found = commands(page)
    assert found
    files = {part for command in found for part in command if re.fullmatch(r"[\w./-]+\.(mp4|mov|png|jpe?g|webp)", part)}
    made = {command[command.index("-o") + 1] for command in found if "-o" in command}
    for name in files - made:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".mp4", ".mov")) and "-edited" not in name:
            shutil.copy(CLIP, name)
        elif not name.endswith((".mp4", ".mov")):
            with Image.open(REFERENCE) as image:
                image.convert("RGB").resize((480, 270)).save(name)
    Path("jobs.csv").write_text("input,instruction\na.mp4,make it snowy\n")
    for command in found:
        if command[0] not in RUN:
            continue
        command = [part for part in command if part != "--dry-run"]
        if command[0] not in ("show", "status"):
            limited = any(option in command for option in ("--frames", "--duration", "--span"))
            command += ["--overwrite"] + ([] if limited else ["--frames", "2"])
        code, _, err = inside(capsys, *_affordable(command))
        assert code == 0, (command, err)


def _affordable(command: list[str]) -> list[str]:
    """The same at a size and with steps that take no time."""
    for option, value in (("--steps", "1"), ("--size", "64x64"), ("--duration", "0.2"), ("--span", "0-0.01")):
        if option in command:
            command[command.index(option) + 1] = value
    for option in ("--model", "--device", "--memory", "--max-memory"):
        if option in command:
            at = command.index(option)
            del command[at : at + 2]
    return [part for part in command if part != "--compile"]
