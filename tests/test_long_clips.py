"""Long clips from a request to a file: shots, windows, what goes with them, and going on after a kill."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.editing import counted as counts
from kiwi_cli.editing.counted import counted
from kiwi_cli.editing.parts import Part
from kiwi_cli.editing.work_folders import work_folder
from kiwi_cli.engine import estimate, workspace
from kiwi_cli.engine.layout import lay_out
from kiwi_cli.errors import UsageError

from . import fakes
from .cli.terminal import frames_of, inside
from .conftest import CHECKPOINT, ROOT
from .long_clip import SHOTS, SIZE, nine_frames, options, pictures, three_shots, write
from .test_parallel import EDIT, start_two
from .video.media import make_clip
from .video.test_shots import scene

EVERY = 1e-9  # seconds: after every window


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nine_frames(tmp_path_factory.mktemp("model") / "nine")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_shots(tmp_path_factory.mktemp("clip") / "clip")


def test_three_shots_are_their_shots_apart(model: Path, clip: Path, loaded: Any, tmp_path: Path) -> None:
    plan = fakes.plan(clip, tmp_path / "plan", **options(model))
    assert plan.windows is not None and plan.windows.shots == SHOTS and plan.span.exact
    fakes.edit(clip, tmp_path / "whole", loaded, **options(model))
    files, start = sorted(clip.iterdir()), 0
    for number, count in enumerate(SHOTS):
        shot = write(tmp_path / f"{number}", [np.asarray(Image.open(path)) for path in files[start : start + count]])
        fakes.edit(shot, tmp_path / f"{number}-out", loaded, **options(model))
        assert np.array_equal(pictures(tmp_path / "whole")[start : start + count], pictures(tmp_path / f"{number}-out"))
        start += count


def test_a_clip_of_one_window_is_not_looked_at_for_shots(model: Path, clip: Path, tmp_path: Path) -> None:
    assert fakes.plan(clip, tmp_path / "out", **options(model, frames=9)).windows is None
    released = fakes.plan(clip, tmp_path / "out", instruction="x", model=str(CHECKPOINT))
    assert released.windows is None and released.span.frame_count == sum(SHOTS)


def test_a_mask_the_rest_and_detail_go_with_it(model: Path, clip: Path, loaded: Any, tmp_path: Path) -> None:
    more = {"mask": "16,0,32,64", "start": 0.1, "keep_rest": True, "detail": "source", "compare": "side"}
    fakes.edit(clip, tmp_path / "out", loaded, **options(model, **more))
    made, source = pictures(tmp_path / "out"), pictures(clip)
    assert made.shape == source.shape and np.array_equal(made[:, :, :16], source[:, :, :16])
    changed = [n for n in range(len(source)) if not np.array_equal(made[n], source[n])]
    assert changed == list(range(changed[0], len(source))) and changed[0] in (2, 3)


# -- going on ----------------------------------------------------------------------------------------------------


def going_on(model: Path, clip: Path, output: Path, loaded: Any, **more: Any) -> fakes.Listener:
    events = fakes.Listener()
    fakes.edit(clip, output, loaded, events, **options(model, save_every=EVERY, **more))
    return events


def killed(model: Path, clip: Path, output: Path, loaded: Any, stage: str, at: int) -> None:
    """The same edit in a process of its own, which is killed when it reports that piece of work."""

    class Killing(fakes.Listener):
        def stages(self, labels: dict[str, str]) -> Any:
            listener = super().stages(labels)

            class Counting:
                def __enter__(self) -> Any:
                    stages = listener.__enter__()
                    show = stages.show

                    def shown(name: str, done: int, total: int, elapsed: float) -> None:
                        if name == stage and done == at:
                            os.kill(os.getpid(), signal.SIGKILL)
                        show(name, done, total, elapsed)

                    stages.show = shown  # type: ignore[method-assign]
                    return stages

                def __exit__(self, *error: object) -> None:
                    listener.__exit__(*error)  # type: ignore[arg-type]

            return Counting()

    child = os.fork()
    if not child:
        import torch

        torch.set_num_threads(1)
        fakes.edit(clip, output, loaded, Killing(), **options(model, save_every=EVERY))
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it came to its end"


WINDOWS = len(lay_out(SHOTS, 3, 0, "frame").windows)


def goes_on(model: Path, clip: Path, loaded: Any, tmp_path: Path, points: list[tuple[str, int]]) -> None:
    import torch

    whole, output = tmp_path / "whole", tmp_path / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # as in a fork: several add up in another order, and a value in ten thousand rounds otherwise
    try:
        going_on(model, clip, whole, loaded)
        for point in points:
            killed(model, clip, output, loaded, *point)
            assert not output.exists()
        events = going_on(model, clip, output, loaded)
    finally:
        torch.set_num_threads(threads)
    assert any("going on with what an earlier run left" in note for note in events.notes)
    assert np.array_equal(pictures(whole), pictures(output))
    assert not work_folder(output).exists() and not list(tmp_path.glob(".*kiwi-work"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_same_command_goes_on_after_a_kill(model: Path, clip: Path, loaded: Any, tmp_path: Path) -> None:
    goes_on(model, clip, loaded, tmp_path, [("denoise", WINDOWS + 2), ("decode", 3)])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_goes_on_after_ten_kills(model: Path, clip: Path, loaded: Any, tmp_path: Path) -> None:
    steps = sorted(random.Random(7).sample(range(2, 2 * WINDOWS), min(9, 2 * WINDOWS - 2)))
    goes_on(model, clip, loaded, tmp_path, [*(("denoise", step) for step in steps), ("decode", 2)])


def test_what_could_not_be_written_is_kept_and_other_settings_begin_anew(
    model: Path, clip: Path, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's work is on the disk when writing fails, however short it was."""
    output, events = tmp_path / "out", fakes.Listener()

    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kiwi_cli.video.writer.FrameWriter.write", full)
        with pytest.raises(OSError, match="No space left"):
            fakes.edit(clip, output, loaded, events, **options(model))
    assert any("the same command goes on with it" in note for note in events.notes)
    assert work_folder(output).is_dir() and not output.exists()
    notes = going_on(model, clip, output, loaded, seed=5).notes
    assert "an edit of other settings was begun here (seed): starting anew" in notes
    assert not work_folder(output).exists()


def test_it_goes_on_from_a_full_disk_for_an_output_elsewhere(
    model: Path, clip: Path, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hint says to do works the first time: the state needs no more room than it had."""
    full, other = tmp_path / "out", tmp_path / "other"

    def no_room(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kiwi_cli.video.writer.FrameWriter.write", no_room)
        with pytest.raises(OSError, match="No space left"):
            fakes.edit(clip, full, loaded, **options(model))
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "save_file", no_room)
        notes = going_on(model, clip, other, loaded).notes
    assert f"going on with what an earlier run left in '{work_folder(full)}'" in notes
    assert len(pictures(other)) == sum(SHOTS) and not work_folder(full).exists()


def test_where_there_is_no_room_beside_the_output_it_is_kept_elsewhere(
    model: Path, clip: Path, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the output is full for the state too; the same command goes on from where that went."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    whole, output, events = tmp_path / "whole", tmp_path / "full" / "out", fakes.Listener()
    output.parent.mkdir()
    fakes.edit(clip, whole, loaded, **options(model))
    save = workspace.save_file

    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    def save_file(tensors: Any, path: Path) -> None:
        if output.parent in Path(path).parents:
            full()
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr("kiwi_cli.video.writer.FrameWriter.write", full)
        patch.setattr(workspace, "save_file", save_file)
        with pytest.raises(OSError, match="No space left"):
            fakes.edit(clip, output, loaded, events, **options(model))
    assert list(output.parent.iterdir()) == []
    (kept,) = (tmp_path / "home" / "kiwi").glob(".out.kiwi-work-*")
    assert any(f"the work so far is in '{kept}': the same command goes on with it" in note for note in events.notes)
    going = going_on(model, clip, output, loaded)
    assert f"going on with what an earlier run left in '{kept}'" in going.notes
    assert np.array_equal(pictures(whole), pictures(output)) and not kept.exists()


def test_another_output_goes_on_with_what_was_made(
    model: Path, clip: Path, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a full disk: elsewhere, under another name, in another codec and behind a mask the latents are the same."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    full, other, events = tmp_path / "full" / "out", tmp_path / "other" / "masked.mkv", fakes.Listener()
    full.parent.mkdir()
    other.parent.mkdir()
    fakes.edit(clip, tmp_path / "whole.mkv", loaded, **options(model, mask="0,0,32,64", codec="ffv1"))

    def no_room(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kiwi_cli.video.writer.FrameWriter.write", no_room)
        with pytest.raises(OSError, match="No space left"):
            fakes.edit(clip, full, loaded, events, **options(model))
    assert any("also with another --output or --codec" in note for note in events.notes)
    going = fakes.Listener()
    fakes.edit(clip, other, loaded, going, **options(model, mask="0,0,32,64", codec="ffv1"))
    assert f"going on with what an earlier run left in '{work_folder(full)}'" in going.notes
    assert not any(stage in ("encode", "denoise") for stage, _, _ in going.progress)
    for made, fresh in zip(frames_of(other), frames_of(tmp_path / "whole.mkv"), strict=True):
        assert np.array_equal(made, fresh)
    assert list(full.parent.iterdir()) == [] and [path.name for path in other.parent.iterdir()] == ["masked.mkv"]


def test_a_folder_in_the_way_is_refused(model: Path, clip: Path, loaded: Any, tmp_path: Path) -> None:
    work_folder(tmp_path / "out").mkdir()
    (work_folder(tmp_path / "out") / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        fakes.edit(clip, tmp_path / "out", loaded, **options(model))
    assert (work_folder(tmp_path / "out") / "mine.txt").exists()


# -- clips that are not as one would like them --------------------------------------------------------------------


@pytest.mark.slow
def test_with_a_cut_at_every_frame_each_is_an_edit_of_its_own(model: Path, loaded: Any, tmp_path: Path) -> None:
    clip = write(tmp_path / "long", [next(scene(seed, 1, size=SIZE)) for seed in range(10)])
    plan = fakes.plan(clip, tmp_path / "out", **options(model))
    assert plan.windows is not None and plan.windows.shots == (1,) * 10
    fakes.edit(clip, tmp_path / "out", loaded, **options(model))
    made = pictures(tmp_path / "out")
    for number in (0, 9):
        picture = write(tmp_path / f"{number}", [pictures(clip)[number]])
        fakes.edit(picture, tmp_path / f"{number}-out", loaded, **options(model))
        assert np.array_equal(made[number], pictures(tmp_path / f"{number}-out")[0])


@pytest.mark.parametrize("count", [10, 14])
def test_frames_that_are_not_4k_and_one_are_filled_with_the_last(
    count: int, model: Path, loaded: Any, tmp_path: Path
) -> None:
    frames = list(scene(3, count, size=SIZE))
    clip, filled = write(tmp_path / "clip", frames), write(tmp_path / "filled", [*frames, *[frames[-1]] * 3])
    for source in (clip, filled):
        fakes.edit(source, tmp_path / f"{source.name}-out", loaded, **options(model))
    made, other = pictures(tmp_path / "clip-out"), pictures(tmp_path / "filled-out")
    assert len(made) == count  # and but for what the language model is shown, it is the same
    near, far = (np.abs(made.astype(int) - each[:count]).mean() for each in (other, frames))
    assert near < 0.1 * far, (near, far)


def test_a_clip_whose_length_is_a_guess_is_counted_and_edited_whole(
    model: Path, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file that is too large to look through, with frames at uneven times."""
    uneven = [Fraction(number * number, 50) for number in range(13)]
    clip = make_clip(tmp_path / "clip.mkv", frames=13, times=uneven)
    fakes.edit(clip, tmp_path / "known", loaded, **options(model))
    with monkeypatch.context() as patch:
        patch.setattr("kiwi_cli.video.scan._SCAN_BYTES", 0)
        plan = fakes.plan(clip, tmp_path / "guessed", **options(model))
        assert not plan.clip.frame_count_exact and plan.clip.frame_count != 13
        assert plan.span.exact and plan.span.frame_count == 13
        part = fakes.plan(clip, tmp_path / "part", **options(model, parts=(Part(2.0, 2.1),)))
        assert [(rows.first, rows.last) for rows in part.parts] == [(9, 13)]  # frame 10 is there at 2 s
        fakes.edit(clip, tmp_path / "guessed", loaded, **options(model))
    assert np.array_equal(pictures(tmp_path / "known"), pictures(tmp_path / "guessed"))


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cache": "first-block"}, "--cache first-block keeps its state"),
        ({"calibrate_cache": Path("ratios.json")}, "--calibrate-cache measures one window"),
        ({"memory": "tiled"}, "decodes a clip in one piece"),
        ({"overlap": 8}, "would not get on"),
        ({"overlap": 8, "frames": 10, "model": "tiny"}, "windows that have 4 frames of their own would not get on"),
        ({"overlap": -1}, "--overlap is a number of frames from 0"),
        ({"windows": "some"}, "unknown --windows: 'some'"),
        ({"anchor": "last"}, "unknown --anchor: 'last'"),
        ({"windows": "off", "anchor": "first"}, "--anchor needs joint windows"),
        ({"save_every": -3.0}, "--save-every is a time from 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    more: dict[str, Any], words: str, model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        fakes.plan(clip, tmp_path / "out", **{**options(model), **more})


def test_an_output_that_cannot_be_is_refused_before_a_whole_clip_is_read_for_cuts(
    model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit = ("edit", clip, "make it snowy", "--model", model, "-o", tmp_path / "o.mkv", "--dry-run")
    assert "look for cuts" in inside(capsys, *edit)[2]
    code, _, err = inside(capsys, *edit, "--quality", "99")
    assert code == 2 and "quality not understood: '99'" in err and "look for cuts" not in err


def test_an_editor_that_joins_nothing_is_not_asked_to(model: Path, clip: Path, tmp_path: Path) -> None:
    with fakes.registered(fakes.FakeKind(fakes.FakeEditor())):
        assert fakes.plan(clip, tmp_path / "out", **options(model)).windows.data["kind"] == "independent"  # type: ignore[union-attr]
        with pytest.raises(UsageError, match="cannot be joined"):
            fakes.plan(clip, tmp_path / "out", **options(model, windows="joint"))


def test_a_dry_run_says_shots_windows_and_disk(model: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "edit", clip, "make it snowy", "--model", model, "--dry-run")
    assert code == 0, err
    assert f"{WINDOWS} windows of 9 frames, denoised together, over 3 shots" in out


def test_a_dry_run_counts_what_runs(model: Path, clip: Path, pipe: Any, tmp_path: Path) -> None:
    """Latent frames that the transformer sees, prompts that are read, latent frames to and from the autoencoder."""
    plan = fakes.plan(clip, tmp_path / "plan", **options(model))
    found, windows = counted(plan)[0], plan.windows
    assert windows is not None and windows.layout is not None
    seen, read, listener = [], [], fakes.Listener()
    hooks = [
        pipe.transformer.register_forward_pre_hook(
            lambda module, arguments, named: seen.append((*arguments, *named.values())[0].shape[2]), with_kwargs=True
        ),
        pipe.mllm_encoder.register_forward_pre_hook(lambda module, arguments: read.append(1)),
    ]
    try:
        fakes.edit(clip, tmp_path / "out", pipe, listener, **options(model))
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(seen) == plan.steps * windows.layout.evaluations
    assert found.stages["denoise"] == pytest.approx(found.step_tflop * sum(seen) / windows.layout.longest)
    assert len(read) == windows.contexts_read
    alone = estimate.estimate(counts.shape_of(plan), plan.size, plan.at_once, 0, plan.steps, 4)
    made = {stage: max(done for name, done, _ in listener.progress if name == stage) for stage in ("encode", "decode")}
    for stage, done in made.items():
        assert found.stages[stage] == pytest.approx(alone.stages[stage] * done / alone.latent_frames), stage  # type: ignore[index]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(model: Path, clip: Path, tmp_path: Path) -> None:
    """The windows of a clip of three shots, with the tokens of each split over both."""
    edit = ("edit", clip, "make it snowy", "--model", model, "--detail", "model", "--device", "cpu")
    first, second = start_two(EDIT, *edit, "-o", tmp_path / "two")
    assert "denoised together" in first[1] and not second[0]
    start = subprocess.run(
        [sys.executable, "-m", "kiwi_cli", *map(str, edit), "-o", str(tmp_path / "one")], cwd=ROOT, capture_output=True
    )
    assert start.returncode == 0, start.stderr
    one, two = (pictures(tmp_path / name).astype(int) for name in ("one", "two"))
    assert one.shape == two.shape and np.abs(one - two).max() <= 1
