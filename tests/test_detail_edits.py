"""`--detail` of an edit: the source's own detail in the result, at full size; which it is, and that it is said.

`Blurring` stands for an editor: its autoencoder only blurs, so that the truth of an edit is known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageFilter

from kiwi_cli.bench.tiny.quality import edge_correlation
from kiwi_cli.editing import record
from kiwi_cli.editing.detail import Versions
from kiwi_cli.editing.session import Session
from kiwi_cli.editors.base import Denoising, Edited, Frames
from kiwi_cli.editors.kiwi import KiwiEditor
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.engine.part_rows import PartRows
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.video import probe
from kiwi_cli.video.detail import DetailSettings, transfer
from kiwi_cli.weights.settings import read_settings

from . import fakes
from .cli.terminal import CLIP, frames_of, inside
from .conftest import CHECKPOINT, make_model, random_frames
from .video.media import picture, psnr

SIZE, WORKING = (192, 128), "96x64"
SHARP = 30  # dB
SOFT = 26
DETAILS = ("model", "source")
SOURCE = ("--model", CHECKPOINT, "--size", WORKING, "--detail", "source")


def textured(number: int) -> np.ndarray:
    """(H, W, 3) uint8: colours that move, and a fine pattern on them that moves along."""
    grain = np.random.default_rng(5).normal(0, 22, SIZE[::-1])
    fine = np.roll(grain, number, axis=1)[..., None]
    return np.clip(0.7 * picture(number, *SIZE) + 38 + fine, 0, 255).round().astype(np.uint8)


def blurred(frames: np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1))) for frame in frames])


class Blurring(fakes.FakeEditor):
    """Gives frames back blurred, after what `change` makes of them."""

    gives_round_trip = True

    def edit(self, frames: np.ndarray, *arguments: Any, **options: Any) -> Edited:
        soft = blurred(frames)
        done = super().edit(soft, *arguments, **options)
        return replace(done, round_trip=self._one_by_one(soft)) if options["round_trip"] else done

    def _one_by_one(self, frames: np.ndarray) -> Frames:
        for frame in frames:
            yield frame[None]


def negative(frames: np.ndarray) -> np.ndarray:
    return 255 - frames


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve numbered pictures."""
    (tmp_path / "clip").mkdir()
    for number in range(12):
        Image.fromarray(textured(number)).save(tmp_path / "clip" / f"{number:04d}.png")
    return tmp_path / "clip"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[np.ndarray, dict[str, Any], str]]:
    """A command with a blurring editor: its frames, its JSON object, and what it said."""

    def command(editor: fakes.FakeEditor, *words: Any, output: str = "out") -> tuple[np.ndarray, dict[str, Any], str]:
        with fakes.commands_use(editor):
            code, stdout, err = inside(capsys, *words, "-o", tmp_path / output, "--overwrite", "--json")
        assert code == 0, err
        return pictures(tmp_path / output), json.loads(stdout), err

    return command


def pictures(path: Path) -> np.ndarray:
    files = sorted(path.glob("*.png")) if path.is_dir() else [path]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


SOURCES = np.stack([textured(number) for number in range(12)])


# -- what comes out ----------------------------------------------------------------------------------------------


def test_an_edit_keeps_the_sources_detail(run: Callable[..., Any], clip: Path) -> None:
    """A negative is nearly the sharp source's own; scaled up from the model it is a blur."""
    sharp, data, err = run(Blurring(negative), "edit", clip, "x", *SOURCE)
    soft, plain, _ = run(Blurring(negative), "edit", clip, "x", *SOURCE[:-1], "model")
    assert sharp.shape == soft.shape == SOURCES.shape
    for number, (source, one, other) in enumerate(zip(SOURCES, sharp, soft, strict=True)):
        assert psnr(255 - source, one) > SHARP and psnr(255 - source, other) < SOFT, number
    assert data["settings"]["detail"] == "source" and plain["settings"]["detail"] == "model"
    assert [line for line in data["approximations"] if "detail" in line and "NOT exact" in line]
    assert "note: detail from the source: NOT exact" in err and plain["approximations"] == []


@pytest.mark.parametrize("length", [5, 7, 12])
def test_windows_stay_in_step(run: Callable[..., Any], clip: Path, tmp_path: Path, length: int) -> None:
    """The last window reaches back over frames that were given already: no source is met by another frame's edit.
    What is not changed is the source, exactly."""
    model = make_model(tmp_path / "model", working={"frames": length, "steps": 1})
    options = ("--model", model, "--size", WORKING, "--detail", "source")
    unchanged, data, _ = run(Blurring(), "edit", clip, "x", *options)
    assert np.array_equal(unchanged, SOURCES)
    assert (data["windows"] or {}).get("count") == (math.ceil(12 / length) if length < 12 else None)
    turned, _, _ = run(Blurring(negative), "edit", clip, "x", *options)
    assert min(psnr(255 - source, one) for source, one in zip(SOURCES, turned, strict=True)) > SHARP


def test_a_mask_and_the_rest_of_the_clip(run: Callable[..., Any], clip: Path) -> None:
    words = ("--mask", "16,8,120,96", "--start", "0.1", "--duration", "0.21", "--keep-rest")
    made, data, _ = run(Blurring(negative), "edit", clip, "x", *SOURCE, *words)
    inside_mask = np.zeros(SIZE[::-1], bool)
    inside_mask[8:104, 16:136] = True
    changed = [number for number in range(12) if not np.array_equal(made[number], SOURCES[number])]
    assert len(changed) == data["settings"]["frames"] < 12 and changed == list(range(changed[0], changed[-1] + 1))
    for number in changed:
        assert np.array_equal(made[number][~inside_mask], SOURCES[number][~inside_mask])
        assert psnr(255 - SOURCES[number][inside_mask], made[number][inside_mask]) > SHARP


@pytest.mark.parametrize(("fit", "shown"), [("crop", slice(32, 160)), ("pad", slice(None))])
def test_crop_and_pad(run: Callable[..., Any], clip: Path, fit: str, shown: slice) -> None:
    """A square: of a crop the middle is edited, and the edge stays; bars are cut off."""
    made, _, _ = run(Blurring(negative), "edit", clip, "x", *SOURCE, "--size", "96x96", "--fit", fit)
    assert made.shape == SOURCES.shape and psnr(255 - SOURCES[:, :, shown], made[:, :, shown]) > SHARP - 2
    edge = np.ones(SIZE[0], bool)
    edge[shown] = False
    assert np.array_equal(made[:, :, edge], SOURCES[:, :, edge])


def test_fewer_frames_for_the_model(run: Callable[..., Any], clip: Path) -> None:
    """Each edited frame stands until the next, as without detail."""
    made, data, _ = run(Blurring(negative), "edit", clip, "x", *SOURCE, "--fps", "12")
    assert len(made) == 12 and data["settings"]["frames"] == 6
    for number in range(12):
        assert psnr(255 - SOURCES[number // 2 * 2], made[number]) > SHARP


def test_a_picture_and_a_reference(run: Callable[..., Any], clip: Path) -> None:
    still = clip / "0003.png"
    made, _, _ = run(Blurring(negative), "ref-edit", still, "x", "--ref", still, *SOURCE, output="out.png")
    assert psnr(255 - SOURCES[3], made[0]) > SHARP


def test_a_comparison_shows_the_same(run: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    made, data, _ = run(Blurring(negative), "edit", clip, "x", *SOURCE, "--compare")
    beside = pictures(Path(data["comparison"]))
    assert beside.shape[2] == 2 * SIZE[0]
    labels = 30  # pixels at the top
    assert np.array_equal(beside[:, labels:, : SIZE[0]], SOURCES[:, labels:])
    assert np.array_equal(beside[:, labels:, SIZE[0] :], made[:, labels:])


@pytest.mark.slow
def test_the_embedded_model_takes_the_sources_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By itself: a clip turns to night with its own size, sound and edges, in H.264 as it is written by default."""
    source = np.stack(frames_of(CLIP)[:10])
    edges = {}
    for detail in ((), ("--detail", "model")):
        out = tmp_path / f"{len(detail)}.mp4"
        words = ("turn it into a night scene", "--model", "tiny", "--device", "cpu", "--duration", 0.41)
        code, stdout, err = inside(capsys, "edit", CLIP, *words, *detail, "-o", out, "--json")
        assert code == 0, err
        before, after, result = probe(CLIP), probe(out), np.stack(frames_of(out))
        assert (after.size, after.frame_count, len(after.audio)) == (before.size, 10, len(before.audio)) and after.audio
        assert float(after.duration) == pytest.approx(10 / 24, abs=0.01)
        assert result.mean() < 0.5 * source.mean()
        edges[json.loads(stdout)["settings"]["detail"]] = edge_correlation(result, source)
    assert edges["source"] >= 0.9 and edges["model"] < 0.5, edges


@pytest.mark.parametrize("transfer", [1, 16])
def test_ten_bits_stay_ten(run: Callable[..., Any], tmp_path: Path, transfer: int) -> None:
    """What is not changed is the clip's own samples; an edit has levels between those of 8 bits, in HDR too."""
    path = tmp_path / "deep.mkv"
    ramp = np.linspace(300, 700, SIZE[0] * 2)[None] + np.arange(SIZE[1])[:, None] / 3
    stored = [ramp[:, ::2].astype(np.uint16), *(np.full((SIZE[1], SIZE[0]), 512, np.uint16) for _ in range(2))]
    wide = 9 if transfer == 16 else 1
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=SIZE[0], height=SIZE[1], options={"level": "3"})
        stream.pix_fmt, stream.codec_context.color_trc, stream.codec_context.color_range = "yuv444p10le", transfer, 1
        stream.codec_context.colorspace, stream.codec_context.color_primaries = wide, wide
        for _ in range(3):
            frame = av.VideoFrame(*SIZE, "yuv444p10le")
            frame.color_trc, frame.color_range = transfer, 1
            frame.colorspace, frame.color_primaries = wide, wide
            for plane, values in zip(frame.planes, stored, strict=True):
                np.frombuffer(memoryview(plane), np.uint16).reshape(SIZE[1], -1)[:, : SIZE[0]] = values
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    def luma(change: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
        out = tmp_path / "out.mkv"
        options = {"size": WORKING, "detail": "source", "codec": "ffv1", "model": str(CHECKPOINT), "overwrite": True}
        fakes.edit(path, out, Blurring(change), **options)
        with av.open(str(out)) as container:
            plane = next(container.decode(video=0)).planes[0]
            return np.frombuffer(memoryview(plane), np.uint16).reshape(SIZE[1], -1)[:, : SIZE[0]].copy()

    assert np.array_equal(luma(None), stored[0])
    darker = luma(lambda frames: (frames * 0.8).astype(np.uint8))
    assert darker.mean() < stored[0].mean() - 20
    assert len(np.unique(darker & 3)) == 4
    steps = np.diff(darker[64].astype(int))
    assert ((steps >= 1) & (steps <= 3)).mean() > 0.9  # a ramp still; in 8 bits steps are 0 or 4


# -- which it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detail", "size", "asks", "expected", "why"),
    [
        ("auto", WORKING, False, "source", "the clip is larger than what the model works at"),
        ("auto", "192x128", False, "model", ""),
        ("auto", "256x192", False, "model", ""),
        ("auto", "160x96", False, "source", "the clip is larger than what the model works at"),
        ("auto", "192x128", True, "source", "the model asks for it"),
        ("source", "192x128", False, "source", "detail from the source: NOT exact"),
        ("model", WORKING, True, "model", ""),
    ],
)
def test_auto(clip: Path, tmp_path: Path, detail: str, size: str, asks: bool, expected: str, why: str) -> None:
    model = make_model(tmp_path / "model", **({"detail": {"steady": True, "trust": 1}} if asks else {}))
    plan = fakes.plan(clip, tmp_path / "out", model=str(model), size=size, detail=detail)
    said = [notice for notice in plan.notices if "detail" in notice]
    assert plan.detail == expected and (plan.settings.steady, plan.settings.trust) == (
        (True, 1) if asks else (False, None)
    )
    assert (len(said) == 1 and why in said[0] and "NOT exact" in said[0]) if why else not said


def test_lines_that_are_only_rounded_off_are_none_that_are_lost(tmp_path: Path) -> None:
    """As 720 lines to 704: the model's result is as fine as the clip, and exact."""
    Image.fromarray(picture(0, 192, 144)).save(tmp_path / "in.png")
    plan = fakes.plan(tmp_path / "in.png", tmp_path / "out.png", size="192x128")
    assert plan.detail == "model"
    assert fakes.plan(tmp_path / "in.png", tmp_path / "out.png", size="160x128").detail == "source"


def test_the_second_decoding_is_counted(clip: Path, tmp_path: Path) -> None:
    """What a dry run says of the work: the source is decoded beside the edit."""
    from kiwi_cli.cli import dry_run

    found = {how: dry_run.data(fakes.plan(clip, tmp_path / "out", size=WORKING, detail=how)) for how in DETAILS}
    less, more = (found[how]["estimate"]["tflop"] for how in DETAILS)
    assert less < more < 2 * less


def test_an_editor_without_a_round_trip(
    run: Callable[..., Any], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("edit", clip, "x", "--model", CHECKPOINT, "--size", WORKING)
    _, data, err = run(fakes.FakeEditor(negative), *words)
    assert data["settings"]["detail"] == "model" and data["approximations"] == []
    assert "does not give the source back beside the edit" in err
    with fakes.commands_use(fakes.FakeEditor(negative)):
        code, _, err = inside(capsys, *words, "--detail", "source", "-o", tmp_path / "other")
    assert code == 2 and "gives no such frames" in err and "--detail model" in err
    assert not (tmp_path / "other").exists()


def test_a_loaded_editor_without_one_is_refused(clip: Path, tmp_path: Path) -> None:
    plan = fakes.plan(clip, tmp_path / "out", size=WORKING)
    editor = fakes.FakeEditor()
    editor.choice = plan.request.choice
    assert plan.detail == "source"
    with pytest.raises(UsageError, match="does not give the source back"):
        Session(editor).run(plan)


def test_words_that_are_none(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "edit", clip, "x", "--detail", "sharp")
    assert code == 2 and "'sharp'" in err and "auto, source or model" in err


@pytest.mark.parametrize(
    "value", [True, "source", {"steady": 1}, {"still": True}, {"trust": 0}, {"trust": True}, {"trust": 1.5}, None]
)
def test_a_key_that_says_nothing(tmp_path: Path, value: Any) -> None:
    model = make_model(tmp_path / "model", detail=value)
    with pytest.raises(CheckpointError, match="detail"):
        read_settings(model)


# -- made again --------------------------------------------------------------------------------------------------


def test_it_is_recorded_and_made_again(run: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    made, data, _ = run(Blurring(negative), "edit", clip, "x", *SOURCE[:-2], "--sidecar")
    again, _, _ = run(Blurring(negative), "rerun", data["sidecar"], output="again")
    assert np.array_equal(made, again)
    soft, other, _ = run(Blurring(negative), "rerun", data["sidecar"], "--detail", "model", output="soft")
    assert other["settings"]["detail"] == "model" and psnr(255 - SOURCES, soft) < SOFT


def test_files_from_before_have_the_models_detail(run: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    _, data, _ = run(Blurring(negative), "edit", clip, "x", *SOURCE)
    settings = {name: value for name, value in data["settings"].items() if name != "detail"}
    assert settings["format"] == 1
    assert record.request_from(settings, tmp_path).detail == "model"


# -- kiwi's own editor -------------------------------------------------------------------------------------------


def test_the_round_trip_is_the_source_through_the_autoencoder(loaded: Any) -> None:
    frames, reports = random_frames(6), []
    editor = KiwiEditor(loaded, ModelChoice(str(CHECKPOINT)))
    how = {"denoising": Denoising(steps=2, seed=3)}
    plain = np.concatenate(list(editor.edit(frames, "x", **how).frames))
    done = editor.edit(frames, "x", **how, round_trip=True, progress=lambda *report: reports.append(report))
    assert done.round_trip is not None
    given = np.concatenate(list(done.round_trip))
    edited = np.concatenate(list(done.frames))
    expected = np.concatenate(list(loaded.decode(loaded.encode_source(frames), len(frames))))
    assert np.array_equal(given, expected) and np.array_equal(edited, plain)
    assert not np.array_equal(given, edited) and len(given) == 6
    decoding = [report[1:] for report in reports if report[0] == "decode"]
    assert decoding == [(number, 6) for number in range(1, 7)]  # three latents, twice


@pytest.mark.parametrize("steady", [False, True])
def test_a_part_in_other_words_is_as_sharp_where_it_comes_in_and_goes(steady: bool) -> None:
    """A part of 16 frames, dark, in a bright clip: each frame is the dissolve of what both are with their detail."""
    sources = [textured(number) for number in range(30)]
    trips = [
        np.asarray(Image.fromarray(frame).resize((96, 64)).filter(ImageFilter.GaussianBlur(1))) for frame in sources
    ]
    bright, dark = (
        [(frame * scale + shift).astype(np.uint8) for frame in trips] for scale, shift in ((0.4, 150), (0.3, 0))
    )
    part, settings = PartRows(7, 23, (), (), (4, 4)), DetailSettings(steady=steady)
    versions = Versions(settings, "cpu", [part])
    results: list[np.ndarray] = []
    for number, trip in enumerate(trips):
        other = dark[number] if part.first <= number < part.last else bright[number]
        versions.add([bright[number], other], trip)
        if versions.due:
            results.append(versions.result(sources[len(results)]))
    while versions.waiting:
        results.append(versions.result(sources[len(results)]))
    assert len(results) == 30
    whole = list(transfer(zip(bright, trips, sources, strict=True), settings))
    own = list(transfer(zip(dark[7:23], trips[7:23], sources[7:23], strict=True), settings))
    expected = [*whole[:7], *(part.mixed(n, whole[n], own[n - 7]) for n in range(7, 23)), *whole[23:]]
    np.testing.assert_array_equal(results, expected)
    for number, result in enumerate(results):
        assert edge_correlation(result[None], sources[number][None]) > 0.9
