"""Synthetic rows on disk: the truth to the bit, the same bytes from the same seed, and nothing half done."""

from __future__ import annotations

import csv
import errno
import json
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from kiwi_cli.errors import MediaError, UsageError
from kiwi_cli.synth import writer
from kiwi_cli.synth.wordings import KINDS, SPLITS, WORDINGS, fill, written
from kiwi_cli.synth.writer import COLUMNS, RECORD, Settings, quadruplet, quadruplets, write_clip, write_rows
from kiwi_cli.video import load_mask, probe, read_frames, select


def pixels(path: Path) -> np.ndarray:
    """Frames as the project reads them, (F, H, W, 3) uint8."""
    clip = probe(path)
    return np.stack([frame.rgb for frame in read_frames(clip, select(clip))])


def table(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("settings", [Settings(13, seed=4), Settings(13, width=33, height=47, frames=9, fps=29.97)])
def test_what_is_read_back_is_the_truth_to_the_bit(settings: Settings, tmp_path: Path) -> None:
    written_ = write_rows(tmp_path / "rows", settings)
    rows = table(written_.table)
    assert written_.rows == len(rows) == 13 and written_.kinds == dict.fromkeys(KINDS, 1)
    for row, made in zip(rows, quadruplets(settings), strict=True):
        assert tuple(row) == COLUMNS
        assert np.array_equal(pixels(tmp_path / "rows" / row["src_video"]), made.scene.source)
        assert np.array_equal(pixels(tmp_path / "rows" / row["tgt_video"]), made.edit.target)
        mask = pixels(tmp_path / "rows" / row["mask"])
        assert set(np.unique(mask)) <= {0, 255} and np.array_equal(mask[..., 0] == 255, made.edit.mask)
        assert (row["prompt"], row["kind"], row["wording_split"]) == (made.prompt, made.edit.kind, "seen")
        if made.edit.reference is None:
            assert row["ref_image"] == ""
        else:
            assert np.array_equal(np.asarray(Image.open(tmp_path / "rows" / row["ref_image"])), made.edit.reference)


def test_clips_have_the_rate_and_length_they_claim(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", Settings(1, frames=9, fps=12.5))
    clip = probe(next((tmp_path / "rows").rglob("*-source.mkv")))
    assert clip.fps == 12.5 and clip.frame_count == 9 and not clip.variable_rate
    assert (clip.width, clip.height) == (64, 64)


def test_the_mask_serves_an_edit(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", Settings(1, kinds=("remove",)))
    source, mask = (next((tmp_path / "rows").rglob(f"*-{part}.mkv")) for part in ("source", "mask"))
    assert load_mask(str(mask), probe(source)) is not None


def test_the_same_seed_makes_the_same_bytes_and_another_makes_others(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        write_rows(tmp_path / name, Settings(13, width=48, height=32, seed=seed), "jsonl")
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    other = everything(tmp_path / "c")
    assert all(other[name] != data for name, data in everything(tmp_path / "a").items() if "source" in name)


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    few, many = list(quadruplets(Settings(13))), quadruplet(Settings(1000), 12)
    assert few[12].prompt == many.prompt and np.array_equal(few[12].edit.target, many.edit.target)


@pytest.mark.parametrize("name", ["csv", "json", "jsonl"])
def test_the_table_in_each_format(name: Any, tmp_path: Path) -> None:
    settings = Settings(4, kinds=("add", "reference-subject"), width=32, height=32, frames=1)
    rows = table(write_rows(tmp_path / "rows", settings, name).table)
    assert [row["kind"] for row in rows] == ["add", "reference-subject"] * 2
    assert [bool(row["ref_image"]) for row in rows] == [False, True] * 2
    assert all("\\" not in row["src_video"] and not Path(row["src_video"]).is_absolute() for row in rows)
    for row in rows:
        for column in ("src_video", "tgt_video", "mask"):
            assert (tmp_path / "rows" / row[column]).is_file()


def test_pictures_instead_of_clips(tmp_path: Path) -> None:
    settings = Settings(13, width=40, height=32, frames=1, images=True)
    written_ = write_rows(tmp_path / "rows", settings)
    assert not list((tmp_path / "rows").rglob("*.mkv"))
    for row, made in zip(table(written_.table), quadruplets(settings), strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "rows" / row["tgt_video"])), made.edit.target[0])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "rows" / row["mask"]))[..., 0] > 0, made.edit.mask[0])


def test_wordings_of_both_splits_take_turns_and_say_which_they_are() -> None:
    settings = Settings(52, width=32, height=32, frames=1, held_out=True, splits=SPLITS)
    for row in quadruplets(settings):
        assert row.scene.held_out and row.split == SPLITS[row.index // 13 % 2]
        half = WORDINGS[row.edit.kind].seen if row.split == "seen" else WORDINGS[row.edit.kind].held_out
        possible = {
            written(fill(template, row.edit.slots), capital, stop, american)
            for template in half
            for capital in (False, True)
            for stop in (False, True)
            for american in (False, True)
        }
        assert row.prompt in possible


def test_other_words_leave_the_pixels_alone() -> None:
    seen, other = (quadruplet(Settings(99, splits=(split,)), 20) for split in SPLITS)
    assert seen.prompt != other.prompt and np.array_equal(seen.edit.target, other.edit.target)


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        write_rows(tmp_path / str(count), Settings(count, kinds=("change",), width=96, height=96))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)  # imports
    assert peak(60) < 1.6 * peak(4)  # rows that were kept would make it three times as much


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    small = Settings(2, width=32, height=32, frames=1)
    write_rows(tmp_path / "rows", small)
    before = everything(tmp_path / "rows")
    with pytest.raises(UsageError, match="exists already") as caught:
        write_rows(tmp_path / "rows", small)
    assert "--overwrite" in caught.value.hint
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds other things"):
            write_rows(tmp_path / "mine", small, overwrite=overwrite)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no folder"):
        write_rows(tmp_path / "file", small, overwrite=True)
    assert everything(tmp_path / "rows") == before and list(everything(tmp_path / "mine")) == ["thesis.txt"]


def test_overwriting_replaces_the_rows_and_nothing_else(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", Settings(3, width=32, height=32, frames=1), "csv")
    (tmp_path / "rows" / "notes.txt").write_text("mine")
    write_rows(tmp_path / "rows", Settings(1, width=32, height=32, frames=1), "json", overwrite=True)
    left = everything(tmp_path / "rows")
    assert left.pop("notes.txt") == b"mine"
    assert sorted(Path(name).name for name in left) == [
        "000000-mask.mkv",
        "000000-source.mkv",
        "000000-target.mkv",
        "rows.json",
        RECORD,
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written_ = write_rows(Path(), Settings(1, width=32, height=32, frames=1))
    assert written_.table.is_file() and sorted(path.name for path in tmp_path.iterdir()) == [
        "clips",
        "rows.csv",
        RECORD,
    ]


@pytest.mark.parametrize(
    ("failure", "raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), MediaError, "no space left"),
        (PermissionError(errno.EACCES, "Permission denied"), MediaError, "not allowed to write"),
        (KeyboardInterrupt("by hand"), KeyboardInterrupt, "by hand"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_run_that_ends_early_leaves_what_was_there(
    failure: BaseException, raised: Any, words: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows"
    if existing:
        write_rows(out, Settings(2, width=32, height=32, frames=1))
    before = everything(tmp_path)
    calls = 0

    def fails(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise failure
        write_clip(*arguments)

    monkeypatch.setattr(writer, "write_clip", fails)
    with pytest.raises(raised, match=words):
        write_rows(out, Settings(5, width=32, height=32, frames=1), overwrite=existing)
    assert everything(tmp_path) == before and out.exists() == existing


def test_a_failure_while_the_rows_take_their_place_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rows"
    write_rows(out, Settings(2, width=32, height=32, frames=1))
    before = everything(tmp_path)
    rename, renamed = Path.rename, []

    def fails(self: Path, target: Path) -> Path:
        renamed.append(self.name)
        if len(renamed) == 5:  # the old rows are out, the new clips in, the new record is next
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(MediaError, match="input/output error"):
        write_rows(out, Settings(1, width=32, height=32, frames=1, seed=9), overwrite=True)
    assert everything(tmp_path) == before and len(renamed) > 5


@pytest.mark.parametrize(
    ("wrong", "words", "hint"),
    [
        ({"count": 0}, "cannot write 0 rows", "--count 1"),
        ({"kinds": ("melt",)}, "no kind of edit 'melt'", "black-and-white, sepia"),
        ({"kinds": ("add", "add")}, "not a choice of kinds", "once"),
        ({"width": 31}, "31x64", "32 to 4096"),
        ({"height": 5000}, "64x5000", "32 to 4096"),
        ({"frames": 6}, "4k\\+1 frames, not 6", "5 or 9"),
        ({"frames": 0}, "at least one frame", "--frames 1"),
        ({"frames": 5, "images": True}, "one frame, not 5", "--images"),
        ({"fps": 0.0}, "not a frame rate: 0", "1000"),
        ({"fps": float("nan")}, "not a frame rate: nan", "1000"),
        ({"seed": -1}, "not a seed: -1", "0 or more"),
        ({"splits": ()}, "not a choice of wordings", "held-out"),
    ],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, Any], words: str, hint: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Settings(**{"count": 3, **wrong})
    assert hint in caught.value.hint


def test_the_record_tells_how_the_folder_was_made(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows", Settings(1, kinds=("night",), width=32, height=64, frames=1, seed=5, held_out=True))
    record = json.loads((tmp_path / "rows" / RECORD).read_text())
    assert (record["seed"], record["kinds"], record["width"], record["height"]) == (5, ["night"], 32, 64)
    assert record["held_out"] is True and record["count"] == 1


def test_files_are_plain_ffv1(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", np.random.default_rng(0).integers(0, 256, (5, 37, 35, 3), np.uint8), 24)
    with av.open(str(tmp_path / "clip.mkv")) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"
        assert container.metadata.get("creation_time") is None
