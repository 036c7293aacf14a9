"""A cache that was cut off and gone on with is the same cache, and nothing is encoded twice."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kiwi_cli.data import shards
from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import Item, write_cache
from kiwi_cli.data.shards import CacheError, ShardReader, read_index

from .cached import edits, same, single


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
    write_cache(out, cut_off(), single(encoder), held_out=0.3, shard_bytes=small)
    assert 1 <= len(list(left.glob("shard-*"))) < len(list(out.glob("shard-*")))
    (left / "shard-00099.safetensors.part").write_bytes(b"half a header")
    with pytest.raises(CacheError, match="not complete"):
        read_index(left)

    report = write_cache(left, edits(), single(encoder), held_out=0.3, shard_bytes=small)
    assert report.found > 5
    assert report.encoded > 0
    assert not list(left.glob("*.part"))
    assert same(left, whole)
    assert same(out, whole)


def test_after_a_while_what_is_there_is_written(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow run does not wait for a whole shard: a kill costs it little."""
    monkeypatch.setattr(shards, "SHARD_SECONDS", 0.0)
    write_cache(tmp_path, edits(2), single(encoder))
    made = {key for row in read_index(tmp_path)["rows"] for key in row["tensors"].values()}
    assert len(list(tmp_path.glob("shard-*"))) == len(made) == 7


def test_interrupted_it_keeps_what_is_encoded(encoder: Encoder, tmp_path: Path) -> None:
    def interrupted() -> Iterator[Item]:
        yield from edits()[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path, interrupted(), single(encoder))
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
        write_cache(out, edits(), single(encoder), shard_bytes=20_000)
    assert "the disk is full" in caught.value.message
    assert "kept" in caught.value.hint
    assert sorted(path.name for path in out.iterdir()) == ["shard-00000.safetensors", "shard-00001.safetensors"]
    monkeypatch.setattr(shards, "write_file", real)
    report = write_cache(out, edits(), encoder, held_out=0.3)
    assert report.found >= 2
    assert same(out, whole)


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
