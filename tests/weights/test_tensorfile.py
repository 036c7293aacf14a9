"""Files nobody vouches for: refused by their headers, at once, without reading what they claim to hold."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights import TensorFiles, open_all, read_json
from kiwi_cli.weights.layout import RELEASED, STEM, choose_raw
from kiwi_cli.weights.tensorfile import Entry, read_header, split, write_part

from ..conftest import CHECKPOINT
from ..released import copy_checkpoint

FILE = CHECKPOINT / f"transformer/{STEM}.safetensors"


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def item(shape: list[Any], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_a_header_reads_as_the_library_reads_it() -> None:
    ours = read_header(FILE)
    with safe_open(FILE, framework="pt") as file:
        assert {key: list(info.shape) for key, info in ours.items()} == {
            key: file.get_slice(key).get_shape()
            for key in file.keys()  # noqa: SIM118
        }
    files = TensorFiles.open_file(FILE)
    stored = load_file(FILE)
    assert all(torch.equal(files.tensor(key), stored[key]) for key in stored)
    mapped = dict(files.tensors(dict.fromkeys(stored, torch.float32)))
    copied = dict(files.tensors(dict.fromkeys(stored, torch.float64)))
    assert all(
        torch.equal(mapped[key], stored[key]) and torch.equal(copied[key].float(), stored[key]) for key in stored
    )


BROKEN: dict[str, Any] = {
    "empty": lambda p: p.write_bytes(b""),
    "shorter than a header's length": lambda p: p.write_bytes(b"\x08\0\0"),
    "a header of 16 exabytes": lambda p: write(p, b"{}", length=2**64 - 1),
    "a header longer than the file": lambda p: write(p, b"{}", length=3),
    "a header of 100 MB": lambda p: write(p, b"{}" + b" " * 100, length=100_000_000),
    "not JSON": lambda p: write(p, b"\xff\xfe{}"),
    "deep JSON": lambda p: write(p, b"[" * 100_000),
    "a list": lambda p: write(p, [1]),
    "an entry that is a number": lambda p: write(p, {"a": 1}),
    "no offsets": lambda p: write(p, {"a": {"dtype": "F32", "shape": [1]}}, b"0000"),
    "an unknown type": lambda p: write(p, {"a": item([1], 0, 4, "X9")}, b"0000"),
    "a negative size": lambda p: write(p, {"a": item([-1, -1], 0, 4)}, b"0000"),
    "a fractional size": lambda p: write(p, {"a": item([1.0], 0, 4)}, b"0000"),
    "a true size": lambda p: write(p, {"a": item([True], 0, 4)}, b"0000"),
    "more than the shape": lambda p: write(p, {"a": item([1], 0, 8)}, b"0" * 8),
    "beyond the end": lambda p: write(p, {"a": item([2**60], 0, 2**62)}, b"0000"),
    "a gap": lambda p: write(p, {"a": item([1], 4, 8)}, b"0" * 8),
    "an overlap": lambda p: write(p, {"a": item([1], 0, 4), "b": item([1], 0, 4)}, b"0" * 8),
    "left over": lambda p: write(p, {"a": item([1], 0, 4)}, b"0" * 5),
    "truncated": lambda p: p.write_bytes(FILE.read_bytes()[:-1]),
    "padded": lambda p: p.write_bytes(FILE.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    BROKEN[name](path)
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file") as error:
        read_header(path)
    assert str(path) in error.value.message and error.value.hint


def test_a_large_header_is_refused_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**34))
        file.truncate(2**35)  # sparse: nothing on the disk
    count = 0
    real = Path.open

    def opened(self: Path, *arguments: Any, **options: Any) -> Any:
        stream = real(self, *arguments, **options)
        read = stream.read

        class Counting:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: Any) -> None:
                stream.close()

            def read(self, size: int = -1) -> bytes:
                nonlocal count
                assert size >= 0
                count += size
                return read(size)

        return Counting()

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(CheckpointError, match="its header claims 17179869184 bytes"):
        read_header(path)
    assert count == 8


def test_a_flipped_bit_in_a_header_never_loads_as_something_else(tmp_path: Path) -> None:
    """Every bit of a header: refused, or the same tensors under the same places (names are the loader's to check)."""
    source, path = tmp_path / "s.safetensors", tmp_path / "x.safetensors"
    save_file({"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}, source)
    whole = source.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    good = sorted((i.dtype, i.shape, i.start, i.stop) for i in read_header(source).values())
    refused = 0
    for bit in range(8 * (8 + length)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = read_header(path)
        except CheckpointError:
            refused += 1
            continue
        found_places = [(i.start, i.stop) for i in found.values()]
        assert sum(stop - start for start, stop in found_places) == len(whole) - 8 - length
        # Same bytes in another type of that width can pass here; its name or type then fails in the loader.
        assert sorted(found_places) == sorted((start, stop) for _, _, start, stop in good)
    assert refused > 4 * length


def test_indexes_name_only_their_own_folder(tmp_path: Path) -> None:
    root = copy_checkpoint(tmp_path)
    index = root / "mllm_encoder/model.safetensors.index.json"
    good = json.loads(index.read_text())
    outside = tmp_path / "outside.safetensors"
    save_file({"model.norm.weight": torch.ones(64)}, outside)
    for name in (
        "../../outside.safetensors",
        str(outside),
        "..\\outside.safetensors",
        ".",
        "",
        "a/b.safetensors",
        None,
    ):
        good["weight_map"]["model.norm.weight"] = name
        index.write_text(json.dumps(good))
        with pytest.raises(CheckpointError, match="outside its folder"):
            open_all(root)


def test_writing_is_readable_in_order_and_aligned(tmp_path: Path) -> None:
    tensors = {
        **{f"blocks.{n}.weight": torch.full((3, 5), float(n), dtype=torch.bfloat16) for n in range(12)},
        "wide": torch.arange(7.0),
        "empty": torch.zeros(0, 4),
    }
    names = {torch.bfloat16: "BF16", torch.float32: "F32"}
    entries = [
        Entry(k, names[t.dtype], tuple(t.shape), lambda t=t: [memoryview(t.view(torch.uint8).numpy().reshape(-1))])
        for k, t in tensors.items()
    ]
    order = [entry.key for shard in split(entries, 10**9) for entry in shard]
    assert order == [*(f"blocks.{n}.weight" for n in range(12)), "empty", "wide"]
    for limit, files in ((10**9, 1), (100, 5)):
        folder = tmp_path / str(limit)
        written = write_part(folder, "model", entries, limit)
        assert len([path for path in written if path.suffix == ".safetensors"]) == files
        read = {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}
        assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in tensors)
        ours = TensorFiles.open(folder, "model")
        assert all(info.start % 2 == 0 for info in ours.infos.values())
    wrong = Entry("x", "F32", (2,), lambda: [b"1234"])
    with pytest.raises(ValueError, match="4 bytes, not 8"):
        write_part(tmp_path / "wrong", "model", [wrong], 100)


def test_the_layout_lists_exactly_what_a_checkpoint_has() -> None:
    files = {path.relative_to(CHECKPOINT).as_posix() for path in CHECKPOINT.rglob("*") if path.is_file()}
    junk = {"pipeline_kiwi_edit.py", "vae/wan_video_vae.py", "pytorch_model.bin", "README.md", "vae/other.safetensors"}
    chosen, lacking = RELEASED.choose(files | junk)
    assert set(chosen) == files and not lacking and not RELEASED.missing(CHECKPOINT)
    chosen, lacking = RELEASED.choose(files - {"vae/config.json", f"vae/{STEM}.safetensors"})
    assert lacking == ["vae/config.json", f"vae/{STEM}.safetensors"]


def test_which_raw_file_is_meant() -> None:
    assert choose_raw(["a.safetensors", "b.pth", "x/c.safetensors"], "r") == "a.safetensors"
    assert choose_raw(["step-200.safetensors", "step-1000.safetensors"], "r") == "step-1000.safetensors"
    assert choose_raw(["final.safetensors", "step-1000.safetensors"], "r") == "final.safetensors"
    for names, words in (
        (["a.pth"], "as a pickle: 'a.pth'"),
        (["x.txt"], "no weights"),
        (["a.safetensors", "b.safetensors"], "several"),
        (["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"], "several"),
    ):
        with pytest.raises(CheckpointError, match=words):
            choose_raw(names, "r")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4194304\n"


def test_a_git_lfs_pointer_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="is a Git LFS pointer") as error:
        read_header(path)
    assert "git lfs pull" in error.value.hint
    (tmp_path / "config.json").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match="is a Git LFS pointer"):
        read_json(tmp_path / "config.json")


def test_a_config_with_a_mark_at_its_start_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}
