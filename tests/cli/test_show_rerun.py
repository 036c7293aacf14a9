"""How an output was made is in it, and it can be made again from that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base import identity
from kiwi_cli.base.identity import hash_file
from kiwi_cli.batch.jobs import JobStore
from kiwi_cli.editing import paths, record

from .. import fakes
from ..conftest import CHECKPOINT
from ..video.media import make_clip, make_sequence, picture
from .terminal import FAST, REFERENCE, frames_of, inside


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", frames=5)


def test_the_sidecar_and_the_file_say_the_same(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = clip.with_name("out.mp4")
    result = fakes.edit(clip, out, sidecar=True, seed=7, steps=3, mask="0,0,48,64", feather=4, references=(REFERENCE,))
    sidecar = clip.with_name("out.mp4.json")
    assert json.loads(sidecar.read_text()) == result.settings
    code, stdout, _ = inside(capsys, "show", out, "--json")
    assert code == 0 and json.loads(stdout)["source"] == str(sidecar)
    sidecar.unlink()
    code, stdout, err = inside(capsys, "show", out, "--json")
    data = json.loads(stdout)
    assert (code, err) == (0, "") and data["source"] == str(out) and data["settings"] == result.settings
    settings = data["settings"]
    assert settings["input"] == {"path": "clip.mp4", "sha256": hash_file(clip)}
    assert settings["references"][0]["sha256"] == hash_file(REFERENCE)
    assert (settings["seed"], settings["steps"], settings["mask"]["path"]) == (7, 3, "0,0,48,64")
    code, stdout, _ = inside(capsys, "show", out)
    assert code == 0 and "'clip.mp4', sha256" in stdout and "seed 7" in " ".join(stdout.split())


@pytest.mark.parametrize("name", ["out.mov", "out.mkv", "out.webm", "out.gif", "folder"])
def test_every_container_carries_it(name: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = fakes.edit(clip, clip.with_name(name), frames=2)
    code, stdout, err = inside(capsys, "show", clip.with_name(name), "--json")
    assert code == 0, err
    assert json.loads(stdout)["settings"] == result.settings


@pytest.mark.parametrize("name", ["out.png", "out.jpg", "out.webp"])
def test_every_picture_carries_it(name: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = fakes.edit(clip, clip.with_name(name), frames=1)
    code, stdout, err = inside(capsys, "show", clip.with_name(name), "--json")
    assert code == 0, err
    assert json.loads(stdout)["settings"] == result.settings


def test_a_request_comes_back_from_its_settings(tmp_path: Path, clip: Path) -> None:
    """Every option that changes the result survives being recorded."""
    Image.fromarray(picture(1, 96, 64)).save(tmp_path / "mask.png")
    options = {
        "references": (REFERENCE,),
        "task": "style",
        "steps": 3,
        "seed": 2**63,
        "start": 0.04,
        "duration": 0.12,
        "frames": 3,
        "size": "64x64",
        "fit": "crop",
        "fps": 12.5,
        "mask": str(tmp_path / "mask.png"),
        "feather": 3,
        "keep_rest": True,
        "codec": "hevc",
        "quality": "low",
        "sound": False,
        "allow_truncated": True,
        "dtype": "float32",
        "memory": "swap",
        "attention": "sdpa",
        "compile": True,
    }
    result = fakes.edit(clip, tmp_path / "out.mp4", **options)
    request = record.request_from(json.loads(json.dumps(result.settings)), tmp_path)
    assert [path.resolve() for path in request.references] == [REFERENCE]
    assert request == request.changed(**{**options, "references": request.references})
    assert request.input == clip and Path(request.choice.model).resolve() == CHECKPOINT.resolve()
    record.check_unchanged(result.settings, request, tmp_path)


def test_rerun_makes_the_same_again_and_another_with_another_seed(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again, other = (clip.with_name(name) for name in ("out.png", "out-rerun.png", "other.png"))
    assert inside(capsys, "edit", clip, "snow", *FAST, "--frames", 1, "-o", out, "--seed", 3)[0] == 0
    code, stdout, err = inside(capsys, "rerun", out)
    assert (code, stdout) == (0, f"{again}\n"), err
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(again)))
    code, _, err = inside(capsys, "rerun", out, "--seed", 5, "-o", other)
    assert code == 0, err
    assert not np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(other)))
    assert json.loads(inside(capsys, "show", other, "--json")[1])["settings"]["seed"] == 5


def test_a_project_can_be_moved_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "first"
    first.mkdir()
    source = make_clip(first / "clip.mp4", frames=3)
    shutil.copy(REFERENCE, first / "ref.png")
    fakes.edit(source, first / "out.mp4", references=(first / "ref.png",), frames=2)
    first.rename(tmp_path / "second")
    moved = tmp_path / "second" / "out.mp4"
    # the checkpoint did not move along
    code, stdout, err = inside(capsys, "rerun", moved, "--dry-run", "--json", "--model", CHECKPOINT)
    assert code == 0, err
    assert json.loads(stdout)["input"].endswith("second/clip.mp4")


def test_rerun_says_what_is_missing_or_changed(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = clip.parent, clip.with_name("out.mp4")
    shutil.copy(REFERENCE, folder / "ref.png")
    shutil.copytree(CHECKPOINT, folder / "model")
    Image.fromarray(np.full((64, 96), 255, np.uint8)).save(folder / "mask.png")
    fakes.edit(clip, out, references=(folder / "ref.png",), mask=str(folder / "mask.png"), frames=2)
    settings, _ = record.read_settings(out)

    for name, words, option in (
        ("clip.mp4", "the source", "--input"),
        ("ref.png", "the reference", "--ref"),
        ("mask.png", "the mask", "--mask"),
    ):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        code, stdout, err = inside(capsys, "rerun", out, "--dry-run")
        assert (code, stdout) == (2, "") and f"{words} is not there any more" in err and option in err
        (folder / name).write_bytes(kept + b" ")
        code, stdout, err = inside(capsys, "rerun", out, "--dry-run")
        assert (code, stdout) == (1, "") and f"{words} has changed" in err and "--allow-changed" in err
        if name == "ref.png":
            assert inside(capsys, "rerun", out, "--dry-run", "--allow-changed")[0] == 0
        (folder / name).write_bytes(kept)

    settings["model"] = "model"
    settings["checkpoint"] = identity.fingerprint(folder / "model")
    record.write_sidecar(paths.sidecar_of(out), settings)
    assert inside(capsys, "rerun", out, "--dry-run")[0] == 0
    weights = folder / "model/source_embedder/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for at in (len(whole) - 1, len(whole) // 2):
        weights.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        code, _, err = inside(capsys, "rerun", out, "--dry-run")
        assert code == 1 and "the model has changed" in err


def test_what_kiwi_did_not_make_is_refused(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, later = clip.with_name("broken.json"), clip.with_name("later.json")
    broken.write_text("{")
    for path, code, words in (
        (clip, 1, "says how it was made"),
        (clip.with_name("none.mp4"), 2, "not found"),
        (broken, 1, "damaged"),
        (make_sequence(clip.with_name("frames")), 1, "says how it was made"),
    ):
        got, out, err = inside(capsys, "show", path)
        assert (got, out) == (code, "") and words in err and "hint: " in err, err
    later.write_text(json.dumps({"instruction": "x", "format": 99, "kiwi": "9.0"}))
    code, _, err = inside(capsys, "rerun", later)
    assert code == 1 and "kiwi 9.0" in err
    later.write_text(json.dumps({"instruction": "x", "format": 1, "input": 3}))
    code, _, err = inside(capsys, "rerun", later)
    assert code == 1 and "damaged" in err


def test_rerun_never_replaces_the_output_by_itself(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = clip.with_name("out.mp4")
    fakes.edit(clip, out, frames=1)
    before = out.read_bytes()
    code, _, err = inside(capsys, "rerun", out, "-o", out)
    assert code == 2 and "output exists" in err and out.read_bytes() == before
    assert len(frames_of(out)) == 1


@pytest.mark.parametrize("command", ["show", "rerun"])
def test_a_folder_without_a_name_is_no_output(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", "/", ".."):
        code, out, err = inside(capsys, command, path)
        assert (code, out) == (1, "") and f"nothing in '{path}' says how it was made" in err


@pytest.mark.parametrize("command", ["show", "rerun"])
def test_the_folder_of_a_run_is_no_output(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    JobStore(tmp_path).begin("edits")
    code, out, err = inside(capsys, command, tmp_path)
    assert (code, out) == (2, "") and f"the folder of a run, not a result: '{tmp_path}'" in err
    assert f"kiwi status '{tmp_path}'" in err
