"""Every option of `edit` and `ref-edit` comes back from the file: `show` says it, and `rerun` does the same again.

The options are the app's own list. A new one fails here until it says below what becomes of it: RECORDED, with a value
and what `show --json` then holds; or UNRECORDED, which changes nothing of what is in the frames.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from kiwi_cli.cli.commands import registered

from .. import fakes
from ..conftest import CHECKPOINT, make_model
from ..video.media import Sound, make_clip, make_sequence, picture
from .terminal import inside

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_MODEL = "someone/small"

# option: (arguments, what `show --json` says under which key)
RECORDED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "input": ((), {"input": {"path": "clip"}}),
    "instruction": (("--", "  make it  snowy "), {"typed": "  make it  snowy ", "instruction": "make it snowy"}),
    "start": (("--start", "0:00.1"), {"start": 0.1}),
    "to": (("--start", "100ms", "--to", "0.23"), {"start": 0.1, "duration": 0.13}),
    "duration": (("--duration", "0.13"), {"duration": 0.13}),
    "windows": (("--windows", "off"), {"windows": "off"}),
    "overlap": (("--overlap", "8"), {"overlap": 8}),
    "anchor": (("--anchor", "first"), {"anchor": "first"}),
    "contexts": (("--contexts", "window"), {"contexts": "window"}),
    "frames": (("--frames", "3"), {"max_frames": 3, "frames": 3}),
    "fps": (("--fps", "11.988"), {"fps": 11.988}),
    "keep_rest": (("--keep-rest", "--frames", "2"), {"keep_rest": True}),
    "allow_truncated": (("--allow-truncated",), {"allow_truncated": True}),
    "mask": (("--mask", "mask.png"), {"mask": {"path": "mask.png"}}),
    "feather": (("--mask", "8,8,32,24", "--feather", "5"), {"mask": {"path": "8,8,32,24"}, "feather": 5}),
    "size": (("--size", "128x96"), {"size": "128x96"}),
    "fit": (("--fit", "crop"), {"fit": "crop"}),
    "detail": (("--detail", "model"), {"detail": "model"}),
    "task": (("--task", "remove"), {"task": "remove"}),
    "force": (("--force",), {"force": True}),
    "raw": (("--raw", "--", "  as  typed "), {"raw": True, "typed": "  as  typed ", "instruction": "  as  typed "}),
    "model": (("--model", "copy"), {"model": "copy"}),
    "revision": (("--model", HUB_MODEL, "--revision", "v1"), {"model": HUB_MODEL, "revision": COMMIT}),
    "loras": (("--lora", "style.safetensors:0.5"), {"loras": [{"source": "style.safetensors", "weight": 0.5}]}),
    "dtype": (("--dtype", "bfloat16"), {"dtype": "bfloat16"}),
    "memory": (("--memory", "tiled"), {"memory": "tiled"}),
    "gguf": (("--gguf", "some.gguf"), {"gguf": {"path": "some.gguf"}}),
    "quantize": (("--quantize", "fp8-storage"), {"quantize": "fp8-storage"}),
    "attention": (("--attention", "sdpa"), {"attention": "sdpa"}),
    "compile": (("--compile",), {"compile": True}),
    "editor": (("--editor", "command:cp {input} {output}"), {"editor": "command:cp {input} {output}"}),
    "codec": (("--codec", "FFV1"), {"codec": "ffv1"}),
    "quality": (("--quality", "17"), {"quality": "17"}),
    "sound": (("--no-sound", "--codec", "ffv1"), {"sound": False}),
    "steps": (("--steps", "3"), {"steps": 3}),
    "solver": (("--solver", "unipc"), {"solver": "unipc"}),
    "cache": (("--cache", "first-block"), {"cache": "first-block"}),
    "cache_threshold": (("--cache", "easy", "--cache-threshold", "0.25"), {"cache": "easy", "cache_threshold": 0.25}),
    "cache_ratios": (
        ("--cache", "mag", "--cache-ratios", "ratios.json"),
        {"cache": "mag", "cache_ratios": {"path": "ratios.json"}},
    ),
    "seed": (("--seed", str(2**64 - 1)), {"seed": 2**64 - 1}),
    "references": (
        ("--ref", "ref.png", "--ref", "other.png"),
        {"references": [{"path": "ref.png"}, {"path": "other.png"}], "typed": "go"},
    ),
    "replace": (
        ("--ref", "ref.png", "--replace", "background", "--", ""),
        {"references": [{"path": "ref.png"}]},
    ),
}
UNRECORDED = {
    "output": "where it is written is where the file is",
    "overwrite": "whether a file there may be replaced",
    "download": "whether missing weights may be fetched",
    "device": "the one that was used is recorded; rerun takes what is there",
    "max_memory": "the plan keeps to it, with the same result",
    "editor_timeout": "how long a program or a service may take",
    "editor_price": "what is said of a service's price",
    "compare": "another file",
    "sheet": "another file",
    "sidecar": "another file",
    "keep_latents": "another file",
    "preview": "no edit is made, only a sheet",
    "seeds": "no edit is made, only a sheet",
    "save_every": "a state that goes when the edit is done",
    "out_dir": "where several clips' results go",
    "workers": "several clips: who edits them",
    "gpus": "several clips: who edits them",
    "retry_failed": "several clips: which are tried again",
    "skip_bad": "several clips: which are left out",
    "calibrate_cache": "another file, and the edit stays exact",
    "dry_run": "nothing is made",
    "as_json": "the terminal",
    "quiet": "the terminal",
    "verbose": "the terminal",
}
VIDEO = ("codec", "quality", "sound")  # what PNG files have no use for
LOSSY = ("quality",)  # a codec with threads of its own
# These change a loaded model, which the record is made from.
REAL = ("loras",)


def options_of(command: str) -> list[str]:
    return [parameter.name for parameter in typer.main.get_command(registered()).commands[command].params]  # type: ignore[attr-defined]


EDIT, REF_EDIT = options_of("edit"), options_of("ref-edit")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that an option may name. Do not change it."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("workshop")
    make_sequence(folder / "clip", 6, (72, 48))
    make_clip(folder / "clip.mkv", frames=6, sound=Sound(seconds=0.24))
    for name, number in (("ref.png", 77), ("other.png", 140)):
        Image.fromarray(picture(number, 72, 48)).save(folder / name)
    mask = np.zeros((48, 72), np.uint8)
    mask[10:30, 20:60] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    make_model(folder / "copy")
    (folder / "some.gguf").write_bytes(b"GGUF")
    module = "blocks.0.attn1.to_q"
    lora = {f"{module}.lora_A.weight": torch.ones(2, 48), f"{module}.lora_B.weight": torch.ones(48, 2)}
    save_file(lora, folder / "style.safetensors")
    return folder


def within(said: Any, expected: Any) -> bool:
    """Whether everything that is expected is said; a dict may say more."""
    if isinstance(expected, dict):
        return isinstance(said, dict) and all(within(said.get(key), value) for key, value in expected.items())
    if isinstance(expected, list):
        return isinstance(said, list) and len(said) == len(expected) and all(map(within, said, expected))
    return bool(said == expected) and type(said) is type(expected)


def settings_of(capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    code, out, err = inside(capsys, "show", path, "--json")
    assert code == 0, err
    return json.loads(out)["settings"]


class Trip:
    """A file made by a command, and made again from itself."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], editor: fakes.FakeEditor | None) -> None:
        self.folder, self.capsys, self.editor = folder, capsys, editor

    def kiwi(self, *arguments: Any) -> None:
        if self.editor is None:
            code, _, err = inside(self.capsys, *arguments)
        else:
            with fakes.commands_use(self.editor):
                code, _, err = inside(self.capsys, *arguments)
        assert code == 0, err

    def go(
        self, command: str, source: str, options: tuple[str, ...], suffix: str = "", exact: bool = True
    ) -> list[dict[str, Any]]:
        """The settings of both files, after asserting that their frames are the same (their number, if not `exact`)."""
        outs = [self.folder / f"{name}{suffix}" for name in ("first", "again")]
        words = ("go",) if "--" not in options else ()
        base = () if "--model" in options else ("--model", str(CHECKPOINT))
        dashes = options.index("--") if words == () else len(options)
        before, after = options[:dashes], options[dashes:]
        self.kiwi(command, self.folder / source, *words, *base, "-o", outs[0], *before, *after)
        self.kiwi("rerun", outs[0], "-o", outs[1])
        if exact:
            assert frames(outs[0]) == frames(outs[1])
        assert len(frames(outs[0])) == len(frames(outs[1]))
        return [settings_of(self.capsys, out) for out in outs]


def frames(path: Path) -> list[bytes]:
    from .terminal import frames_of

    files = sorted(path.glob("*.png")) if path.is_dir() else []
    if files:
        return [np.asarray(Image.open(file)).tobytes() for file in files]
    return [frame.tobytes() for frame in frames_of(path)]


def essence(call: dict[str, Any]) -> dict[str, Any]:
    """What an editor was asked for, in comparable form."""
    left = {name: value for name, value in call.items() if name not in ("progress", "notify", "origin")}
    left["frames"] = call["frames"].tobytes()
    left["references"] = [reference.tobytes() for reference in call["references"]]
    return {name: repr(value) for name, value in left.items()}


@pytest.mark.parametrize("command", ["edit", "ref-edit"])
def test_every_option_is_accounted_for(command: str) -> None:
    assert not RECORDED.keys() & UNRECORDED.keys()
    assert set(options_of(command)) <= RECORDED.keys() | UNRECORDED.keys(), "say below what becomes of a new option"
    assert RECORDED.keys() | UNRECORDED.keys() == set(EDIT) | set(REF_EDIT), "an option that is not there any more"


@pytest.fixture
def files(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workshop's files, to write beside; the working folder."""
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("command", "option"),
    [("edit", name) for name in EDIT if name in RECORDED]
    + [("ref-edit", name) for name in REF_EDIT if name in RECORDED and name not in EDIT],
)
def test_an_option_comes_back(
    command: str, option: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, expected = RECORDED[option]
    if option == "revision":
        cached = files / "hub" / f"models--{HUB_MODEL.replace('/', '--')}"
        shutil.copytree(CHECKPOINT, cached / "snapshots" / COMMIT)
        (cached / "refs").mkdir()
        (cached / "refs/v1").write_text(COMMIT)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(files / "hub"))
    if option == "cache_ratios":
        calibrate(files, capsys)
    if option == "dtype" or option in REAL:
        editor, options = None, (*options, "--size", "64x64", "--steps", "2", "--frames", "2")
    else:
        editor = fakes.FakeEditor(lambda frames: 255 - frames)
    trip = Trip(files, capsys, editor)
    source, suffix = ("clip.mkv", ".mkv") if option in VIDEO else ("clip", "")
    first, again = trip.go(command, source, options, suffix, exact=option not in LOSSY)
    assert within(first, expected), {key: first.get(key) for key in expected}
    assert again == first
    if editor is not None:
        calls = [essence(call) for call in editor.seen]
        assert len(calls) == 2 and calls[0] == calls[1]


def calibrate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Write the ratios of the small checkpoint, for as many steps as the fake takes."""
    editor = fakes.CalibratingEditor([[1.0] * 50], shift=5.0)
    arguments = ("edit", folder / "clip", "x", "--model", CHECKPOINT, "-o", folder / "measured")
    with fakes.commands_use(editor):
        code, _, err = inside(capsys, *arguments, "--calibrate-cache", folder / "ratios.json")
    assert code == 0, err


UNRECORDED_GIVEN: dict[str, tuple[str, ...]] = {
    "download": ("--no-download",),
    "device": ("--device", "cpu"),
    "max_memory": ("--max-memory", "3GB"),
    "compare": ("--compare", "wipe"),
    "sheet": ("--sheet",),
    "sidecar": ("--sidecar",),
    "quiet": ("--quiet",),
    "verbose": ("--verbose",),
    "as_json": ("--json",),
    "overwrite": ("--overwrite",),
    "save_every": ("--save-every", "0:30"),
}


@pytest.mark.parametrize("option", UNRECORDED_GIVEN)
def test_what_is_not_recorded_changes_nothing_in_the_file(
    option: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    editor = fakes.FakeEditor(lambda frames: 255 - frames)
    trip = Trip(files, capsys, editor)
    trip.kiwi("edit", files / "clip", "go", "--model", CHECKPOINT, "-o", files / "plain")
    trip.kiwi("edit", files / "clip", "go", "--model", CHECKPOINT, "-o", files / "given", *UNRECORDED_GIVEN[option])
    assert settings_of(capsys, files / "plain") == settings_of(capsys, files / "given")
    assert frames(files / "plain") == frames(files / "given")
    assert essence(editor.seen[0]) == essence(editor.seen[1])


# -- what comes back from the file and is not an option ----------------------------------------------------------


@pytest.mark.parametrize("weight", ["0.5", "0.12345678", "1e-07"])
def test_a_weight_of_a_lora_comes_back_to_the_last_digit(
    weight: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--lora", f"style.safetensors:{weight}", "--size", "64x64", "--steps", "1", "--frames", "1")
    first, again = Trip(files, capsys, None).go("edit", "clip", options)
    assert first["loras"][0]["weight"] == again["loras"][0]["weight"] == float(weight)


def test_how_a_model_with_a_size_of_its_own_worked_comes_back(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(files / "windowed", working={"pixels": 4096, "frames": 5, "steps": 2})
    first, again = Trip(files, capsys, fakes.FakeEditor()).go("edit", "clip", ("--model", "windowed"))
    assert first["worked"] == "at 64x64, scaled to 72x48; in 2 windows of 5 frames"
    assert again["worked"] == first["worked"]


def test_windows_come_back(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(files / "windowed", working={"pixels": 4096, "frames": 5, "steps": 2})
    editor = fakes.FakeEditor()
    Trip(files, capsys, editor).go("edit", "clip", ("--model", "windowed"))
    calls = [essence(call) for call in editor.seen]
    assert len(calls) == 4 and calls[:2] == calls[2:]


def test_the_environment_does_not_change_a_rerun(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trip = Trip(files, capsys, fakes.FakeEditor())
    trip.kiwi("edit", files / "clip", "go", "--model", CHECKPOINT, "-o", files / "first")
    for name, value in {"KIWI_SIZE": "128x96", "KIWI_STEPS": "2", "KIWI_SOLVER": "unipc", "KIWI_CACHE": "easy"}.items():
        monkeypatch.setenv(name, value)
    trip.kiwi("rerun", files / "first", "-o", files / "again")
    assert settings_of(capsys, files / "first") == settings_of(capsys, files / "again")


def test_a_name_stays_a_name_whatever_lies_beside_the_output(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trip = Trip(files, capsys, fakes.FakeEditor())
    out = files / "results"
    out.mkdir()
    trip.kiwi("edit", files / "clip", "make it snowy", "--model", "tiny", "-o", out / "first")
    (out / "tiny").mkdir()
    trip.kiwi("rerun", out / "first", "-o", out / "again")
    assert settings_of(capsys, out / "again")["model"] == "tiny"
