"""Synthetic quadruplets on disk: source, instruction, target and reference, with the mask of what was edited.

Rows are made one at a time, so memory does not grow with their number, in a folder of another name that takes its
place when it is whole: an interrupted run leaves no table that names missing files. Clips are FFV1 in RGB and
pictures PNG, so that what is read back is the truth to the bit.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from kiwi_cli.base.version import __version__
from kiwi_cli.errors import UsageError
from kiwi_cli.synth.edits import STYLES, Edit, make_edit
from kiwi_cli.synth.natural import natural_scene, scene_with_things
from kiwi_cli.synth.scenes import Scene, make_scene
from kiwi_cli.synth.wordings import EVERY_KIND, KINDS, LOOK_KINDS, SPLITS, Split, wording
from kiwi_cli.video.geometry import MAX_SIDE, MIN_SIDE, Size, padded_frame_count

TableFormat = Literal["csv", "json", "jsonl"]
FORMATS: tuple[TableFormat, ...] = ("csv", "json", "jsonl")
COLUMNS = ("src_video", "tgt_video", "prompt", "ref_image", "mask", "kind", "wording_split")
RECORD = "synth.json"  # how a folder was made; only folders that have one are ever written over
CLIPS = "clips"
ON_ANYTHING = (*STYLES, *LOOK_KINDS)
"""Kinds that a scene without things can have."""
_OURS = (*(f"rows.{name}" for name in FORMATS), RECORD, CLIPS)  # tables first out and last in
_PARTIAL = ".kiwi-partial"
_PER_FOLDER = 1000  # rows whose files share a folder
MAX_FPS = 1000


@dataclass(frozen=True)
class Settings:
    """What is made. Equal settings make equal bytes (with the same versions of this package, FFmpeg and Pillow).

    Attributes:
        count: rows. kinds: taken in turn, so each has its share.
        width, height: pixels, 32 to 4096. frames: 4k + 1. fps: frames a second that the clips claim.
        seed: 0 or more; a row is a function of it, its own number and `held_out`, whatever `count` is.
        held_out: scenes with textures and hues that no other scene has.
        splits: which wordings; of two, the rows of each kind take them in turn.
        images: pictures instead of clips, for which `frames` is 1.
        natural: scenes nearer to filmed ones, for kinds that are about things with drawn ones on them.

    Raises:
        UsageError: an invalid value.
    """

    count: int
    kinds: tuple[str, ...] = KINDS
    width: int = 64
    height: int = 64
    frames: int = 5
    fps: float = 24.0
    seed: int = 0
    held_out: bool = False
    splits: tuple[Split, ...] = ("seen",)
    images: bool = False
    natural: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"cannot write {self.count} rows", "pass --count 1 or more")
        for kind in self.kinds:
            if kind not in EVERY_KIND:
                raise UsageError(f"there is no kind of edit '{kind}'", f"the kinds are {', '.join(EVERY_KIND)}")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise UsageError(f"not a choice of kinds: '{','.join(self.kinds)}'", "name each kind once")
        if not (MIN_SIDE <= self.width <= MAX_SIDE and MIN_SIDE <= self.height <= MAX_SIDE):
            raise UsageError(
                f"clips cannot be {self.width}x{self.height}", f"both sides are from {MIN_SIDE} to {MAX_SIDE} pixels"
            )
        if self.frames != padded_frame_count(self.frames):
            more = padded_frame_count(self.frames)
            raise UsageError(
                f"the models take 1, 5, 9, ... 4k+1 frames, not {self.frames}", f"pass --frames {more - 4} or {more}"
            )
        if self.images and self.frames != 1:
            raise UsageError(f"a picture has one frame, not {self.frames}", "leave out --images or --frames")
        if not (math.isfinite(self.fps) and 0 < self.fps <= MAX_FPS):
            raise UsageError(f"not a frame rate: {self.fps:g}", f"pass --fps from above 0 to {MAX_FPS}")
        if self.seed < 0:
            raise UsageError(f"not a seed: {self.seed}", "pass --seed 0 or more")
        if not self.splits or any(split not in SPLITS for split in self.splits):
            raise UsageError(f"not a choice of wordings: {self.splits}", f"choose among {', '.join(SPLITS)}")


@dataclass(frozen=True)
class Quadruplet:
    """One row in memory: `scene.source`, `edit.target`, `edit.mask`, `edit.reference` and the instruction."""

    index: int
    scene: Scene
    edit: Edit
    prompt: str
    split: Split


@dataclass(frozen=True)
class Written:
    """What came of it. `table`: the file that lists the rows; `kinds`: rows of each kind; `bytes`: of everything."""

    folder: Path
    table: Path
    rows: int
    kinds: dict[str, int]
    bytes: int


def quadruplet(settings: Settings, index: int) -> Quadruplet:
    """The row of a number from 0."""
    turn, place = divmod(index, len(settings.kinds))
    kind, split = settings.kinds[place], settings.splits[turn % len(settings.splits)]
    roots = np.random.SeedSequence([settings.seed, index, int(settings.held_out)]).spawn(3)
    # The words have draws of their own: the same pixels can be had with other words.
    scene_seed, edit_rng, words_rng = roots[0].generate_state(1)[0], *map(np.random.default_rng, roots[1:])
    on_natural = natural_scene if kind in ON_ANYTHING else scene_with_things
    made = on_natural if settings.natural else make_scene
    scene = made(int(scene_seed), settings.width, settings.height, settings.frames, settings.held_out)
    edit = make_edit(scene, kind, edit_rng, settings.held_out)
    return Quadruplet(index, scene, edit, wording(kind, edit.slots, words_rng, split), split)


def quadruplets(settings: Settings) -> Iterator[Quadruplet]:
    """All rows in order, one at a time."""
    return (quadruplet(settings, index) for index in range(settings.count))


def write_rows(
    out: Path,
    settings: Settings,
    table_format: TableFormat = "csv",
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Make a folder of quadruplets: `rows.csv` (or .json, .jsonl), the files it names, and `synth.json`.

    Args:
        out: a folder that is not there yet, or is empty.
        overwrite: replace rows that this function made; other files in the folder stay.
        progress: called with (rows done, rows in all) after each.

    Raises:
        UsageError: `out` exists, is none of ours, or the format is unknown. Nothing is written.
        MediaError: the disk is full, or the folder cannot be written to. Nothing is left.
    """
    from kiwi_cli.video.failures import writing

    if table_format not in FORMATS:
        raise UsageError(f"unknown format '{table_format}'", f"use one of {', '.join(FORMATS)}")
    check_folder(out, overwrite)
    with writing(out, "choose another folder", "choose another folder"):
        beside = out if out.exists() else out.parent
        beside.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}-", suffix=_PARTIAL, dir=beside))
    try:
        with writing(out, "choose another folder", "choose another folder"):
            folder = temporary / "whole"
            folder.mkdir()
            table, kinds = folder / f"rows.{table_format}", Counter[str]()
            with table.open("w", encoding="utf-8", newline="") as file:
                add_row = _table(file, table_format)
                for row in quadruplets(settings):
                    add_row(_write_files(folder, row, settings))
                    kinds[row.edit.kind] += 1
                    progress(row.index + 1, settings.count)
                add_row(None)
            (folder / RECORD).write_text(json.dumps(_record(settings), indent=2) + "\n", encoding="utf-8")
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            _publish(folder, out, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Written(out, out / table.name, settings.count, dict(kinds), size)


def check_folder(out: Path, overwrite: bool) -> None:
    """Raises UsageError when `out` may not be written: a file, or a folder with something in it that is not to be
    replaced, or that `write_rows` did not make."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UsageError(f"'{out}' exists already and is no folder", "choose another name")
    if all(path.name.endswith(_PARTIAL) for path in out.iterdir()):  # at most what a killed run left
        return
    if not (out / RECORD).is_file():
        raise UsageError(f"'{out}' holds other things", "choose another folder: only synthetic rows are replaced")
    if not overwrite:
        raise UsageError(f"'{out}' exists already", "pass --overwrite to replace it, or choose another folder")


def write_clip(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write (F, H, W, 3) uint8 without loss and without anything random in the file: FFV1, RGB, Matroska."""
    import av

    from kiwi_cli.video.clip import Colour
    from kiwi_cli.video.codecs import choose_encoding

    size = Size(frames.shape[2], frames.shape[1])
    encoding = choose_encoding("mkv", "ffv1", "lossless", size, Colour())
    rate = Fraction(fps).limit_denominator(1001)
    # Matroska files carry a random number and the date unless told not to.
    with av.open(str(path), "w", format="matroska", container_options={"fflags": "+bitexact"}) as output:
        # One slice on one thread: their number would depend on the machine, and the bytes on their number.
        options = {**encoding.options, "slices": "4", "threads": "1"}
        stream: Any = output.add_stream(encoding.encoder, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, encoding.pixel_format
        stream.codec_context.time_base = 1 / rate
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture = picture.reformat(format=encoding.pixel_format)
            picture.pts, picture.time_base = number, 1 / rate
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as PNG."""
    from PIL import Image

    Image.fromarray(pixels).save(path, format="PNG")


def _write_files(folder: Path, row: Quadruplet, settings: Settings) -> dict[str, str | None]:
    """Write a row's files; its line in the table, paths relative to `folder` with forward slashes."""
    parent = Path(CLIPS) / f"{row.index // _PER_FOLDER:04d}"
    (folder / parent).mkdir(parents=True, exist_ok=True)
    edit = row.edit
    mask = np.repeat(edit.mask[..., None].astype(np.uint8) * np.uint8(255), 3, axis=-1)
    names: dict[str, str | None] = {}
    for column, part, frames in (
        ("src_video", "source", row.scene.source),
        ("tgt_video", "target", edit.target),
        ("mask", "mask", mask),
    ):
        path = parent / f"{row.index:06d}-{part}.{'png' if settings.images else 'mkv'}"
        if settings.images:
            write_picture(folder / path, frames[0])
        else:
            write_clip(folder / path, frames, settings.fps)
        names[column] = path.as_posix()
    names["ref_image"] = None
    if edit.reference is not None:
        path = parent / f"{row.index:06d}-reference.png"
        write_picture(folder / path, edit.reference)
        names["ref_image"] = path.as_posix()
    values = {**names, "prompt": row.prompt, "kind": edit.kind, "wording_split": row.split}
    return {column: values[column] for column in COLUMNS}


def _table(file: IO[str], table_format: TableFormat) -> Callable[[dict[str, str | None] | None], None]:
    """A function that adds a row to the open table, and ends it when given None."""
    if table_format == "csv":
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        return lambda row: None if row is None else writer.writerow(row)
    opening, between, closing = ("[\n", ",\n", "\n]\n") if table_format == "json" else ("", "\n", "\n")
    before = opening

    def add(row: dict[str, str | None] | None) -> None:
        nonlocal before
        file.write(closing if row is None else before + json.dumps(row, ensure_ascii=False))
        before = between

    return add


def _record(settings: Settings) -> dict[str, Any]:
    """How the folder was made."""
    return {
        "kiwi": __version__,
        **{name: getattr(settings, name) for name in ("count", "seed", "width", "height", "frames", "fps")},
        "kinds": list(settings.kinds),
        "held_out": settings.held_out,
        "wordings": list(settings.splits),
        "images": settings.images,
        "natural": settings.natural,
    }


def _publish(folder: Path, out: Path, temporary: Path) -> None:
    """Move what was made to its place; what was there is gone only when that has worked."""
    if not out.exists():
        folder.rename(out)
        return
    replaced = temporary / "replaced"
    replaced.mkdir()
    try:
        _move(_OURS, out, replaced)
        _move(_OURS[::-1], folder, out)
    except BaseException:
        _move(_OURS, out, folder)
        _move(_OURS[::-1], replaced, out)
        raise


def _move(names: tuple[str, ...], source: Path, destination: Path) -> None:
    for name in names:
        if (source / name).exists() and not (destination / name).exists():
            (source / name).rename(destination / name)
