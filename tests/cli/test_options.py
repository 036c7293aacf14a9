"""What the options of `kiwi edit` do, on the tiny checkpoint or with a model that changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from kiwi_cli.cli import options
from kiwi_cli.editing import request
from kiwi_cli.editing.tasks import HINTS, final_instruction
from kiwi_cli.errors import UsageError
from kiwi_cli.video import probe

from .. import fakes
from ..video.media import Sound, make_clip, picture
from .terminal import FAST, inside


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", frames=12, sound=Sound(seconds=0.48))


@pytest.mark.parametrize("task", HINTS)
def test_a_kind_of_edit_adds_its_sentence(task: str) -> None:
    assert final_instruction(" make it\nsnowy ", task) == f"make it snowy. {HINTS[task]}"
    assert final_instruction("really?", task).startswith("really? ")


def test_an_instruction_is_left_alone_when_raw() -> None:
    assert final_instruction(" make  it\nsnowy ", raw=True) == " make  it\nsnowy "
    for text, task, raw in ((" ", None, False), ("x", "other", False), ("x", "style", True)):
        with pytest.raises(UsageError):
            final_instruction(text, task, raw)


def test_the_final_instruction_reaches_the_model_and_the_terminal(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fakes.FakeEditor()
    fakes.edit(clip, clip.with_name("a.mp4"), model, task="remove")
    assert model.seen[0]["instruction"] == f"as it is. {HINTS['remove']}"
    code, out, _ = inside(capsys, "edit", clip, "remove the dog", "--task", "remove", *FAST, "--dry-run")
    assert code == 0 and f"remove the dog. {HINTS['remove']}" in out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("4", 4), ("4.5", 4.5), ("1:02.5", 62.5), ("0:01:02", 62), ("-3", -3), ("1:00:00", 3600)),
        *(
            ("500ms", 0.5),
            ("1s", 1),
            ("1.5 s", 1.5),
            ("1m30s", 90),
            ("2min", 120),
            ("1h", 3600),
            ("1h2m3s4ms", 3723.004),
            ("2 hours 5 minutes", 7500),
            ("100 msec", 0.1),
        ),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert request.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "1d", "nan", "1::2", "ms", "1m2", "9" * 400, "9" * 400 + "s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        request.parse_time(text)


def test_compare_may_stand_without_a_value() -> None:
    assert options.expand(["edit", "--compare", "a.mp4", "x"]) == ["edit", "--compare", "side", "a.mp4", "x"]
    assert options.expand(["edit", "--compare", "wipe"]) == ["edit", "--compare", "wipe"]
    assert options.expand(["edit", "--compare"]) == ["edit", "--compare", "side"]
    assert options.expand(["edit", "--", "--compare"]) == ["edit", "--", "--compare"]


def test_comparison_sheet_and_sidecar_lie_beside_the_output(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("edit", clip, "x", *FAST, "--frames", 5, "--compare", "--sheet", "--sidecar", "--json", "-q")
    code, out, err = inside(capsys, *arguments)
    assert code == 0, err
    data = json.loads(out)
    names = {kind: Path(data[kind]).name for kind in ("output", "comparison", "sheet", "sidecar")}
    assert names == {
        "output": "clip-edited.mp4",
        "comparison": "clip-edited-compare.mp4",
        "sheet": "clip-edited-sheet.png",
        "sidecar": "clip-edited.mp4.json",
    }
    compared = probe(data["comparison"])
    assert (compared.size, compared.frame_count, len(compared.audio)) == ((192, 64), 5, 1)
    with Image.open(data["sheet"]) as sheet:
        assert sheet.width > sheet.height > 64
    for kind in ("output", "comparison", "sheet", "sidecar"):
        for path in set(clip.parent.iterdir()) - {clip}:
            path.unlink()
        Path(data[kind]).write_text("somebody's")
        code, out, err = inside(capsys, *arguments, "-o", data["output"])
        assert (code, out) == (2, "") and f"output exists: '{data[kind]}'" in err
        assert {path.name for path in clip.parent.iterdir()} == {"clip.mp4", names[kind]}


def test_a_sheet_of_a_picture_in_a_folder(tmp_path: Path) -> None:
    """The frame has a number for its name, so that the folder can be read."""
    make_clip(tmp_path / "clip.mp4", frames=1, size=(64, 48))
    Image.fromarray(picture(1, 64, 48)).save(tmp_path / "photo.png")
    for name in ("photo.png", "clip.mp4"):
        result = fakes.edit(tmp_path / name, tmp_path / f"{name[:4]}-out", sheet=True)
        assert [path.name for path in sorted(result.output.glob("*.png"))] == ["000001.png"]
        assert probe(result.output).frame_count == 1 and (tmp_path / f"{name[:4]}-out-sheet.png").is_file()


def test_a_wipe_has_the_clips_own_size(clip: Path) -> None:
    result = fakes.edit(clip, clip.with_name("out.mp4"), compare="wipe", frames=3)
    assert probe(clip.with_name("out-compare.mp4")).size == result.size


def test_sound_codec_and_quality(clip: Path) -> None:
    result = fakes.edit(clip, clip.with_name("out.mkv"), sound=False, codec="ffv1", quality="lossless")
    after = probe(result.output)
    assert after.audio == () and after.codec == "ffv1"


def test_a_revision_is_for_the_hub(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "edit", clip, "x", *FAST, "--revision", "main")
    assert code == 2 and "--revision" in err


def test_lora_files_are_merged_and_recorded(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    style = clip.with_name("style.safetensors")
    module = "blocks.0.attn1.to_q"
    save_file({f"{module}.lora_A.weight": torch.ones(2, 48), f"{module}.lora_B.weight": torch.ones(48, 2)}, style)
    arguments = ("edit", clip, "x", *FAST, "--frames", 1, "--json", "-q")
    code, out, err = inside(capsys, *arguments, "-o", clip.with_name("a.png"), "--lora", f"{style}:0.5")
    assert code == 0, err
    assert json.loads(out)["settings"]["loras"][0]["weight"] == 0.5
    code, _, err = inside(
        capsys, "rerun", clip.with_name("a.png"), "--lora", f"{style}:0", "-o", clip.with_name("b.png")
    )
    assert code == 0, err
    with Image.open(clip.with_name("a.png")) as a, Image.open(clip.with_name("b.png")) as b:
        assert list(a.getdata()) != list(b.getdata())
    for spec, code, words in (("no.safetensors", 2, "LoRA not found"), ("style.safetensors:x", 2, "not a LoRA")):
        got, out, err = inside(capsys, *arguments, "-o", clip.with_name("c.png"), "--lora", spec)
        assert (got, out) == (code, "") and words in err


def test_verbose_gives_times_and_memory(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "edit", clip, "x", *FAST, "--frames", 1, "-o", clip.with_name("out.png"), "-v")
    assert code == 0 and "peak memory, resident" in err and "denoise        " in err


def test_a_job_takes_a_plan_and_a_model(clip: Path) -> None:
    """The Python side of the command: what `kiwi bench` and other tools build on."""
    events = fakes.Listener()
    result = fakes.edit(clip, clip.with_name("out.mp4"), events=events)
    assert result.frames == 12 and events.progress[0] == ("read", 0, 1)


def test_completion_knows_models_and_choices() -> None:
    from kiwi_cli.weights.catalog import complete_names

    assert options.choices(*request.FITS)("p") == ["pad"]
    assert [name for name, _ in complete_names("ref")] == ["reference-only"]
