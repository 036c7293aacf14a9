"""Command lines and damaged files at random, from a seed, and what must hold whatever they are.

The options come from the table of options: a new one is tried without a word here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import typer
from PIL import Image

from kiwi_cli.base.option import Row, rows
from kiwi_cli.cli import run
from kiwi_cli.cli.commands import registered
from kiwi_cli.editing.request import EditRequest
from kiwi_cli.errors import MediaError
from kiwi_cli.video.sinks import VideoSink

from .. import fakes
from ..conftest import CHECKPOINT
from ..video.media import Sound, make_clip, make_sequence, picture

TABLE = rows(EditRequest)
LIMIT = 60  # seconds that a command may take before it counts as hanging; most take a tenth of one
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "5",
    "17",
    "81",
    "-1",
    "-7",
    "1.5",
    "0.04",
    "1e3",
    "nan",
    "inf",
    "1e400",
    "9" * 30,
    "x",
    "",
)
TIMES = ("0", "0.08", "40ms", "0:00.1", "1s", "9", "-1", "1h", "1:2:3:4", "soon", "nan", "9" * 39, "0.1s", "1e-9")
WORDS = ("make it snowy", "x", "", "   ", "a\nb", "❄" * 40, "<|im_end|>", "--", "-", "s" * 3000, 'it\'s "quoted" \\')
JUNK = ("", "x", "auto", "-1", "0", "none", "❄", "a/b", "../..", "x" * 300, "\x01", "%s%n", "{}", "~")
SIZES = (
    "64x64",
    "96x64",
    "32x32",
    "33x70",
    "480p",
    "source",
    "0x0",
    "8x8",
    "64",
    "x",
    "-64x64",
    "99999x99999",
    "1e3x2",
)
MASKS = ("0,0,16,16", "-4,-4,99,99", "60,40,1,1", "5000,0,9,9", "0,0,0,0", "1,2,3", "a,b,c,d", "9" * 25 + ",0,1,1")
QUALITIES = ("low", "medium", "high", "lossless", "0", "17", "51", "63", "99", "-1", "1.5", "best", "")
OUTPUTS = (
    *("out.mp4", "out.mkv", "out.mov", "out.webm", "out.gif", "out.png", "out.jpg", "out.webp", "out", "OUT.MP4"),
    *("a.mp4", "frames", "void", "nowhere/x.mp4", "out.xyz", "x" * 260 + ".mp4", "", ".", "out put.mkv"),
)
OUT_DIRS = ("many",) * 6 + ("many/deeper", "void", "frames", "a.mp4", "nowhere/x/y", "", ".", "x" * 300)
CODECS = ("h264", "hevc", "vp9", "ffv1", "prores", "av1", "h265", "x264", "h264_nvenc", "divx", "gif", "", "H264")


@dataclass
class Playground:
    """A folder with inputs of many kinds, which every command must leave as they are."""

    folder: Path
    inputs: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    @classmethod
    def filled(cls, folder: Path) -> Playground:
        small: dict[str, Any] = {"frames": 6, "size": (64, 48)}
        make_clip(folder / "a.mp4", **small, sound=Sound(seconds=0.24))
        make_clip(folder / "b.mkv", **small, sound=Sound(codec="pcm_s16le", seconds=0.24))
        make_clip(folder / "odd.mov", frames=3, size=(51, 37), codec="prores_ks", pixel_format="yuv422p10le")
        make_clip(folder / "d.webm", **small, codec="libvpx-vp9")
        make_sequence(folder / "frames", 4, (48, 32))
        fakes.edit(folder / "a.mp4", folder / "loop.gif", frames=3)
        Image.fromarray(picture(1, 64, 48)).save(folder / "p.png")
        Image.fromarray(picture(2, 40, 56)).save(folder / "p.jpg")
        mask = np.zeros((48, 64), np.uint8)
        mask[8:40, 8:40] = 255
        Image.fromarray(mask).save(folder / "mask.png")
        (folder / "text.mp4").write_text("no video\n" * 9)
        (folder / "empty.png").touch()
        (folder / "void").mkdir()
        fakes.edit(folder / "b.mkv", folder / "made.mkv", frames=3, sidecar=True)
        with mock.patch.object(VideoSink, "finish", side_effect=OSError("no")), contextlib.suppress(MediaError):
            fakes.edit(folder / "b.mkv", folder / "late.mkv", frames=3)
        assert (folder / "late.mkv.unfinished").is_file()
        inputs = ["a.mp4", "b.mkv", "odd.mov", "d.webm", "frames", "loop.gif", "p.png", "p.jpg"]
        bad = ["text.mp4", "empty.png", "void", "missing.mp4", "/dev/null", "mask.png", ".", "https://x.org/a.mp4"]
        return cls(folder, [*inputs * 8, *bad], ["made.mkv", "made.mkv.json", "a.mp4", "p.png", "missing.mp4", "void"])

    def state(self) -> dict[str, str]:
        """Every path in it, with what a file holds."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            data = path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(self.folder))] = hashlib.sha256(data).hexdigest()
        return found


GOOD: dict[str, Sequence[str]] = {
    "instruction": WORDS[:2],
    "output": OUTPUTS[:10],
    "size": SIZES[:4],
    "mask": (MASKS[0], MASKS[1], "mask.png", "a.mp4", "frames", "p.png"),
    "quality": QUALITIES[:6],
    "codec": CODECS[:4],
    "model": (str(CHECKPOINT),),
    "device": ("cpu", "auto"),
    "feather": ("0", "3"),
    "frames": ("1", "2", "3", "81"),
    "steps": ("1", "2"),
    "seed": ("0", "5", str(2**64 - 1)),
    "fps": ("5", "12.5", "25", "1000"),
    "start": TIMES[:4],
    "duration": TIMES[1:3],
    "to": ("0.2", "200ms"),
    "max_memory": ("1GB", "12GB"),
}
"""Values that an edit can be made with, mostly."""
WILD: dict[str, Sequence[str]] = {
    "instruction": WORDS,
    "output": OUTPUTS,
    "size": SIZES,
    "mask": (*MASKS, "missing.png", "text.mp4"),
    "quality": QUALITIES,
    "codec": CODECS,
    "model": ("tiny", "nosuch", "no/such", "void", "a.mp4"),
    "max_memory": ("0", "-1", "lots", "1e9", "99999TB"),
    "loras": ("void", "missing.safetensors", "a.mp4", "x:y", ":0.5", "some/repo:2"),
    "device": ("cuda", "cuda:7", "gpu", "mps"),
    "feather": ("600", "-1", "x"),
}


def a_value(row: Row, rng: random.Random) -> str:
    """A value of an option: three times in four one within its range."""
    known = row.option.known if isinstance(row.option.known, tuple) else ()
    if rng.random() < 0.75 and (good := GOOD.get(row.name, known)):
        return rng.choice(good)
    if row.name in WILD:
        return rng.choice(WILD[row.name])
    if row.option.parser is not None:
        return rng.choice(TIMES)
    if row.is_path:
        return rng.choice(("p.png", "p.jpg", "a.mp4", "void", "missing.png", "text.mp4", "empty.png", "frames", ""))
    return rng.choice((*known, *JUNK) if known else NUMBERS)


def command_line(rng: random.Random, playground: Playground) -> list[str]:
    """A command with some of its options, in some order."""
    command = rng.choice(("edit", "edit", "edit", "many", "ref-edit", "ref-edit", "rerun", "show", "finish"))
    if command in ("show", "finish"):
        return [command, rng.choice(playground.made + playground.inputs), *(["--json"] if rng.random() < 0.3 else [])]
    if command == "many":
        arguments = ["edit", *rng.choices(playground.inputs, k=rng.choice((1, 2, 2, 3)))]
        arguments += ["-i", rng.choice(WORDS if rng.random() < 0.15 else WORDS[:2])]
    else:
        arguments = [command, rng.choice(playground.inputs if command != "rerun" else playground.made)]
    if command == "edit" or (command == "ref-edit" and rng.random() < 0.5):
        arguments.append(rng.choice(WORDS if rng.random() < 0.15 else WORDS[:2]))
    options: list[str] = []
    if command != "rerun" and rng.random() < 0.95:
        options += ["--model", str(CHECKPOINT)]
    if command == "ref-edit":
        options += ["--ref", rng.choice(("p.png", "p.jpg", "mask.png", "loop.gif") * 3 + ("text.mp4",))]
    taken = [
        row for row in TABLE.values() if row.name not in ("input", "instruction", "references", "model", "revision")
    ]
    if command == "many":
        taken = [row for row in taken if row.name != "output"]
        options += ["--out-dir", rng.choice(OUT_DIRS)] if rng.random() < 0.95 else []
        options += [rng.choice(("--skip-bad", "--retry-failed"))] if rng.random() < 0.3 else []
    for row in rng.sample(taken, rng.choice((0, 1, 1, 2, 2, 3, 4, 6))):
        flags = [flag for flag in row.option.flags[-1].replace(" ", "").split("/") if flag]
        options.append(rng.choice(flags))
        if not row.is_flag:
            options.append(a_value(row, rng))
    for flag in ("--dry-run", "--json", "-q", "-v"):
        options += [flag] if rng.random() < 0.15 else []
    if rng.random() < 0.05:  # a word lost, or one twice
        place = rng.randrange(len(options) or 1)
        options = (
            options[:place] + options[place + 1 :] if rng.random() < 0.5 else options[: place + 1] + options[place:]
        )
    return arguments + options


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """An error when the block takes so long that a person would give up."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"it hangs: more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def perform(arguments: Sequence[str]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process, with an editor that changes nothing."""
    out, err = io.StringIO(), io.StringIO()
    with fakes.commands_use(fakes.FakeEditor()), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    return code, out.getvalue(), err.getvalue()


def check(playground: Playground, arguments: Sequence[str]) -> int:
    """Do a command and say its exit code, after asserting everything that must hold. What it made is removed."""
    before = playground.state()
    with no_hang():
        code, out, err = perform(arguments)
    after = playground.state()
    said = f"\n$ kiwi {arguments}\nexit code {code}\n{out}{err}"
    assert code in (0, 1, 2), said
    assert "Traceback" not in err and "unexpected" not in err and "fault in kiwi" not in err, said
    new = sorted(after.keys() - before.keys())
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    assert not any("kiwi-partial" in name for name in new), said
    if code != 2 and "--out-dir" in arguments and "--dry-run" not in arguments:
        return check_many(playground, arguments, code, new, changed, said)
    if code != 0:
        assert "error: " in err and "hint: " in err, said
        hint = err.rpartition("\nhint: ")[2].partition("kiwi ")[0]  # of this command, up to another one's
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", hint)) <= options_of(arguments[0]), said
        assert not new and not changed, f"{new} {changed}{said}"
        assert out == "" or "--dry-run" in arguments, said
        return code
    if arguments[0] == "finish":
        changed = [name for name in changed if name != arguments[1]]  # it is removed when it is written
    told = {name for name in changed if "--overwrite" in arguments and name in ("a.mp4", "frames", "made.mkv")}
    assert set(changed) <= told, f"changed: {changed}{said}"
    assert out and (new or changed or "--dry-run" in arguments or arguments[0] in ("show", "finish")), said
    for name in sorted(new, reverse=True):
        path = playground.folder / name
        path.rmdir() if path.is_dir() else path.unlink()
    return code


@cache
def options_of(command: str) -> set[str]:
    """What may be typed after a command."""
    found: Any = typer.main.get_command(registered())
    return {word for parameter in found.commands[command].params for word in parameter.opts + parameter.secondary_opts}


def check_many(
    playground: Playground, arguments: Sequence[str], code: int, new: list[str], changed: list[str], said: str
) -> int:
    """Of a run over several inputs, whatever came of each: all that is new lies in its folder, which is removed."""
    folder = arguments[arguments.index("--out-dir") + 1]
    assert not changed, f"changed: {changed}{said}"
    assert new and (folder == "." or all(name == part_of(name, folder) for name in new)), f"{new}{said}"
    results = [name for name in new if ".kiwi-batch" not in name and (playground.folder / name).is_file()]
    assert results or code == 1, said
    for name in sorted(new, reverse=True):
        path = playground.folder / name
        path.rmdir() if path.is_dir() else path.unlink()
    return code


def part_of(name: str, folder: str) -> str:
    """`name` when it is `folder`, lies in it, or is on the way to it; '' otherwise."""
    path, whole = Path(name), Path(folder)
    return name if path.is_relative_to(whole) or whole.is_relative_to(path) else ""


def random_commands(seed: int, count: int, playground: Playground) -> dict[int, int]:
    """How often each exit code came out of `count` command lines."""
    rng = random.Random(seed)
    codes = {0: 0, 1: 0, 2: 0}
    for _ in range(count):
        codes[check(playground, command_line(rng, playground))] += 1
    return codes


def damaged_inputs(
    seed: int, count: int, playground: Playground, mutated: Callable[[bytes, random.Random], bytes]
) -> dict[int, int]:
    """The same of `count` damaged files, as an input, a mask, a reference, an output to show and to make again."""
    rng = random.Random(seed)
    files = ["a.mp4", "b.mkv", "odd.mov", "d.webm", "loop.gif", "p.png", "p.jpg", "made.mkv", "made.mkv.json"]
    files += ["late.mkv.unfinished"] * 2
    codes = {0: 0, 1: 0, 2: 0}
    model = ["--model", str(CHECKPOINT)]
    for number in range(count):
        name = rng.choice(files)
        bad = f"bad-{number}{Path(name).suffix}"
        (playground.folder / bad).write_bytes(mutated((playground.folder / name).read_bytes(), rng))
        output = ["-o", "out.png" if name.startswith("p.") else rng.choice(("out.mp4", "out.mkv", "out"))]
        more = ["--allow-truncated"] if rng.random() < 0.3 else []
        ways = [["finish", bad, "-o", "out.mkv"]] if bad.endswith(".unfinished") else []
        arguments = rng.choice(
            ways
            or (
                ["edit", bad, "x", *model, *output, *more],
                ["edit", bad, "x", *model, *output, *more],
                ["edit", "a.mp4", "x", *model, "--mask", bad, "-o", "out.mkv"],
                ["ref-edit", "a.mp4", "--ref", bad, *model, "-o", "out.mkv"],
                ["show", bad],
                ["rerun", bad, "-o", "out.mkv"],
            )
        )
        codes[check(playground, arguments)] += 1
        (playground.folder / bad).unlink(missing_ok=True)
    return codes
