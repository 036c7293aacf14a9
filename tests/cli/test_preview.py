"""`--preview` and `--seeds`: a sheet of moments, what the whole takes, and nothing else."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.editing.moments import moments
from kiwi_cli.editing.windows import Windows
from kiwi_cli.engine.joint import fill_noise
from kiwi_cli.engine.layout import lay_out
from kiwi_cli.engine.noise import NoisePart, shrink
from kiwi_cli.errors import KiwiError
from kiwi_cli.model.sampling import make_noise
from kiwi_cli.video import Size
from kiwi_cli.video.sheets import CAPTION, GAP

from .. import fakes
from ..conftest import CHECKPOINT, make_model
from ..video.media import Sound, make_clip, number_of, picture, psnr
from .terminal import inside

CELL = (320, 200)  # of a clip of 160x100
LINES = 2 * 18 + 2 * GAP


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    return make_clip(tmp_path / "clips" / "clip.mp4", frames=80, size=(160, 100), sound=Sound(seconds=4))


def cells(sheet: Path, rows: int, columns: int, head: int = LINES, captions: bool = True) -> list[list[np.ndarray]]:
    """The pictures of a sheet, row by row; nothing but paper is where no cell is."""
    page = np.asarray(Image.open(sheet))
    found = []
    for row in range(rows):
        top = head + CAPTION + row * (CELL[1] + GAP + CAPTION)
        tiles = [
            page[top : top + CELL[1], left : left + CELL[0]] for left in (c * (CELL[0] + GAP) for c in range(columns))
        ]
        found.append([tile for tile in tiles if (tile != 255).any()])
    return found


def previewed(
    capsys: pytest.CaptureFixture[str], clip: Path, *options: Any, editor: Any = None
) -> tuple[Any, Any, str]:
    editor = editor or fakes.FakeEditor(lambda frames: 255 - frames)
    with fakes.commands_use(editor):
        code, out, err = inside(capsys, "edit", clip, "go", "--model", CHECKPOINT, *options, "--json")
    assert code == 0, err
    return json.loads(out), editor, err


def test_three_moments_above_what_becomes_of_them(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) / 10)  # each look at the clock is a tenth later
    data, editor, err = previewed(capsys, clip, "--preview")
    sheet = clip.with_name("clip-edited-preview.png")
    assert set(clip.parent.iterdir()) == {clip, sheet} and data["preview"] == str(sheet)
    assert data["output"] == str(clip.with_name("clip-edited.mp4"))
    above, below = cells(sheet, 2, 3)
    shown = [moment["frame"] for moment in data["moments"]]
    assert shown == [13, 40, 66] and [number_of(cell) for cell in above] == shown
    assert [number_of(255 - cell) for cell in below] == shown
    assert [moment["time"] for moment in data["moments"]] == pytest.approx([frame / 25 for frame in shown], abs=1e-3)
    assert [len(call["frames"]) for call in editor.seen] == [5, 5, 5]
    assert {call["denoising"].steps for call in editor.seen} == {10} and data["steps"] == 10
    for call, frame in zip(editor.seen, shown, strict=True):
        assert frame in [number_of(each) for each in call["frames"]]
    assert data["estimate"]["seconds"] > 0 and data["estimate"]["steps"] == 50 and "(estimate" in err
    assert data["seconds"]["total"] > 0


def test_it_is_numbered_and_replaced_as_outputs_are(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Path(previewed(capsys, clip, "--preview")[0]["preview"]).name == "clip-edited-preview.png"
    assert Path(previewed(capsys, clip, "--preview")[0]["preview"]).name == "clip-edited-2-preview.png"
    output = clip.with_name("mine.mp4")
    output.write_text("an edit that was made before")
    previewed(capsys, clip, "--preview", "-o", output)
    before = clip.with_name("mine-preview.png").read_bytes()
    with fakes.commands_use(fakes.FakeEditor()):
        code, out, err = inside(capsys, "edit", clip, "go", "--model", CHECKPOINT, "--preview", "-o", output)
        assert (code, out) == (2, "") and "output exists: '" in err and "mine-preview.png" in err
    assert clip.with_name("mine-preview.png").read_bytes() == before
    data, *_ = previewed(capsys, clip, "--preview", "-o", output, "--overwrite", editor=fakes.FakeEditor())
    assert "--overwrite" not in data["next"]
    assert clip.with_name("mine-preview.png").read_bytes() != before
    assert output.read_text() == "an edit that was made before"


def test_seeds_side_by_side_and_the_command_that_takes_one(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, editor, err = previewed(capsys, clip, "--seeds", 4, "--seed", 3, "--size", "96x64", "--start", "1.6")
    sheet = clip.with_name("clip-edited-seeds.png")
    assert set(clip.parent.iterdir()) == {clip, sheet}
    assert data["seeds"] == [3, 4, 5, 6] == [call["denoising"].seed for call in editor.seen]
    first, second = cells(sheet, 2, 3)
    assert (len(first), len(second)) == (3, 2)
    (shown,) = (moment["frame"] for moment in data["moments"])
    assert [number_of(cell) for cell in first[:1]] == [40 + shown]  # from the span's start on
    assert [number_of(255 - cell) for cell in (*first[1:], *second)] == [40 + shown] * 4
    typed = shlex.split(data["next"])
    assert typed[:4] == ["kiwi", "edit", str(clip), "go"] and typed[-2:] == ["--seed", "N"] and data["next"] in err
    code, out, _ = inside(capsys, *typed[1:-1], 5, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and (plan["seed"], plan["working_size"], plan["start"]) == (5, "96x64", 1.6)


def test_the_command_that_comes_next_means_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last digit, and where a name and words begin as options do."""
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "-clip.mp4", frames=12)
    where = ("--model", CHECKPOINT, "--start", "0.0412345678", "--json")
    with fakes.commands_use(fakes.FakeEditor()):
        code, out, err = inside(capsys, "edit", *where, "--seeds", 2, "--", "-clip.mp4", "-go")
    assert code == 0, err
    typed = ["1" if word == "N" else word for word in shlex.split(json.loads(out)["next"])]
    plans = [
        json.loads(inside(capsys, "edit", "--dry-run", *words)[1])
        for words in (("--json", *typed[2:]), (*where, "--seed", 1, "--", "-clip.mp4", "-go"))
    ]
    assert typed[1] == "edit" and plans[0] == plans[1] and plans[0]["start"] == pytest.approx(0.0412345678, abs=1e-9)


def test_seeds_in_all_moments(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, editor, _ = previewed(capsys, clip, "--seeds", 2, "--preview")
    rows = cells(Path(data["preview"]), 3, 3)
    assert [[number_of(cell) for cell in rows[0]]] + [[number_of(255 - cell) for cell in row] for row in rows[1:]] == [
        [13, 40, 66]
    ] * 3
    assert [call["denoising"].seed for call in editor.seen] == [0, 1] * 3


def test_a_picture_and_a_clip_of_two_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture(5, 160, 100)).save(tmp_path / "one.png")
    data, editor, _ = previewed(capsys, tmp_path / "one.png", "--preview")
    ((above,), (below,)) = cells(Path(data["preview"]), 2, 3)
    assert number_of(above) == number_of(255 - below) == 5 and len(editor.seen) == 1
    two = make_clip(tmp_path / "two.mp4", frames=2, size=(160, 100))
    data, editor, _ = previewed(capsys, two, "--preview")
    assert [number_of(cell) for cell in cells(Path(data["preview"]), 2, 3)[0]] == [0, 1]
    assert len(editor.seen) == 1  # both are in it


def test_a_mask_a_reference_and_detail_are_in_it(
    tmp_path: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=5, size=(320, 200))
    Image.fromarray(picture(3, 40, 40)).save(tmp_path / "ref.png")
    arguments = ("ref-edit", clip, "go", "--ref", tmp_path / "ref.png", "--mask", "0,0,160,200", "--detail", "source")
    more = ("--model", CHECKPOINT, "--size", "96x64", "--steps", 2, "--json", "--preview", "--cache", "easy")
    with fakes.loads(loaded):
        code, out, err = inside(capsys, *arguments, *more)
    assert code == 0, err
    data = json.loads(out)
    above, below = cells(Path(data["preview"]), 2, 3)
    for source, edit in zip(above, below, strict=True):
        assert psnr(source[:, 170:], edit[:, 170:]) > 35 > 20 > psnr(source[:, :150], edit[:, :150])
    assert any("detail from the source" in line for line in data["approximations"])


def test_a_clip_of_one_window_is_shown_as_it_will_be(tmp_path: Path, loaded: Any) -> None:
    """In the steps that the edit has, at the size that it has, a preview is the edit: the seed's noise is the same."""
    from kiwi_cli.editing.preview import preview

    source = tmp_path / "frames"
    source.mkdir()
    for number in range(5):
        Image.fromarray(picture(number, 320, 200)).save(source / f"{number}.png")
    about = {"size": "96x64", "steps": 2, "seed": 7, "detail": "model"}
    made = fakes.edit(source, tmp_path / "out", loaded, **about)
    with fakes.loads(loaded):
        seen = preview(fakes.plan(source, tmp_path / "look", **about, preview=True), "kiwi edit")
    below = cells(seen.path, 2, 3)[1]
    for moment, cell in zip(seen.moments, below, strict=True):
        assert np.array_equal(cell, np.asarray(Image.open(sorted(made.output.iterdir())[moment.frame])))


# -- which moments, and their noise -------------------------------------------------------------------------------


def planned(tmp_path: Path, shots: tuple[int, ...], length: int = 9, **more: Any) -> Any:
    clip = make_clip(tmp_path / "shots.mp4", frames=sum(shots), size=(32, 32))
    plan = fakes.plan(clip, tmp_path / "out.mp4", preview=True, size="64x64", frames=sum(shots), **more)
    layout = lay_out(shots, 1 + (length - 1) // 4, 0, "frame", 1)
    return replace(plan, windows=Windows(length, len(layout.windows), layout=layout, contexts="shot"))


@pytest.mark.parametrize(
    ("shots", "frames"),
    [
        ((30, 12), [5, 15, 25, 32, 36, 38]),
        ((20,) * 5, [10, 30, 50, 70, 90]),
        ((9,) * 13, [4, 14, 24, 34, 43, 53, 63, 73, 82, 92, 102, 112]),
        ((1, 1, 1), [0, 1, 2]),
    ],
)
def test_moments_of_shots(tmp_path: Path, shots: tuple[int, ...], frames: list[int]) -> None:
    found = moments(planned(tmp_path, shots), Size(64, 64))
    assert [moment.frame for moment in found] == frames
    ends = np.cumsum(shots)
    for moment in found:
        start = ends[moment.shot] - shots[moment.shot]
        assert start <= moment.first <= moment.frame < moment.first + moment.span.frame_count <= ends[moment.shot]
        assert (moment.first - start) % 4 == 0 and moment.span.frame_count == min(5, shots[moment.shot])


def test_seeds_alone_show_the_longest_shot(tmp_path: Path) -> None:
    plan = planned(tmp_path, (12, 30, 5))
    request = plan.request.changed(preview=False, seeds=4)
    (moment,) = moments(replace(plan, request=request), Size(64, 64))
    assert (moment.shot, moment.frame) == (1, 27)


def test_a_moment_begins_with_the_noise_of_its_place() -> None:
    shape, size = (3, 4, 6), Size(96, 64)
    whole = make_noise((1, 3, 9, 4, 6), 5)
    part = NoisePart(9, 4, size, size)
    assert torch.equal(part((1, 3, 2, 4, 6), 5), whole[:, :, 4:6])
    for layout, first in (
        (lay_out((33, 17), 3, 0, "frame", 1), 2),
        (lay_out((17, 33), 2, 0, "frame", 5, restarts=True), 3),
    ):
        table = torch.zeros(layout.rows, 1, *shape)
        fill_noise(table, layout, 5)
        noise = NoisePart(9, first, size, size, layout, 1)((1, 3, 2, 4, 6), 5)[0].transpose(0, 1)
        rows = table[layout.shots[1].start :, 0]
        begin = 0 if layout.noise_period is not None else first
        assert torch.equal(noise[1], rows[first + 1]) and torch.equal(noise[0], rows[begin])


@pytest.mark.parametrize(("length", "to"), [(80, 52), (44, 30), (7, 7), (5, 2)])
def test_noise_of_a_smaller_size_is_as_white(length: int, to: int) -> None:
    matrix = shrink(length, to)
    assert torch.allclose(matrix @ matrix.T, torch.eye(to), atol=1e-5)
    ramp = matrix @ torch.linspace(0, 1, length)
    assert (ramp.diff() > 0).all()  # neighbours stay neighbours


def test_smaller_noise_looks_like_the_larger() -> None:
    part, same = (NoisePart(1, 0, Size(640, 384), size) for size in (Size(320, 192), Size(640, 384)))
    small, large = part((1, 2, 1, 12, 20), 3)[0, 0, 0], same((1, 2, 1, 24, 40), 3)[0, 0, 0]
    averaged = large.reshape(12, 2, 20, 2).mean((1, 3)) * 2
    assert torch.allclose(small, averaged, atol=1e-5)


# -- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--seeds", 0), "--seeds is a number from 1 to 16, not 0"),
        (("--seeds", -1), "not -1"),
        (("--seeds", 17), "not 17"),
        (("--seeds", 4, "--seed", 2**64 - 2), "seeds end at"),
        (("--preview", "--dry-run"), "--preview does not go together with --dry-run"),
        (("--seeds", 2, "--dry-run"), "--seeds does not go together with --dry-run"),
        (("--preview", "--calibrate-cache", "ratios.json"), "--calibrate-cache"),
        (("--preview", "--editor", "command:cp {input} {output}"), "Kiwi's own models"),
        (("--preview", "--start", 100), "start is past the end"),
        (("--preview", "-o", "nowhere/out.mp4"), "nowhere"),
        (("--preview", "-o", "out.xyz"), "xyz"),
    ],
)
def test_what_cannot_be_previewed(
    options: tuple[Any, ...],
    words: str,
    clip: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(clip.parent)
    model = () if "--editor" in options else ("--model", CHECKPOINT)
    with fakes.commands_use(fakes.FakeEditor()) as editor:
        code, out, err = inside(capsys, "edit", clip, "go", *model, *options)
    assert (code, out) == (2, "") and words in err and "hint:" in err and not editor.seen
    assert list(clip.parent.iterdir()) == [clip]


def test_several_inputs_are_not_previewed(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (("--preview",), ("--seeds", 2)):
        code, _, err = inside(capsys, "edit", clip, "-i", "go", "--out-dir", clip.parent / "out", *option)
        assert code == 2 and f"{option[0]} is for one input" in err
    table = clip.with_name("jobs.jsonl")
    table.write_text(json.dumps({"input": "clip.mp4", "instruction": "go", "preview": True}))
    code, _, err = inside(capsys, "batch", table, "--out-dir", clip.parent / "out")
    assert code == 2 and "preview" in err


def test_what_fails_leaves_nothing(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fakes.commands_use(fakes.FailingEditor(KiwiError("it broke", "mend it"))):
        code, out, err = inside(capsys, "edit", clip, "go", "--model", CHECKPOINT, "--preview")
    assert (code, out) == (1, "") and "it broke" in err and list(clip.parent.iterdir()) == [clip]


def test_a_plan_of_a_preview_is_not_run_as_an_edit(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(KiwiError, match="one of a preview"):
        fakes.edit(clip, tmp_path / "out.mp4", preview=True)
    assert not (tmp_path / "out.mp4").exists()


def test_a_model_of_its_own_length_is_given_that(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "nine", working={"pixels": 4096, "frames": 9, "steps": 2})
    data, editor, _ = previewed(capsys, clip, "--preview", "--model", model)
    assert [len(call["frames"]) for call in editor.seen] == [9] * 3 and data["steps"] == 2
    assert data["estimate"]["steps"] == 2
    for call, moment in zip(editor.seen, data["moments"], strict=True):
        assert call["frames"].shape[1:3] == tuple(map(int, data["working_size"].split("x")))[::-1]
        assert moment["frame"] in [number_of(frame) for frame in call["frames"]]
