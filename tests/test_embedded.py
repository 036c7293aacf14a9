"""Models with a size and a length of their own, and models in the package: found, said, and used as they say."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kiwi_cli.base.events import Events
from kiwi_cli.editing import doctor, windows
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editors.base import Found
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import CheckpointError, KiwiError
from kiwi_cli.video import probe
from kiwi_cli.weights import embedded, hub, names
from kiwi_cli.weights.catalog import VARIANTS, find_variant
from kiwi_cli.weights.hub import locate
from kiwi_cli.weights.settings import ModelSettings, read_settings

from . import fakes
from .cli.terminal import CLIP, REFERENCE, frames_of, inside
from .conftest import CHECKPOINT, make_model, random_frames
from .video.media import make_clip

WORKING = {"pixels": 6144, "frames": 17, "steps": 2}
OFFERS = ["black and white", "background from a reference"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the package's own model. Do not change it."""
    return make_model(tmp_path_factory.mktemp("package") / "tiny", working=WORKING, offers=OFFERS)


@pytest.fixture
def installed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This installation has it, and no network."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(embedded, "folder_of", lambda variant: tiny)
    monkeypatch.setattr("socket.socket.connect", refuse)
    return tiny


@pytest.fixture
def lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "folder_of", lambda variant: tmp_path / "nowhere")


# -- the working size -------------------------------------------------------------------------------------------


def test_a_released_model_says_nothing_of_its_own() -> None:
    assert read_settings(CHECKPOINT) == ModelSettings()


@pytest.mark.parametrize(
    "index",
    [
        {"working": {"pixels": 0}},
        {"working": {"pixels": "6144"}},
        {"working": {"frames": 17.0}},
        {"working": {"frames": True}},
        {"working": {"width": 96}},
        {"working": {"pictures": 1}},
        {"working": [6144]},
        {"offers": "style"},
        {"offers": [""]},
    ],
)
def test_settings_that_say_nothing_usable(index: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=next(iter(index))):
        read_settings(make_model(tmp_path / "model", **index))


@pytest.mark.parametrize(
    ("working", "said"),
    [({"frames": 5, "least": 9}, "'least' of 9.*its 'frames', 5"), ({"least": 1}, "'least' of 1.*which is not there")],
)
def test_the_least_is_no_more_than_a_model_takes(working: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        read_settings(make_model(tmp_path / "model", working=working))


@pytest.mark.parametrize(("frames", "least", "given"), [(2, 5, 5), (9, 5, 9), (2, None, 17), (9, None, 17)])
def test_a_short_clip_is_filled_up_to_the_least_that_a_model_takes(
    frames: int, least: int | None, given: int, tmp_path: Path
) -> None:
    working = {"pixels": 4096, "frames": 17, "steps": 2} | ({} if least is None else {"least": least})
    model = make_model(tmp_path / "model", working=working)
    plan = fakes.plan(CLIP, tmp_path / "out.mp4", model=str(model), frames=frames)
    assert (plan.span.frame_count, plan.at_once) == (frames, given)


def test_the_multiple_is_the_models_own(tmp_path: Path) -> None:
    """A VAE that reduces by 8 allows multiples of 16."""
    import torch

    from kiwi_cli import KiwiPipeline
    from kiwi_cli.engine.random_model import random_pipeline
    from kiwi_cli.train.exports import write_checkpoint

    from .train.test_exports import make_vae

    pipe = random_pipeline("small", torch.device("cpu"), torch.float32)
    parts = {name: getattr(pipe, name) for name in ("transformer", "mllm_encoder", "source_embedder", "ref_embedder")}
    vae = make_vae(dim_mult=[1, 2, 2], temperal_downsample=[True, True], patch_size=2)
    write_checkpoint(
        tmp_path / "model",
        **parts,
        vae=vae,
        tokenizer=pipe.tokenizer,
        qwen_config=pipe.mllm_encoder.config.qwen_config,
        extra={"working": {"pixels": 48 * 32}},
    )
    settings = read_settings(tmp_path / "model")
    loaded = KiwiPipeline.from_pretrained(str(tmp_path / "model"), device="cpu", dtype="float32")
    assert settings.multiple == loaded.size_multiple == 16
    source = make_clip(tmp_path / "clip.mp4", frames=2, size=(96, 64))
    work = fakes.plan(source, tmp_path / "out.mp4", instruction="x", model=str(tmp_path / "model"))
    assert work.size == (48, 32)
    assert loaded.edit(random_frames(5, 32, 48), "x", steps=1).shape == (5, 32, 48, 3)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [((480, 270), "96x64"), ((270, 480), "64x96"), ((300, 300), "64x64"), ((48, 32), "96x64"), ((900, 60), "192x32")],
)
def test_the_area_in_the_clips_own_shape(
    clip: tuple[int, int], expected: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "clip.mp4", frames=2, size=clip)
    work = fakes.plan(source, tmp_path / "out.mp4", instruction="x", model=str(tiny), detail="model")
    assert str(work.size) == expected
    softer = any("softer than the source" in notice for notice in work.notices)
    assert softer == (clip != (48, 32))


@pytest.mark.slow
def test_the_whole_clip_comes_back_and_it_is_said_how(
    installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    code, stdout, err = inside(capsys, "edit", CLIP, "make it black and white", "--model", "tiny", "-o", out, "--json")
    assert code == 0, err
    data = json.loads(stdout)
    soft = "the model works at 96x64; the result is scaled to 480x270"
    cut = "the clip is edited in 4 windows of 17 frames, denoised together"
    for notice in (soft, cut):
        assert f"note: {notice}" in err and notice in data["notices"]
    assert "trained for no more than: black and white, background from a reference" in err
    assert (data["frames"], data["width"], data["height"], data["working_size"]) == (48, 480, 270, "96x64")
    assert data["windows"] == {"kind": "joint", "count": 4, "frames": 17, "shots": [48]}
    settings = data["settings"]
    assert settings["worked"] == "at 96x64, scaled to 480x270; in 4 windows of 17 frames, denoised together"
    assert (settings["model"], settings["steps"], settings["frames"]) == ("tiny", 2, 48)
    assert len(frames_of(out)) == 48 and probe(out).audio
    assert {"load", "instruction", "encode", "denoise", "decode", "total"} <= data["seconds"].keys()
    parts = sum(value for stage, value in data["seconds"].items() if stage != "total")
    assert parts < 1.2 * data["seconds"]["total"] + 0.5  # stages take turns; their seconds are their own

    code, stdout, err = inside(capsys, "show", out)
    assert code == 0 and "in 4 windows of 17 frames" in " ".join(stdout.split())
    pictures = [tmp_path / "first", tmp_path / "again"]  # PNG: what the model gave, without a codec
    assert inside(capsys, "edit", CLIP, "make it black and white", "--model", "tiny", "-o", pictures[0])[0] == 0
    code, _, err = inside(capsys, "rerun", out, "-o", pictures[1])
    assert code == 0, err
    first, again = ([path.read_bytes() for path in sorted(folder.glob("*.png"))] for folder in pictures)
    assert len(first) == 48 and [Image.open(io.BytesIO(a)).tobytes() for a in first] == [
        Image.open(io.BytesIO(b)).tobytes() for b in again
    ]


def test_what_is_asked_for_comes_first(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    asked = {"instruction": "x", "model": str(tiny)}
    work = fakes.plan(CLIP, output, **asked, frames=30, steps=3, size="64x64")
    # The number of frames limits the clip; the model still gets as many at a time as it was made for.
    assert (work.span.frame_count, work.steps, str(work.size)) == (30, 3, "64x64")
    assert work.windows is not None and (work.windows.frames, work.windows.count) == (17, 3)
    assert not any("softer" in notice for notice in work.notices)
    work = fakes.plan(CLIP, output, **asked, duration=0.5)
    assert work.span.frame_count == 12 and work.windows is None
    assert any("works on 17 frames: it sees the last one 5 times more" in notice for notice in work.notices)
    released = fakes.plan(CLIP, output, instruction="x", model=str(CHECKPOINT))
    assert (released.steps, released.windows, released.span.max_frames) == (50, None, None)


def test_a_picture_and_a_reference(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    code, stdout, err = inside(capsys, "ref-edit", REFERENCE, "--ref", REFERENCE, "--model", "tiny", "-o", out)
    assert (code, stdout) == (0, f"{out}\n"), err
    assert "windows" not in err


def test_a_dry_run_says_the_same(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("edit", CLIP, "x", "--model", "tiny", "--dry-run", "-o", tmp_path / "out.mp4")
    code, out, err = inside(capsys, *arguments)
    assert code == 0, err
    for words in ("480x270 -> 96x64", "4 windows of 17 frames", "2, seed 0"):
        assert words in out, words
    data = json.loads(inside(capsys, *arguments, "--json")[1])
    assert data["windows"] == {"kind": "joint", "count": 4, "frames": 17, "shots": [48]}
    assert data["padded_frames"] == 17 and data["steps"] == 2
    assert data["estimate"]["tokens"] == 5 * 2 * 3


class OnTheHub(fakes.FakeKind):
    """A model that is not here before it is fetched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(fakes.FakeEditor())
        self.folder, self.fetched = folder, 0

    def find(self, choice: ModelChoice) -> Found:
        return Found(None, commit="c" * 40, missing=True)

    def fetch(self, choice: ModelChoice, events: Events) -> Found:
        self.fetched += 1
        return Found(self.folder, commit="c" * 40, settings=read_settings(self.folder))


def test_a_model_that_is_fetched_first(tiny: Path, tmp_path: Path) -> None:
    """Its settings are only known then, and the plan is made with them."""
    kind, request = OnTheHub(tiny), EditRequest.of(CLIP, "x", model="someone/small", output=tmp_path / "out.mp4")
    with fakes.registered(kind):
        shown = prepare(request, fetch=False)
        assert shown.windows is None and shown.steps == 50 and kind.fetched == 0
        plan = prepare(request)
    assert (plan.windows, plan.steps, str(plan.size)) == (windows.Windows(17, 3), 2, "96x64")
    assert (plan.model, plan.found.commit, kind.fetched) == (tiny, "c" * 40, 1)


def test_nothing_is_fetched_for_an_edit_that_cannot_be(tiny: Path, tmp_path: Path) -> None:
    kind = OnTheHub(tiny)
    bad = {"codec": "h265x", "output": tmp_path / "none" / "out.mp4", "references": (tmp_path / "no.png",), "start": 9}
    with fakes.registered(kind):
        for name, value in bad.items():
            options = {"model": "someone/small", "output": tmp_path / "out.mp4", name: value}
            with pytest.raises(KiwiError):
                prepare(EditRequest.of(CLIP, "x", **options))
    assert kind.fetched == 0


# -- in the package ---------------------------------------------------------------------------------------------


def test_a_model_that_is_not_in_this_installation(
    lacking: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("edit", CLIP, "x", "--model", "tiny", "-o", tmp_path / "out.mp4"), ("download", "tiny")):
        code, out, err = inside(capsys, *command)
        assert (code, out) == (1, "") and "the model 'tiny' is not in this installation" in err and "hint: " in err
    rows = {row["name"]: row for row in json.loads(inside(capsys, "download", "--list", "--json")[1])["models"]}
    assert rows["tiny"]["cached"] == "no" and rows["tiny"]["offers"] == [] and rows["tiny"]["repo"] is None
    code, out, _ = inside(capsys, "show", "tiny")
    assert code == 0 and "not in this installation" in out and "good for" not in out


def test_download_has_nothing_to_do(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "download", "tiny")
    assert (code, out) == (0, f"{installed}\n") and "part of kiwi itself: nothing to fetch" in err
    assert inside(capsys, "download", "tiny", "--dry-run")[0] == 0
    code, out, _ = inside(capsys, "download", "tiny", "--verify")
    assert code == 0 and "the headers of 6 files are right" in out
    for option in (("--remove",), ("--revision", "v1")):
        code, out, err = inside(capsys, "download", "tiny", *option)
        assert (code, out) == (2, "") and "part of kiwi itself" in err
    assert (installed / "model_index.json").is_file()
    code, _, err = inside(capsys, "edit", CLIP, "x", "--model", "tiny", "--revision", "v1", "--dry-run")
    assert code == 2 and "--revision is for models on the Hub" in err


def test_it_is_listed_with_what_it_is_good_for(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "download", "--list", "-v")
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("tiny"))
    assert "yes" in line and "its kinds: see -v" in line and " MB" in line
    assert f"good for: {', '.join(OFFERS)}" in out
    assert "works at about 6,144 pixels, 17 frames at a time" in out
    code, out, err = inside(capsys, "show", "tiny")
    assert code == 0 and f"good for: {', '.join(OFFERS)}" in out, err
    data = json.loads(inside(capsys, "show", "tiny", "--json")[1])
    assert (data["name"], data["cached"], data["offers"], data["frames"]) == ("tiny", "yes", OFFERS, 17)
    assert json.loads(inside(capsys, "show", "instruct-reference", "--json")[1])["frames"] == 81


def test_the_doctor_knows_it(
    installed: Path, lacking: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = find_variant("tiny")
    assert variant is not None and variant in VARIANTS
    assert doctor.check_embedded(variant).state == "warning"
    monkeypatch.setattr(embedded, "folder_of", lambda variant: installed)
    check = doctor.check_embedded(variant)
    assert check.state == "ok" and "runs on the CPU" in check.text and OFFERS[0] in check.text
    bad = doctor.Check("device", "failed", "no GPU")
    assert doctor.runs_anyway([bad, check]) == "tiny"
    assert doctor.runs_anyway([bad, doctor.Check("imports", "failed", "broken"), check]) is None
    assert doctor.runs_anyway([bad]) is None


def test_a_broken_one_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "tiny")
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"x")
    monkeypatch.setattr(embedded, "folder_of", lambda variant: folder)
    variant = find_variant("tiny")
    assert variant is not None
    check = doctor.check_embedded(variant)
    assert check.state == "warning" and "broken" in check.text and check.hint


def test_the_name_means_the_package_unless_there_is_a_folder(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.ensure("tiny", download=False) == locate("tiny") == installed
    assert embedded.named("instruct-reference") is None and find_variant("") is None
    with pytest.raises(CheckpointError, match="not on the Hub"):
        names.resolve("tiny")
    own = make_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert hub.ensure("tiny", download=False).resolve() == own


def test_it_can_be_written_out_as_a_folder(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, "convert", "tiny", tmp_path / "mine", "--dtype", "bfloat16")
    assert code == 0, err
    assert read_settings(tmp_path / "mine") == read_settings(installed)


def test_any_model_may_have_a_size_of_its_own(tiny: Path, tmp_path: Path) -> None:
    """A mask, the rest of the clip and a comparison go on working in windows."""
    source = make_clip(tmp_path / "clip.mp4", frames=40, size=(128, 96))
    options = {"mask": "0,0,64,96", "compare": "side", "start": 0.2, "keep_rest": True}
    result = fakes.edit(source, tmp_path / "out.mp4", model=str(tiny), **options)
    assert result.frames == 40 and "windows" in str(result.settings["worked"])
    assert len(frames_of(tmp_path / "out-compare.mp4")) == 40


def test_a_sentence_names_few_kinds_and_counts_many() -> None:
    assert ModelSettings(offers=("night", "snow")).good_for == "night, snow"
    assert ModelSettings(offers=tuple("abcdefghi")).good_for == "9 kinds of edit"
