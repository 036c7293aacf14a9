"""A part of an edit made anew with the latents that were kept: the rest stays, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi_cli.editing.paths import latents_of
from kiwi_cli.errors import UsageError
from kiwi_cli.weights.tensorfile import read_header, write_file

from . import fakes
from .cli.terminal import inside
from .long_clip import SHOTS, nine_frames, options, pictures, three_shots
from .video.media import Sound, make_clip

RATE = 24  # frames a second of a folder of pictures
TOTAL = sum(SHOTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nine_frames(tmp_path_factory.mktemp("model") / "nine")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_shots(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def made(model: Path, clip: Path, loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit whose latents are kept; not to be changed."""
    output = tmp_path_factory.mktemp("made") / "out"
    fakes.edit(clip, output, loaded, **options(model, keep_latents=True))
    return output


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """The same once more, to do with as one likes; its settings' paths lead to the same files."""
    folder = made.parent.with_name(f"{made.parent.name}-{tmp_path.name}")
    shutil.copytree(made.parent, folder)
    return folder / "out"


def span(first: int, last: int) -> str:
    """The times of frames [first, last)."""
    return f"{first / RATE:.3f}-{last / RATE:.3f}"


def again(capsys: pytest.CaptureFixture[str], loaded: Any, *arguments: Any) -> str:
    """`kiwi rerun`, and what it said."""
    with fakes.loads(loaded):
        code, _, err = inside(capsys, "rerun", *arguments)
    assert code == 0, err
    return err


def changed(before: Path, after: Path) -> list[int]:
    """Frames that are not the same to the bit."""
    one, other = pictures(before), pictures(after)
    assert one.shape == other.shape
    return [number for number in range(len(one)) if not np.array_equal(one[number], other[number])]


def test_a_part_is_made_anew_and_all_other_frames_stay_to_the_bit(
    out: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    part, other, once_more = (out.with_name(name) for name in ("part", "other", "once-more"))
    said = again(capsys, loaded, out, "--span", span(6, 8), "--seed", 5, "-o", part)
    assert "made anew: 4 frames, 0.208 s to 0.375 s of the clip" in said
    assert changed(out, part) == [5, 6, 7, 8]  # the latent frame that has 6 and 7
    again(capsys, loaded, out, "--span", span(6, 8), "--seed", 5, "-o", once_more)
    assert changed(part, once_more) == []
    again(capsys, loaded, out, "turn it into a night scene", "--span", span(6, 8), "-o", other)
    assert changed(out, other) == changed(part, other) == [5, 6, 7, 8]
    shown = json.loads(inside(capsys, "show", other, "--json")[1])["settings"]
    assert shown["parts"] == [{"start": 0.25, "end": 0.333, "seed": None, "instruction": "turn it into a night scene"}]
    assert shown["typed"] == "make it snowy" and not latents_of(other).exists()
    assert "0.25 s to 0.333 s of the clip made anew, 'turn it into a night scene'" in inside(capsys, "show", other)[1]


def test_a_whole_shot_with_the_same_seed_and_words_is_as_it_was(
    out: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = SHOTS[0], SHOTS[0] + SHOTS[1]
    said = again(capsys, loaded, out, "--span", span(first, second), "-o", out.with_name("same"))
    assert "the part will look much as it did; --seed gives another" in said
    assert changed(out, out.with_name("same")) == []
    again(capsys, loaded, out, "--span", span(first, TOTAL), "--seed", 9, "-o", out.with_name("two"))
    assert changed(out, out.with_name("two")) == list(range(first, TOTAL))


def test_in_step_with_its_neighbours_the_same_seed_comes_near(
    out: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is on either side is held on a straight way, which it did not quite take: near, and not the same."""
    same, other = out.with_name("same"), out.with_name("other")
    again(capsys, loaded, out, "--span", span(1, 5), "-o", same)
    again(capsys, loaded, out, "--span", span(1, 5), "--seed", 7, "-o", other)
    before, near, far = (pictures(path)[1:5].astype(int) for path in (out, same, other))
    assert np.abs(near - before).mean() < 0.25 * np.abs(far - before).mean()


@pytest.mark.parametrize("detail", [pytest.param("model", marks=pytest.mark.slow), "source"])
def test_parts_one_after_the_other_and_all_of_it_once_more(
    detail: str, model: Path, clip: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is made of the file alone, without kept latents, is what came of it step by step; with detail as well."""
    out, one, two, whole = (tmp_path / name for name in ("out", "one", "two", "whole"))
    more = {"detail": detail, "solver": "unipc", "contexts": "window", "keep_latents": True}
    fakes.edit(clip, out, loaded, **options(model, **more))
    again(capsys, loaded, out, "--span", span(3, 11), "--seed", 5, "--keep-latents", "-o", one)
    assert changed(out, one) == list(range(1, 13))
    again(capsys, loaded, one, "make it sepia", "--span", span(10, 15), "-o", two)
    assert changed(one, two) == list(range(9, 18))
    again(capsys, loaded, two, "-o", whole)
    assert changed(two, whole) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one", "one.latents.safetensors", "out", "out.latents.safetensors", "two", "whole",
    ]  # fmt: skip


def test_a_short_clip_has_parts_too_and_its_edit_is_the_same(
    model: Path, clip: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, kept, part = (tmp_path / name for name in ("plain", "kept", "part"))
    result = fakes.edit(clip, plain, loaded, **options(model, frames=7))
    keeping = fakes.edit(clip, kept, loaded, **options(model, frames=7, keep_latents=True))
    assert changed(plain, kept) == [] and keeping.settings == result.settings
    again(capsys, loaded, kept, "--span", span(0, 1), "--seed", 4, "-o", part)
    assert changed(kept, part) == [0]


def test_times_are_the_outputs_and_sound_mask_and_rest_stay(
    model: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_clip(tmp_path / "clip.mp4", frames=20, sound=(Sound("aac"),))
    more: dict[str, Any] = {"start": 0.2, "mask": "0,0,48,64", "codec": "ffv1", "quality": "lossless"}
    for name, rest in (("cut.mkv", False), ("whole.mkv", True)):
        out = tmp_path / name
        fakes.edit(source, out, loaded, **options(model, keep_latents=True, keep_rest=rest, **more))
        part = tmp_path / f"part-{name}"
        lead = 5 if rest else 0  # frames before the edited ones
        again(capsys, loaded, out, "--span", span(lead + 6, lead + 7), "--seed", 5, "-o", part)
        before, after = (np.stack(frames_of(path)) for path in (out, part))
        different = [n for n in range(len(before)) if not np.array_equal(before[n], after[n])]
        assert different == [lead + n for n in (5, 6, 7, 8)]
        assert np.array_equal(before[:, :, 48:], after[:, :, 48:])
        assert sound_of(out) == sound_of(part) != b""


def frames_of(path: Path) -> list[np.ndarray]:
    from .cli.terminal import frames_of

    return frames_of(path)


def sound_of(path: Path) -> bytes:
    import av

    with av.open(str(path)) as container:
        return b"".join(bytes(packet) for packet in container.demux(audio=0))


# -- nothing half-made -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_killed_in_between_it_leaves_nothing(
    stage: str, out: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in out.parent.iterdir())
    part = ("--span", span(3, 8), "--seed", 5, "--keep-latents", "-o", out.with_name("part"))
    child = os.fork()
    if not child:
        import torch

        from kiwi_cli.base import events

        def killing(self: Any, name: str, done: int, total: int) -> None:
            if name == stage and done == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.set_num_threads(1)
        events.Stages.__call__ = killing  # type: ignore[method-assign]
        with fakes.loads(loaded):
            inside(capsys, "rerun", out, *part)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it came to its end"
    assert not out.with_name("part").exists() and not latents_of(out.with_name("part")).exists()
    again(capsys, loaded, out, *part)  # and the next one clears away what could not be then
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([*before, "part", "part.latents.safetensors"])


def test_an_output_that_fails_has_no_latents(
    model: Path, clip: Path, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kiwi_cli.video.writer.FrameWriter.write", full)
    with pytest.raises(OSError, match="No space left"):
        fakes.edit(clip, tmp_path / "out", loaded, **options(model, keep_latents=True))
    assert not latents_of(tmp_path / "out").exists() and not list(tmp_path.glob(".*partial"))


# -- what is refused ---------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    code, stdout, err = inside(capsys, "rerun", *arguments)
    assert code in (1, 2) and stdout == "" and "hint: " in err, err
    return err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--span", "12"), "not a span: '12'"),
        (("--span", "a-b"), "not a time: 'a'"),
        (("--span", "0.3-0.1"), "the span ends before it begins"),
        (("--span", "0:00.7-0:00.95"), "the part 0.7-0.95 is not in what was edited: 0 s to 0.833 s"),
        (("--span", "10-12"), "is not in what was edited"),
        (("--span", "0-0.1", "--steps", "3"), "--steps is for the whole clip"),
        (("--span", "0-0.1", "--mask", "0,0,8,8"), "--mask is for the whole clip"),
        (("--span", "0-0.1", "--preview"), "--preview is for the whole clip"),
        (("--span", "0-0.1", "--allow-changed"), "--span needs the same source"),
        (("--span", "0-0.1", "--seed", "-1"), "--seed must be from 0"),
        (("words", "--instruction", "others"), "the instruction is given twice"),
        (("--span", "0-0.1", "   "), "the instruction is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    arguments: tuple[str, ...], words: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, made, *arguments, "--dry-run")


def test_words_that_a_small_model_does_not_know_can_be_insisted_on(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hint of a part's refused words names `--force`: it goes with a part."""
    code, _, err = inside(capsys, "rerun", made, "fly", "--span", "0-0.1", "--force", "--dry-run", "-o", tmp_path / "o")
    assert code == 0, err


def test_latents_that_are_not_there_or_not_the_outputs_are_refused(
    out: Path, model: Path, clip: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    part = (out, "--span", "0-0.1", "--seed", "2", "-o", out.with_name("part"))
    file = latents_of(out)
    whole = file.read_bytes()
    file.unlink()
    err = refused(capsys, *part)
    assert "no latents were kept" in err and f"kiwi rerun '{out}' --keep-latents" in err
    file.write_bytes(whole[: len(whole) // 2])
    assert "are damaged" in refused(capsys, *part)
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert "are damaged" in refused(capsys, *part)  # one bit, by its checksum: before the model is loaded
    write_file(file, [])
    assert "not kept latents of this kiwi" in refused(capsys, *part)
    other = out.with_name("other")
    fakes.edit(clip, other, loaded, **options(model, keep_latents=True, seed=8))
    shutil.copy(latents_of(other), file)
    assert f"are of another edit than '{out}'" in refused(capsys, *part)
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith((".", "part"))) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"windows": "independent"}, "not --windows independent"),
        ({"windows": "off"}, "not --windows off"),
        ({"frames": 5, "cache": "sea"}, "keeps its state in the transformer's blocks"),
        ({"memory": "tiled", "frames": 5}, "decodes a clip in one piece"),
    ],
)
def test_where_there_is_nothing_to_keep_it_is_said(
    more: dict[str, Any], words: str, model: Path, clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        fakes.plan(clip, tmp_path / "out", **options(model, keep_latents=True, **more))
    assert "--keep-latents" in raised.value.hint


def test_pictures_and_editors_without_latents_keep_none(model: Path, clip: Path, tmp_path: Path) -> None:
    picture = sorted(clip.iterdir())[0]
    with pytest.raises(UsageError, match="is a picture"):
        fakes.plan(picture, tmp_path / "out.png", **options(model, keep_latents=True))
    with (
        fakes.registered(fakes.FakeKind(fakes.FakeEditor())),
        pytest.raises(UsageError, match=r"needs latents, and '.*' gives none"),
    ):
        fakes.plan(clip, tmp_path / "out", **options(model, keep_latents=True))


def test_what_is_there_is_not_replaced_and_the_size_is_told_before(
    model: Path, clip: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    latents_of(tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match=r"output exists: .*latents"):
        fakes.plan(clip, tmp_path / "out", **options(model, keep_latents=True))
    edit = ("edit", clip, "make it snowy", "--model", model, "--keep-latents", "-o", tmp_path / "new", "--dry-run")
    data = json.loads(inside(capsys, *edit, "--json")[1])
    header = read_header(latents_of(made))
    assert data["kept_bytes"] == sum(4 * info.elements for info in header.values())
    assert data["latents"] == str(latents_of(tmp_path / "new"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    code, _, err = inside(capsys, *edit)
    assert code == 1 and "beside the output, and 1 B are free there" in err


def test_clips_of_a_batch_keep_theirs(
    model: Path, clip: Path, loaded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fakes.loads(loaded):
        code, _, err = inside(
            capsys, "edit", clip, "-i", "make it snowy", "--out-dir", tmp_path / "many", "--model", model,
            "--frames", "6", "--keep-latents", "--device", "cpu",
        )  # fmt: skip
    assert code == 0, err
    (out,) = (path for path in (tmp_path / "many").iterdir() if path.is_dir() and path.name.startswith("clip"))
    again(capsys, loaded, out, "--span", span(0, 1), "--seed", 4, "-o", tmp_path / "part")
    assert changed(out, tmp_path / "part") == [0]
