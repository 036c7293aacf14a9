"""What people type: it is understood, or the error says what it is called here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.errors import UsageError
from kiwi_cli.video import probe

from .. import fakes
from ..conftest import CHECKPOINT
from ..video.media import make_clip
from .terminal import REFERENCE, inside

MODEL = ("--model", str(CHECKPOINT), "--size", "64x64", "--steps", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two clips of eight frames (25 a second)."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        make_clip(tmp_path / name, frames=8, size=(64, 48))
    (tmp_path / "-dash.mp4").symlink_to("a.mp4")
    (tmp_path / "results").mkdir()
    return tmp_path


def kiwi(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with fakes.commands_use(fakes.FakeEditor()):
        return inside(capsys, *arguments)


WRONG: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "a second file": (("show", "a.mp4", "b.mp4"), "too many arguments: 'b.mp4'", "for f in a.mp4 b.mp4; do kiwi show"),
    "two models": (("download", "tiny", "instruct-only"), "'instruct-only' (it is kiwi download", "one at a time"),
    "three files": (
        ("ref-edit", "a.mp4", "b.mp4", "a.mp4", "--ref", REFERENCE),
        "too many arguments: 'a.mp4'",
        "for f in a.mp4 b.mp4 ...; do kiwi ref-edit",
    ),
    "a file for the instruction": (("ref-edit", "a.mp4", "b.mp4", "--ref", REFERENCE), "a file: 'b.mp4'", "in words"),
    "no quotes": (("ref-edit", "a.mp4", "a", "red", "hat", "--ref", REFERENCE), "'red hat'", "in quotes"),
    "a reference": (("edit", "a.mp4", "x", "--ref", REFERENCE), "no such option: --ref", "kiwi ref-edit INPUT --ref"),
    "another program's option": (("edit", "a.mp4", "x", "--end", "1"), "no such option: --end", "use --to"),
    "a prompt": (("edit", "a.mp4", "--prompt", "x"), "no such option: --prompt", "the instruction is an argument"),
    "guidance": (("edit", "a.mp4", "x", "--guidance", "5"), "--guidance", "without guidance"),
    "a slip": (("edit", "a.mp4", "x", "--modle", "tiny"), "no such option: --modle", "did you mean --model?"),
    "a preview of many": (("batch", "j.csv", "--preview"), "no such option: --preview", "one clip: kiwi edit INPUT"),
    "seeds of many": (("batch", "j.csv", "--seeds", "4"), "no such option: --seeds", '"make it snowy" --seeds'),
    "an output of many": (("batch", "j.csv", "-o", "x"), "no such option: -o", "in the table's column 'output'"),
    "an instruction of many": (("batch", "j.csv", "-i", "x"), "no such option: -i", "in the column 'instruction'"),
    "another program's option of many": (("batch", "j.csv", "--crf", "5"), "no such option: --crf", "use --quality"),
    "an argument": (("data", "synth", "--out", "rows"), "no such option: --out", "without --out: kiwi data synth OUT"),
    "an edit's option": (
        ("status", "out", "--seed", "1"),
        "no such option: --seed",
        "is an option of kiwi edit; kiwi st",
    ),
    "a slip in an option of many": (("batch", "j.csv", "--worker", "1"), "no such option: --worker", "--workers?"),
    "of another page": (("bench", "openve", "--limitt", "1"), "--limitt", "kiwi bench openve --help"),
    "no instruction": (("ref-edit",), "missing argument 'INPUT'", "kiwi ref-edit INPUT [INSTRUCTION]"),
    "no folder": (("batch", "jobs.csv"), "missing option '--out-dir'", "kiwi batch JOBS --out-dir DIR"),
    "a slip in a comparison": (("edit", "a.mp4", "x", *MODEL, "--compare", "wippe"), "'wippe'", "side or wipe"),
    "a name with a dash": (("edit", "-dash.mp4", "x"), "no such option: -d", "'./-dash.mp4'"),
    "stdin": (("edit", "-", "x", *MODEL), "input not found: '-'", "of a pipe, save what it gives"),
    "stdout": (("edit", "a.mp4", "x", *MODEL, "-o", "-"), "not written to stdout: '-'", "a file name with --output"),
    "a folder to write into": (
        ("edit", "a.mp4", "x", "-o", "results/", *MODEL),
        "exists: 'results'",
        "results/NAME.mp4",
    ),
    "a model where none is": (("prompts", "tiny"), "too many arguments: 'tiny'", "kiwi prompts --help lists them"),
    "a model's name": (("show", "tinny"), "no such file or model: 'tinny'", "did you mean 'tiny'?"),
    "no command": (("eidt", "a.mp4", "x"), "Did you mean 'edit'?", "kiwi --help lists the commands"),
    "an address": (("edit", "https://x.org/a.mp4", "x"), "'https://x.org/a.mp4'", "download it first"),
    "an address as a mask": (
        ("edit", "a.mp4", "x", "--mask", "http://x.org/m.png"),
        "'http://x.org/m.png'",
        "download",
    ),
    "an unknown codec": (("edit", "a.mp4", "x", *MODEL, "--codec", "divx"), "unknown codec: 'divx'", "h264, hevc"),
    "a codec for others": (
        ("edit", "a.mp4", "x", *MODEL, "--codec", "libvpx-vp9", "-o", "o.mov"),
        "codec 'vp9' does not go into .mov",
        "for vp9, write to .mp4, .mkv, .webm",
    ),
    "steps": (("edit", "a.mp4", "x", "--steps", "999999999"), "--steps must be at most 10000, not 999999999", "50"),
    "both ends": (("edit", "a.mp4", "x", "--to", "1", "--duration", "1"), "--to and --duration exclude", "not both"),
    "an end before": (("edit", "a.mp4", "x", "--start", "2s", "--to", "1500ms"), "--to is not after --start", "--to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_what_was_meant(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message, hint = WRONG[name]
    code, out, err = kiwi(capsys, *arguments)
    assert (code, out) == (2, ""), err
    said, _, help = err.partition("\n\nhint: ")
    assert message in said.splitlines()[-1] and hint in help, err
    assert sorted(path.name for path in folder.rglob("*")) == ["-dash.mp4", "a.mp4", "b.mp4", "results"]


@pytest.mark.parametrize(
    ("typed", "codec", "extension"),
    [("h265", "hevc", "mp4"), ("H.265", "hevc", "mkv"), ("libx264", "h264", "mp4"), ("avc", "h264", "mov")],
)
def test_codecs_by_their_other_names(typed: str, codec: str, extension: str, folder: Path) -> None:
    result = fakes.edit(folder / "a.mp4", folder / f"out.{extension}", codec=typed, frames=2)
    assert probe(result.output).codec == codec


def test_from_one_time_to_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """80 to 200 ms of 25 frames a second: the third, fourth and fifth."""
    out = folder / "out.mp4"
    code, _, err = kiwi(capsys, "edit", "a.mp4", "x", *MODEL, "--start", "80ms", "--to", "0.2s", "-o", out)
    assert code == 0 and probe(out).frame_count == 3, err
    code, _, err = kiwi(capsys, "rerun", out, "--to", "160ms", "-o", folder / "less.mp4")
    assert code == 0 and probe(folder / "less.mp4").frame_count == 2, err


def test_default_names_number_themselves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def made(*arguments: Any) -> str:
        code, out, err = kiwi(capsys, *arguments)
        assert code == 0, err
        return out.strip()

    edit = ("edit", "a.mp4", "x", *MODEL, "--frames", 1)
    assert [made(*edit) for _ in range(3)] == ["a-edited.mp4", "a-edited-2.mp4", "a-edited-3.mp4"]
    (folder / "a-edited-4.mp4.json").write_text("{}")  # what is written beside has its own name too
    assert made(*edit, "--sidecar") == "a-edited-5.mp4"
    assert "'a-edited-4.mp4'" in made(*edit, "--dry-run")
    before = (folder / "a-edited-2.mp4").read_bytes()
    assert made(*edit, "--overwrite", "--seed", 3) == "a-edited.mp4"
    assert (folder / "a-edited-2.mp4").read_bytes() == before
    assert [made("rerun", "a-edited.mp4") for _ in range(2)] == ["a-edited-rerun.mp4", "a-edited-rerun-2.mp4"]
    code, _, err = kiwi(capsys, *edit, "-o", "a-edited.mp4")
    assert code == 2 and "output exists: 'a-edited.mp4'" in err  # a name that was given is meant


def test_a_mask_that_reaches_beyond_the_clip_is_said(folder: Path) -> None:
    beyond = fakes.plan(folder / "a.mp4", folder / "o.mp4", mask="40,-8,100,24").notices
    assert "the mask reaches beyond the clip's 64x48: it is cut to 40,0,24,16" in beyond
    assert not any("mask" in line for line in fakes.plan(folder / "a.mp4", folder / "o.mp4", mask="0,0,64,48").notices)


def test_no_time_is_endless(folder: Path) -> None:
    with pytest.raises(UsageError, match="past the end"):
        fakes.plan(folder / "a.mp4", folder / "o.mp4", start=1e12)
