"""What stands for a checkpoint in a record: any tensor that differs is noticed, and earlier records are still read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kiwi_cli.base.identity import fingerprint, matches

MIB = 1 << 20


def model(folder: Path, changed: int | None = None, values: int = 6 * MIB) -> Path:
    """Four tensors of `values` floats in a file, one of them another."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tensors = {f"{number}.weight": np.full(values, float(number == changed), np.float32) for number in range(4)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_any_tensor_of_a_large_file(tmp_path: Path) -> None:
    found = {fingerprint(model(tmp_path / str(changed), changed)) for changed in (None, 0, 1, 2, 3)}
    assert len(found) == 5
    assert fingerprint(model(tmp_path / "again")) in found


@pytest.mark.parametrize("at", [0.3, 0.5, 0.9])
def test_any_byte_of_a_smaller_one(at: float, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", values=MIB)
    known, path = fingerprint(folder), folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)
    assert fingerprint(folder) != known


def test_records_of_before_are_still_compared(tmp_path: Path) -> None:
    """They hold sha256 of names, sizes and both ends of each file, of 64 digits."""
    folder, digest = model(tmp_path / "model", values=MIB), hashlib.sha256()
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        digest.update(f"{path.name}\0{len(data)}\0".encode() + data[:MIB])
        digest.update(data[max(len(data) - MIB, MIB) :] if len(data) > MIB else b"")
    before = digest.hexdigest()
    assert matches(folder, before) and matches(folder, fingerprint(folder))
    (folder / "config.json").write_text("{ }")
    assert not matches(folder, before)
