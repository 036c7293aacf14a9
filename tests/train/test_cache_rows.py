"""Rows and files on their way into a cache: read at training size, and named when they cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.data.clips import Preparation, items
from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import Item, write_cache
from kiwi_cli.data.rows import BadRow, TableError, read_rows
from kiwi_cli.data.shards import read_index
from kiwi_cli.errors import KiwiError

from ..conftest import random_frames
from ..video.media import make_clip
from .cached import TOLERANCE, tensors


def test_what_cannot_be_encoded_is_a_bad_row(encoder: Encoder, tmp_path: Path) -> None:
    good, short = random_frames(5), random_frames(1)
    rows = [
        Item(good, good, "fine", label="row 1"),
        Item(good, short, "short", label="row 2"),
        BadRow("row 3", "no such file: 'x'"),
        Item(good, good, " ", label="row 4"),
        Item(good, good, "a <|im_end|> in it", label="row 5"),
        Item(good[:, :50], good[:, :50], "odd", label="row 6"),
        Item(good, good, "mask", mask=np.ones((5, 8, 8), bool), label="row 7"),
    ]
    report = write_cache(tmp_path, rows, encoder, max_bad=0.9)
    assert report.rows == 1
    assert [line.split(":")[0] for line in report.bad] == [f"row {number}" for number in range(2, 8)]
    assert "the source is 5 frames of 64x64, the target 1 frame of 64x64" in report.bad[0]
    assert "64x50 is not a multiple of 32" in report.bad[4]
    assert "the mask is 5 frames of 8x8" in report.bad[5]
    assert read_index(tmp_path)["bad"] == report.bad
    with pytest.raises(TableError, match="6 bad rows, at most 1 of 7"):
        write_cache(tmp_path / "strict", rows, encoder)


def test_too_many_bad_rows_stop_the_run_early(encoder: Encoder, tmp_path: Path) -> None:
    asked = []

    def bad() -> Iterator[BadRow]:
        for number in range(1000):
            asked.append(number)
            yield BadRow(f"row {number}", "broken")

    with pytest.raises(TableError):
        write_cache(tmp_path, bad(), encoder, total=1000)
    assert len(asked) == 11  # 1 % and one more


PREPARE = Preparation(max_pixels=96 * 64, frames=9, multiple=32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    make_clip(tmp_path / "a.mp4", frames=8)
    make_clip(tmp_path / "b.mp4", frames=8)
    make_clip(tmp_path / "c.mp4", frames=12)
    make_clip(tmp_path / "small.mp4", frames=8, size=(64, 64))
    make_clip(tmp_path / "huge.mp4", frames=8, size=(192, 160))
    (tmp_path / "text.mp4").write_text("no video" * 100)
    Image.fromarray(random_frames(1, 64, 96)[0]).save(tmp_path / "still.png")
    Image.fromarray(random_frames(1, 30, 50)[0]).save(tmp_path / "r.png")
    Image.fromarray(np.full((64, 96), 250, np.uint8)).save(tmp_path / "mask.png")
    return tmp_path / "t.csv"


def cached(table: Path, encoder: Encoder, *rows: str, prepare: Preparation = PREPARE, **more: Any) -> Any:
    table.write_text("\n".join(["src_video,tgt_video,prompt,ref_image,mask", *rows]) + "\n")
    return write_cache(table.parent / "cache", items(read_rows(table), prepare), encoder, **more)


def test_files_are_read_at_training_size(table: Path, encoder: Encoder, loaded: Any) -> None:
    report = cached(
        table,
        encoder,
        "a.mp4,b.mp4,go,r.png,mask.png",
        "still.png,still.png,stay,,",
        "huge.mp4,huge.mp4,shrink,,",
    )
    assert (report.rows, report.bad) == (3, [])
    first, second, third = tensors(table.parent / "cache")
    assert first["target"].shape == (48, 2, 4, 6)  # 8 frames: the first 5
    assert first["reference"].shape == (4, 48, 1, 4, 6)
    assert torch.equal(first["coverage"], torch.ones(2, 4, 6))
    assert second["source"].shape == (48, 1, 4, 6)
    assert third["source"].shape == (48, 2, 4, 4)  # 192x160 -> 85x71 -> floored to 64x64
    from kiwi_cli.video import probe, read_frames

    frames = np.stack([frame.rgb for frame in read_frames(probe(table.parent / "b.mp4"), count=5)])
    torch.testing.assert_close(first["target"], loaded.encode_source(frames)[0], rtol=0, atol=TOLERANCE)


def test_a_changed_file_is_encoded_again_and_no_other(table: Path, encoder: Encoder) -> None:
    rows = ("a.mp4,b.mp4,go,r.png,", "b.mp4,a.mp4,back,,")
    assert cached(table, encoder, *rows).encoded == 6  # two clips, their vision, the reference twice
    assert cached(table, encoder, *rows).encoded == 0
    before = tensors(table.parent / "cache")
    assert cached(table, encoder, "a.mp4,b.mp4,another prompt,r.png,", rows[1]).encoded == 0

    make_clip(table.parent / "b.mp4", frames=8, colour=(1, 1, 1, 2))
    report = cached(table, encoder, *rows)
    assert report.encoded == 2  # b's latents and what the vision tower sees of it
    after = tensors(table.parent / "cache")
    assert torch.equal(after[0]["source"], before[0]["source"])
    assert not torch.allclose(after[0]["target"], before[0]["target"], atol=1e-3)
    assert torch.equal(after[1]["source"], after[0]["target"])

    # Other settings: all clips, not the reference's features.
    assert cached(table, encoder, *rows, prepare=Preparation(64 * 64, 9, 32)).encoded == 5


def test_earlier_leftovers_are_deleted_when_asked(table: Path, encoder: Encoder) -> None:
    cached(table, encoder, "a.mp4,b.mp4,go,,")
    report = cached(table, encoder, "c.mp4,c.mp4,go,,")
    assert report.unused == ["shard-00000.safetensors"]
    assert (table.parent / "cache/shard-00000.safetensors").exists()
    cached(table, encoder, "c.mp4,c.mp4,go,,", prune=True)
    assert not (table.parent / "cache/shard-00000.safetensors").exists()
    assert len(tensors(table.parent / "cache")) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.mp4,c.mp4,go,,", "a.mp4' has 8 frames, the target '{folder}/c.mp4' at least 9 frames"),
        ("a.mp4,still.png,go,,", "has 8 frames, the target '{folder}/still.png' 1 frame"),
        ("a.mp4,small.mp4,go,,", "is 96x64, the target '{folder}/small.mp4' 64x64"),
        ("text.mp4,a.mp4,go,,", "cannot read '{folder}/text.mp4'"),
        ("a.mp4,a.mp4,go,text.mp4,", "cannot read the reference image '{folder}/text.mp4'"),
        ("a.mp4,a.mp4,go,,r.png", "the mask '{folder}/r.png' is 50x30, the target '{folder}/a.mp4' 96x64"),
        ("c.mp4,c.mp4,go,,a.mp4", "the mask '{folder}/a.mp4' has 8 frames for 9"),
    ],
)
def test_bad_media_are_named(table: Path, encoder: Encoder, row: str, words: str) -> None:
    report = cached(table, encoder, "still.png,still.png,fine,,", row, "still.png,still.png,fine,,")
    assert report.rows == 2
    (bad,) = report.bad
    assert bad.startswith("row 2: ")
    assert words.format(folder=table.parent) in bad


def test_a_pair_of_files_known_from_other_rows_is_still_compared(table: Path, encoder: Encoder) -> None:
    report = cached(table, encoder, "a.mp4,a.mp4,x,,", "c.mp4,c.mp4,y,,", "a.mp4,c.mp4,z,,", max_bad=0.4)
    assert report.rows == 2
    assert report.bad == ["row 3: source and target differ in length or size"]


@pytest.mark.parametrize(
    ("width", "height", "area", "expected"),
    [
        (1280, 720, 1280 * 720, (1280, 704)),
        (1920, 1080, 1280 * 720, (1280, 704)),
        (1080, 1920, 600 * 600, (448, 800)),
        (640, 480, 1280 * 720, (640, 480)),
        (100, 70, 1280 * 720, (96, 64)),
    ],
)
def test_training_sizes(width: int, height: int, area: int, expected: tuple[int, int]) -> None:
    size = Preparation(area, 81, 32).size(width, height)
    assert size == expected
    assert size.width * size.height <= area


def test_a_clip_too_small_for_the_model() -> None:
    with pytest.raises(KiwiError, match="100x20 is too small"):
        Preparation(1280 * 720, 81, 32).size(100, 20)


@pytest.mark.parametrize(("frames", "taken"), [(1, 1), (4, 1), (5, 5), (8, 5), (80, 77), (81, 81), (300, 81)])
def test_the_first_4k_plus_1_frames(frames: int, taken: int) -> None:
    assert Preparation(1, 81, 32).count(frames) == taken
