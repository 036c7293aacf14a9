"""An editor is a file and a row: one that is made here goes through prepare and Session as kiwi's own does.

What a session keeps of its editor's words, when it refuses one, and that it closes what it loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kiwi_cli.base.events import Events
from kiwi_cli.editing.clip_edit import gathered
from kiwi_cli.editing.prepare import prepare
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.editing.session import Session
from kiwi_cli.editors import kiwi
from kiwi_cli.editors.base import Denoising, Edited, Editor, Found, Frames, Identity
from kiwi_cli.editors.kiwi import KiwiEditor
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.weights.settings import ModelSettings

from . import fakes
from .cli.terminal import REFERENCE, inside
from .conftest import CHECKPOINT, make_model, random_frames
from .video.media import make_sequence, picture
from .whole_runs import frames_of

SIZE = (72, 48)


# -- an editor of somebody else's --------------------------------------------------------------------------------


@dataclass
class Negative:
    """Turns colours round; five frames at a time, multiples of 8, no model and no references."""

    choice: ModelChoice = field(default_factory=ModelChoice)
    lengths: list[int] = field(default_factory=list)
    name, multiple, most_frames, takes_references, gives_round_trip = "negative", 8, 5, False, False

    def identity(self) -> Identity:
        return Identity(self.choice, device="abacus", dtype="uint8")

    def edit(self, frames: np.ndarray, instruction: str, references: Sequence[Any] = (), **options: Any) -> Edited:
        self.lengths.append(len(frames))
        return Edited(self._frames(frames))

    def _frames(self, frames: np.ndarray) -> Frames:
        for frame in frames:
            yield 255 - frame[None]

    def close(self) -> None:
        pass


class NegativeKind:
    """Its row."""

    def __init__(self) -> None:
        self.editor = Negative()

    def claims(self, choice: ModelChoice) -> bool:
        return choice.model == "negative"

    def uses(self, choice: ModelChoice) -> Collection[str]:
        return {"model"}

    def identify(self, found: Found, choice: ModelChoice) -> str:
        return "negative"

    def find(self, choice: ModelChoice) -> Found:
        return Found(None, settings=ModelSettings(frames=5, steps=1, multiple=8), takes_references=False)

    def admit(self, found: Found, choice: ModelChoice) -> None:
        pass

    def fetch(self, choice: ModelChoice, events: Events) -> Found:
        raise AssertionError("there is nothing to fetch")

    def load(self, found: Found, choice: ModelChoice, events: Events) -> Editor:
        self.editor = replace(self.editor, choice=choice)
        return self.editor


@pytest.fixture
def negative() -> Iterator[NegativeKind]:
    kind = NegativeKind()
    with fakes.registered(kind):
        yield kind


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve numbered pictures."""
    make_sequence(tmp_path / "clip", 12, SIZE)
    return tmp_path / "clip"


def test_to_add_an_editor_a_file_and_a_row_are_enough(
    negative: NegativeKind, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows, a mask and the rest of the clip, by the command; the file says what it was made with."""
    out = tmp_path / "out"
    options = ("--mask", "16,8,40,24", "--start", "0.1", "--duration", "0.35", "--keep-rest", "-o", out, "--json")
    code, stdout, err = inside(capsys, "edit", clip, "the other way round", "--model", "negative", *options)
    assert code == 0, err
    data = json.loads(stdout)
    frames = len(negative.editor.lengths)
    assert frames == 2 and set(negative.editor.lengths) == {5} and data["windows"]["count"] == 2
    assert (data["device"], data["dtype"], data["approximations"]) == ("abacus", "uint8", [])
    assert data["settings"]["model"] == "negative" and data["settings"]["checkpoint"] is None
    written = frames_of(out)
    source = np.stack([picture(number, *SIZE) for number in range(12)])
    inside_mask = np.zeros(SIZE[::-1], bool)
    inside_mask[8:32, 16:56] = True
    changed = [number for number in range(12) if not np.array_equal(written[number], source[number])]
    assert len(changed) == data["settings"]["frames"] < 12 and changed == list(range(changed[0], changed[-1] + 1))
    for number in changed:
        assert np.array_equal(written[number][~inside_mask], source[number][~inside_mask])
        assert np.array_equal(written[number][inside_mask], 255 - source[number][inside_mask])


def test_other_models_stay_with_their_editor(negative: NegativeKind, clip: Path, tmp_path: Path) -> None:
    plan = fakes.plan(clip, tmp_path / "out")
    assert plan.model == CHECKPOINT and plan.settings.multiple == 32


def test_an_editor_without_references_is_not_given_any(negative: NegativeKind, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'negative' takes no reference pictures"):
        fakes.plan(clip, tmp_path / "out", model="negative", references=(REFERENCE,))


# -- what it says of its work ------------------------------------------------------------------------------------


def test_the_approximations_of_every_window_are_kept(clip: Path, tmp_path: Path) -> None:
    """The result has those of all windows, and the person is told each of them once."""
    model = make_model(tmp_path / "model", working={"frames": 5, "steps": 2})
    all_the_time, early, late = "8 bits: NOT exact", "cache: NOT exact, skipped 2", "cache: NOT exact, skipped 3"
    editor = fakes.ApproximateEditor([(all_the_time, early), (all_the_time, late), (all_the_time, early)])
    events = fakes.Listener()
    result = fakes.edit(clip, tmp_path / "out", editor, events, model=str(model))
    assert result.approximations == [all_the_time, f"windows 1, 3: {early}", f"window 2: {late}"]
    assert events.notes == [all_the_time, early, f"window 2: {late}"]


def test_lines_of_one_window_are_as_they_are() -> None:
    assert gathered([("a", "b")]) == ["a", "b"] and gathered([]) == []


def test_a_step_cache_over_windows_says_what_it_did_in_each(clip: Path, tmp_path: Path, loaded: Any) -> None:
    model = make_model(tmp_path / "model", working={"pixels": 4096, "frames": 5, "steps": 6})
    options = {"model": str(model), "cache": "easy", "cache_threshold": 0.2, "windows": "independent"}
    result = fakes.edit(clip, tmp_path / "out", loaded, **options)
    numbers = {number for line in result.approximations for number in _windows(line)}
    assert numbers == {1, 2, 3} and all("step cache easy" in line for line in result.approximations)


def _windows(line: str) -> list[int]:
    """[1, 3] of 'windows 1, 3: ...'; all three of a line that is every window's."""
    if not line.startswith("window"):
        return [1, 2, 3]
    return [int(number) for number in line.partition(" ")[2].partition(":")[0].split(", ")]


# -- a loaded editor that is handed over -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "int8"}, "works with --quantize 'as-stored', not 'int8'"),
        ({"loras": ("style.safetensors",)}, "works with --lora none, not 'style.safetensors'"),
        ({"gguf": Path("dit.gguf")}, "works with --gguf none, not 'dit.gguf'"),
        ({"attention": "sage"}, "works with --attention 'auto', not 'sage'"),
        ({"compile": True}, "works with --compile off, not on"),
        ({"memory": "tiled"}, "works with --memory 'auto', not 'tiled'"),
        ({"max_memory": "1GB"}, "works with --max-memory none, not '1GB'"),
        ({"device": "cuda"}, "works with --device 'auto', not 'cuda'"),
        ({"dtype": "bfloat16"}, "works with --dtype 'auto', not 'bfloat16'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_choices_that_a_loaded_editor_has_not_are_refused(
    options: dict[str, Any], words: str, clip: Path, tmp_path: Path
) -> None:
    editor = loaded_fake()
    plan = fakes.plan(clip, tmp_path / "out")
    plan = replace(plan, request=plan.request.changed(**options))
    with pytest.raises(UsageError) as error, Session(editor) as session:
        session.run(plan)
    assert words in error.value.message and editor.seen == [] and not plan.output.exists()


def loaded_fake(**choice: Any) -> fakes.FakeEditor:
    """A fake that was loaded for the small checkpoint."""
    editor, chosen = fakes.FakeEditor(), ModelChoice(str(CHECKPOINT), **choice)
    kind = fakes.FakeKind(editor)
    kind.load(kind.find(chosen), chosen, fakes.Listener())
    return editor


def test_what_it_has_and_the_plan_does_not_ask_for_is_refused_too(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="works with --quantize 'int8', not 'as-stored'"):
        Session(loaded_fake(quantize="int8")).run(fakes.plan(clip, tmp_path / "out"))


def test_another_model_is_refused(clip: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", working={"frames": 5})
    with pytest.raises(UsageError, match=r"the loaded model is .*checkpoint', not .*other'"):
        Session(loaded_fake()).run(fakes.plan(clip, tmp_path / "out", model=str(other)))


def test_what_it_is_fits_what_is_left_open(clip: Path, tmp_path: Path) -> None:
    """'auto' takes what there is, and the file says what that was."""
    editor = loaded_fake(memory="tiled", attention="sdpa", device="cpu")
    result = Session(editor).run(fakes.plan(clip, tmp_path / "out", device="cpu", dtype="float32"))
    assert (result.settings["memory"], result.settings["attention"]) == ("tiled", "sdpa")
    assert result.seconds["load"] == 0 and editor.closed == 0


def test_one_editor_for_several_plans(clip: Path, tmp_path: Path) -> None:
    editor = fakes.FakeEditor()
    kind = fakes.FakeKind(editor)
    with fakes.registered(kind), Session() as session:
        for name in ("a", "b"):
            session.run(fakes.plan(clip, tmp_path / name))
        assert kind.loaded == [str(CHECKPOINT)] and len(editor.seen) == 2 and editor.closed == 0
    assert editor.closed == 1


# -- the end, whatever it is -------------------------------------------------------------------------------------


def test_a_loaded_editor_is_closed_after_a_failure(clip: Path, tmp_path: Path) -> None:
    editor = fakes.FailingEditor(KiwiError("no"))
    with pytest.raises(KiwiError, match="no"):
        fakes.edit(clip, tmp_path / "out", editor)
    assert editor.closed == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("working", [{}, {"frames": 5}])
def test_a_process_that_helps_writes_nothing_and_goes_on(
    working: dict[str, int], fails: bool, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two processes has done its share when the latents are there; its caller goes on."""
    model = make_model(tmp_path / "model", **({"working": working} if working else {}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    editor = fakes.FailingEditor(KiwiError("no")) if fails else fakes.FakeEditor(_never)
    options = {"model": str(model), "size": "64x64"}
    if fails:
        with pytest.raises(KiwiError, match="no"):
            fakes.edit(clip, tmp_path / "out", editor, **options)
    else:
        result = fakes.edit(clip, tmp_path / "out", editor, **options)
        assert result.frames == 0 and len(editor.seen) == (3 if working else 1)
    assert editor.closed == 1 and not (tmp_path / "out").exists()


def _never(frames: np.ndarray) -> np.ndarray:
    raise AssertionError("frames are made by the first process only")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """This process has met others; whether it is still in their group."""
    import torch.distributed as dist

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.is_initialized
    if dist.is_initialized():
        dist.destroy_process_group()


def test_closing_leaves_the_other_processes(loaded: Any, group: Callable[[], bool]) -> None:
    KiwiEditor(loaded, ModelChoice(str(CHECKPOINT)), CHECKPOINT).close()
    assert not group()


def test_a_model_that_cannot_be_loaded_leaves_them_too(group: Callable[[], bool]) -> None:
    choice = ModelChoice(str(CHECKPOINT), device="cpu", attention="flash3")
    with pytest.raises(KiwiError):
        kiwi.load(kiwi.find(choice), choice)
    assert not group()


# -- kiwi's own --------------------------------------------------------------------------------------------------


def test_kiwis_own_editor_is_one(loaded: Any, clip: Path, tmp_path: Path) -> None:
    editor: Editor = KiwiEditor(loaded, ModelChoice(str(CHECKPOINT)), CHECKPOINT)
    assert (editor.multiple, editor.most_frames, editor.takes_references) == (32, None, True)
    plan = prepare(EditRequest.of(clip, "x", model=str(CHECKPOINT), size="64x64", steps=2, output=tmp_path / "out"))
    result = Session(editor).run(plan)
    identity = editor.identity()
    assert (result.device, result.dtype) == (identity.device, identity.dtype) == ("cpu", "float32")
    assert result.settings["checkpoint"] == identity.checkpoint is not None


def test_kiwis_own_editor_gives_the_pipelines_frames(loaded: Any) -> None:
    """As they are decoded from the latents that it gives beside them."""
    frames = random_frames(5)
    editor = KiwiEditor(loaded, ModelChoice(str(CHECKPOINT)))
    done = editor.edit(frames, "make it snowy", denoising=Denoising(steps=2, seed=3, sigma_min=0.0))
    assert done.latents is not None and done.approximations == () and done.calibration is None
    chunks = list(done.frames)
    assert [len(chunk) for chunk in chunks] == [1, 4]
    assert np.array_equal(np.concatenate(chunks), np.concatenate(list(loaded.decode(done.latents, 5))))
    expected = loaded.edit(frames, "make it snowy", steps=2, seed=3, sigma_min=0.0)
    assert np.array_equal(np.concatenate(chunks), expected)
