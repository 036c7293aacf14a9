"""What is cached is what the model's own parts compute; cut off and gone on with, it is the same cache."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.data import shards
from kiwi_cli.data.clips import Preparation, items
from kiwi_cli.data.encode import SHRINK, Encoder, shrink_on_white
from kiwi_cli.data.latents import Item, write_cache
from kiwi_cli.data.rows import BadRow, TableError, read_rows
from kiwi_cli.data.shards import CacheError, ShardReader, read_index
from kiwi_cli.errors import KiwiError
from kiwi_cli.model.pictures import fit_on_white

from ..conftest import CHECKPOINT, random_frames
from ..video.media import make_clip

TOLERANCE = 2e-5
"""Largest difference of a latent (of order 1) encoded among others and alone: convolutions sum in another order."""


@pytest.fixture(scope="session")
def encoder(loaded: Any) -> Encoder:
    return Encoder.from_pipeline(loaded)


def edits(count: int = 6) -> list[Item]:
    """Clips of two lengths and two sizes, pairs of which share a source; a third has a reference, half have masks."""
    rows = []
    for number in range(count):
        frames, width = (5, 64) if number % 4 < 2 else (1, 96)
        source = random_frames(frames, 64, width, seed=number // 2)
        reference = Image.fromarray(random_frames(1, 40, 70, seed=number)[0]) if number % 3 == 0 else None
        mask = source[..., 0] > 128 if number % 2 else None
        rows.append(
            Item(source, 255 - np.roll(source, number), f"edit {number}", reference, mask, kind=f"k{number % 2}")
        )
    return rows


def tensors(out: Path) -> list[dict[str, torch.Tensor]]:
    """Every row's tensors, in the index's order."""
    reader = ShardReader(out)
    return [
        {name: reader.tensor(reader.place(key)) for name, key in row["tensors"].items()}
        for row in read_index(out)["rows"]
    ]


def same(first: Path, second: Path) -> bool:
    """Whether two caches say the same: the same index, the same tensors within `TOLERANCE`."""
    indexes = [{**read_index(folder), "name": ""} for folder in (first, second)]
    pairs = zip(tensors(first), tensors(second), strict=True)
    return indexes[0] == indexes[1] and all(
        torch.allclose(one[name], two[name], rtol=0, atol=TOLERANCE) for one, two in pairs for name in one
    )


@pytest.fixture(scope="module")
def whole(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache made in one go."""
    out = tmp_path_factory.mktemp("whole") / "cache"
    write_cache(out, edits(), encoder, held_out=0.3)
    return out


def test_latents_are_the_pipelines(loaded: Any, whole: Path) -> None:
    for item, found in zip(edits(), tensors(whole), strict=True):
        for name in ("source", "target"):
            alone = loaded.encode_source(getattr(item, name))[0]
            assert found[name].shape == alone.shape
            assert alone.abs().max() > 0.5
            torch.testing.assert_close(found[name], alone, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_vision_features_are_the_towers(loaded: Any, whole: Path) -> None:
    """Bit for bit: attention stays within a clip, and the rest is row by row."""
    qwen = loaded.mllm_encoder.qwen
    for item, found in zip(edits(), tensors(whole), strict=True):
        references = [item.reference] if item.reference is not None else []
        prompt = loaded.inputs(item.source, item.prompt, references)
        wanted = []
        if prompt.pixel_values_videos is not None:
            wanted += qwen.get_video_features(prompt.pixel_values_videos, prompt.video_grid_thw).pooler_output
        if prompt.pixel_values is not None:
            wanted += qwen.get_image_features(prompt.pixel_values, prompt.image_grid_thw).pooler_output
        cached = [found[name].flatten(0, 2) for name in ("vision", "picture") if name in found]
        assert len(cached) == len(wanted) == 1 + len(references)
        for ours, alone in zip(cached, wanted, strict=True):
            torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


def test_reference_views_are_shrunk_on_white(loaded: Any, encoder: Encoder) -> None:
    picture = Image.fromarray(random_frames(1, 40, 70)[0])
    assert np.array_equal(shrink_on_white(picture, 96, 64, 1.0), fit_on_white(picture, 96, 64))
    # 70x40 fits 96x64 as 96x55; at half size that is 48x27, in the middle: lines 18 to 44, columns 24 to 71.
    small = np.asarray(shrink_on_white(picture, 96, 64, 0.5))
    coloured = np.argwhere((small != 255).any(-1))
    assert coloured.min(0).tolist() == [18, 24]
    assert coloured.max(0).tolist() == [44, 71]

    views = encoder.reference_views([picture, picture], 96, 64, ["a", "b"], 5)
    assert [view.shape for view in views] == [(5, 48, 1, 4, 6)] * 2
    again = encoder.reference_views([picture], 96, 64, ["a"], 5)[0]
    torch.testing.assert_close(views[0], again, rtol=0, atol=TOLERANCE)
    assert not torch.allclose(views[0], views[1], atol=1e-3)  # each picture has its own draws
    assert not torch.allclose(views[0][0], views[0][1], atol=1e-3)  # and so has each view
    sizes = [encoder.latents([np.asarray(shrink_on_white(picture, 96, 64, part))[None]])[0] for part in SHRINK]
    assert all(min(float((view - end).abs().max()) for end in sizes) > 1e-3 for view in views[0])


def test_coverage_is_the_mean_over_what_a_latent_stands_for(encoder: Encoder) -> None:
    mask = np.zeros((5, 64, 96), bool)
    mask[0, :16, :16] = True  # one latent position of the first frame
    mask[1:3, 32:48, 32:40] = True  # half a position, in two of four frames
    found = encoder.coverage(mask)
    assert found.shape == (2, 4, 6)
    assert found[0, 0, 0] == 1
    assert found[1, 2, 2] == 0.25
    assert float(found.sum()) == 1.25
    assert torch.equal(encoder.coverage(mask.astype(np.uint8) * 255), found)


def test_what_rows_share_is_encoded_once(whole: Path) -> None:
    rows = read_index(whole)["rows"]
    assert rows[2]["tensors"]["source"] == rows[3]["tensors"]["source"]
    assert rows[4]["tensors"]["vision"] == rows[5]["tensors"]["vision"]
    assert len({row["tensors"]["target"] for row in rows}) == len(rows)
    # A single frame is a video in a prompt with a reference, else a picture: two sets of features of one source.
    assert rows[2]["tensors"]["vision"] != rows[3]["tensors"]["vision"]
    stored = {key for path in whole.glob("*.safetensors") for key in shards.read_header(path)}
    assert stored == {key for row in rows for key in row["tensors"].values()}


def test_modes_kinds_and_order(whole: Path) -> None:
    rows = read_index(whole)["rows"]
    assert [row["prompt"] for row in rows] == [f"edit {number}" for number in range(6)]
    assert [row["mode"] for row in rows] == ["reference", "video", "image", "reference", "video", "video"]
    assert [row["kind"] for row in rows] == ["k0", "k1"] * 3
    assert rows[1]["tensors"].keys() == {"source", "target", "vision", "coverage"}


def test_a_second_run_encodes_nothing(encoder: Encoder, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in whole.iterdir()}
    monkeypatch.setattr(encoder, "latents", lambda clips: pytest.fail("encoded again"))
    report = write_cache(whole, edits(), encoder, held_out=0.3)
    assert (report.encoded, report.rows) == (0, 6)
    assert {path: path.read_bytes() for path in whole.iterdir()} == before


def test_killed_in_the_middle_and_gone_on_with(encoder: Encoder, whole: Path, tmp_path: Path) -> None:
    """What a kill leaves is a copy of the folder at that moment, with a shard half written."""
    out, left = tmp_path / "cache", tmp_path / "left"

    def cut_off() -> Iterator[Item]:
        for number, item in enumerate(edits()):
            if number == 5:
                shutil.copytree(out, left)
            yield item

    small = 20_000  # bytes of a shard: several at each point
    write_cache(out, cut_off(), _single(encoder), held_out=0.3, shard_bytes=small)
    assert 1 <= len(list(left.glob("shard-*"))) < len(list(out.glob("shard-*")))
    (left / "shard-00099.safetensors.part").write_bytes(b"half a header")
    with pytest.raises(CacheError, match="not complete"):
        read_index(left)

    report = write_cache(left, edits(), _single(encoder), held_out=0.3, shard_bytes=small)
    assert report.found > 5
    assert report.encoded > 0
    assert not list(left.glob("*.part"))
    assert same(left, whole)
    assert same(out, whole)


def _single(encoder: Encoder) -> Any:
    """The same encoder, clip by clip: shards are written as the rows come."""

    class Single:
        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def batch_size(self, frames: np.ndarray) -> int:
            return 1

    return Single()


def test_after_a_while_what_is_there_is_written(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow run does not wait for a whole shard: a kill costs it little."""
    monkeypatch.setattr(shards, "SHARD_SECONDS", 0.0)
    write_cache(tmp_path, edits(2), _single(encoder))
    made = {key for row in read_index(tmp_path)["rows"] for key in row["tensors"].values()}
    assert len(list(tmp_path.glob("shard-*"))) == len(made) == 7


def test_interrupted_it_keeps_what_is_encoded(encoder: Encoder, tmp_path: Path) -> None:
    def interrupted() -> Iterator[Item]:
        yield from edits()[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path, interrupted(), _single(encoder))
    report = write_cache(tmp_path, edits()[:4], encoder)
    assert report.encoded == 0


def test_a_damaged_shard_is_made_again(encoder: Encoder, whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "cache")
    (shard,) = out.glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(CacheError, match="damaged"):
        ShardReader(out)
    report = write_cache(out, edits(), encoder, held_out=0.3)
    assert report.repaired == [shard.name]
    assert same(out, whole)


def test_a_full_disk(encoder: Encoder, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real, written = tmp_path / "cache", shards.write_file, []

    def full(path: Path, entries: Any) -> None:
        if len(written) >= 2:
            path.write_bytes(b"as much as there was room for")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        real(path, entries)

    monkeypatch.setattr(shards, "write_file", full)
    with pytest.raises(CacheError) as caught:
        write_cache(out, edits(), _single(encoder), shard_bytes=20_000)
    assert "the disk is full" in caught.value.message
    assert "kept" in caught.value.hint
    assert sorted(path.name for path in out.iterdir()) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    monkeypatch.setattr(shards, "write_file", real)
    report = write_cache(out, edits(), encoder, held_out=0.3)
    assert report.found >= 2
    assert same(out, whole)


def test_in_bfloat16(encoder: Encoder, loaded: Any, whole: Path, tmp_path: Path) -> None:
    write_cache(tmp_path, edits(2), Encoder.from_pipeline(loaded, store="bfloat16"))
    for found, exact in zip(tensors(tmp_path), tensors(whole), strict=False):
        assert found["target"].dtype == found["vision"].dtype == torch.bfloat16
        torch.testing.assert_close(found["target"].float(), exact["target"], rtol=2**-8, atol=TOLERANCE)


def test_another_model_or_setting_is_another_cache(encoder: Encoder, loaded: Any, tmp_path: Path) -> None:
    item = edits(1)
    assert write_cache(tmp_path, item, encoder).encoded == 5
    assert write_cache(tmp_path, item, encoder, reference_views=2).encoded == 1  # the views alone
    weight = loaded.vae.encoder.conv_in.weight
    with torch.no_grad():
        weight[0, 0, 0, 0, 0] += 1.0
    try:
        changed = Encoder.from_pipeline(loaded)
        report = write_cache(tmp_path, item, changed)
    finally:
        with torch.no_grad():
            weight[0, 0, 0, 0, 0] -= 1.0
    assert changed.settings["vae"] != encoder.settings["vae"]
    assert changed.settings["vision"] == encoder.settings["vision"]
    assert report.encoded == 3  # source, target, reference; the vision tower is the same


def test_the_fingerprint_is_that_of_the_weights(encoder: Encoder) -> None:
    """Loaded from the folder, in another precision: the same weights."""
    cpu = torch.device("cpu")
    assert Encoder.from_folder(CHECKPOINT, cpu, torch.float32).settings == encoder.settings
    halved = Encoder.from_folder(CHECKPOINT, cpu, torch.bfloat16).settings
    assert halved == {**encoder.settings, "vision_dtype": "bfloat16"}


def test_held_out_goes_by_the_source_and_stays(encoder: Encoder, tmp_path: Path) -> None:
    still = random_frames(1)

    def row(source: int, **more: Any) -> Item:
        return Item(still, still, "p", group=f"source {source}", **more)

    def split(rows: list[Item], fraction: float) -> list[bool]:
        write_cache(tmp_path, rows, encoder, held_out=fraction)
        return [row["split"] == "held_out" for row in read_index(tmp_path)["rows"]]

    many = split([row(number // 2) for number in range(1000)], 0.2)
    assert many[::2] == many[1::2]  # the two rows of a source are on one side
    assert 0.15 < sum(many) / 1000 < 0.25
    assert split([row(number) for number in range(250)], 0.2) == many[:500:2]  # whatever other rows there are
    assert sum(split([row(number) for number in range(3)], 0.001)) == 1  # at least one
    assert sum(split([row(number) for number in range(3)], 0.0)) == 0
    assert split([row(0, split="held_out"), row(1, split="train")], 0.0) == [True, False]


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


# -- from files -------------------------------------------------------------------------------------------------

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
