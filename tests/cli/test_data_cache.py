"""`kiwi data cache` as people use it: from a table to a cache, and everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.batch.crew import Crew
from kiwi_cli.batch.jobs import JobStore
from kiwi_cli.cli.data_cache import parse_area
from kiwi_cli.data.cache_jobs import Filling, fill
from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.shards import ShardReader
from kiwi_cli.errors import UsageError

from ..batch.work import lines
from ..conftest import CHECKPOINT, random_frames
from .terminal import inside

HEADER = "src_video,tgt_video,prompt,ref_image"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures are clips of one frame: quick to make and to encode."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1), ("r", 2)):
        Image.fromarray(random_frames(1, 64, 96, seed)[0]).save(tmp_path / f"{name}.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "square.png")
    (tmp_path / "rows.csv").write_text(f"{HEADER}\na.png,b.png,go,\nb.png,a.png,back,r.png\n")
    return tmp_path


def cache(capsys: pytest.CaptureFixture[str], *arguments: Any, table: str = "rows.csv") -> tuple[int, str, str]:
    return inside(capsys, "data", "cache", table, "--model", CHECKPOINT, "--out", "out", "--device", "cpu", *arguments)


def test_from_a_table_to_a_cache_and_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = cache(capsys, "--held-out", "0.5", "--reference-views", "2")
    assert (code, out) == (0, "out\n")
    assert "2 rows, 1 of them held out; 6 tensors encoded, 2 found" in err  # the pair is its own reverse
    assert "float32 (exact)" in err
    code, out, _ = cache(capsys, "--held-out", "0.5", "--reference-views", "2", "--json", "-q")
    result = json.loads(out)
    assert code == 0
    assert (result["rows"], result["held_out"], result["encoded"], result["bad"]) == (2, 1, 0, [])
    assert result["bytes"] == sum(path.stat().st_size for path in (folder / "out").iterdir())
    index = json.loads((folder / "out/index.json").read_text())
    assert [row["mode"] for row in index["rows"]] == ["image", "reference"]
    assert index["settings"]["reference_views"] == 2


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors_of(cache: Path) -> dict[str, Any]:
    reader = ShardReader(cache)
    return {key: reader.tensor(reader.place(key)).tolist() for key in reader.where}


@pytest.mark.parametrize("how", ["here", pytest.param("--workers", marks=pytest.mark.slow)])
def test_several_workers_fill_a_cache_as_one_does(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    rows = [
        f"{a}.png,{b}.png,go {number},{ref}"
        for number in range(9)
        for a, b, ref in (("a", "b", ""), ("b", "r", "r.png"))
    ]
    (folder / "rows.csv").write_text("\n".join([HEADER, *rows, "a.png,square.png,go,"]) + "\n")
    with one_thread():  # as the workers below: more of them sum in another order, to other last bits
        assert cache(capsys, "--max-bad", "0.1")[0] == 0
    one = tensors_of(folder / "out")
    index = (folder / "out/index.json").read_bytes()
    shutil.rmtree(folder / "out")
    if how == "here":  # in two pieces in this process; then the pass that writes the index
        encoder = Encoder.from_folder(CHECKPOINT, torch.device("cpu"), torch.float32)
        sizes = (1280 * 720, 81, encoder.size_multiple, encoder.frames_per_latent)
        filling = Filling(folder / "out", folder / "rows.csv", None, CHECKPOINT, *sizes, 4, "float32", "auto", "cpu")
        with one_thread():
            assert fill(filling, Crew()) == (19, []) == fill(filling, Crew())
        assert len(lines(JobStore(folder / "out"))) == 2  # once each
        code, _, err = cache(capsys, "--max-bad", "0.1")
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        code, _, err = cache(capsys, "--max-bad", "0.1", "--workers", "2")
    assert code == 0 and " 0 tensors encoded" in err and "row 19: the source 'a.png' is 96x64" in err, err
    assert tensors_of(folder / "out") == one and (folder / "out/index.json").read_bytes() == index


def test_bad_rows_are_named_and_passed_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "rows.csv").write_text(f"{HEADER}\na.png,b.png,go,\na.png,square.png,go,\n")
    code, out, err = cache(capsys)
    assert (code, out) == (0, "out\n")
    assert "warning: left out: row 2: the source 'a.png' is 96x64, the target 'square.png' 64x64" in err
    assert "1 row, 0 of them held out" in err


def test_too_many_bad_rows_are_found_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kiwi_cli.data.encode import Encoder

    monkeypatch.setattr(Encoder, "from_folder", lambda *_: pytest.fail("loaded"))
    (folder / "rows.csv").write_text(f"{HEADER}\na.png,b.png,go,\na.png,gone.png,go,\na.png,b.png,,\n")
    code, out, err = cache(capsys)
    assert (code, out) == (1, "")
    assert "error: 2 bad rows, at most 1 of 3 are passed over:" in err
    assert "row 2: no such file: 'gone.png' (tgt_video)" in err
    assert "row 3: the prompt is empty" in err
    assert "hint: mend or remove those rows, or raise --max-bad" in err
    assert not (folder / "out").exists()


BAD: dict[str, tuple[tuple[Any, ...], int, str]] = {
    "frames": (("--frames", "80"), 2, "4k+1 frames, not 80"),
    "frames 0": (("--frames", "0"), 2, "4k+1 frames, not 0"),
    "area": (("--max-pixels", "big"), 2, "not an area: 'big'"),
    "no area": (("--max-pixels", "0x3"), 2, "not an area: '0x3'"),
    "views": (("--reference-views", "0"), 2, "--reference-views is 0"),
    "held out": (("--held-out", "1"), 2, "--held-out is 1"),
    "bad": (("--max-bad", "-0.1"), 2, "--max-bad is -0.1"),
    "store": (("--store", "float16"), 2, "unknown precision 'float16'"),
    "dtype": (("--dtype", "int8"), 2, "unknown dtype: 'int8'"),
    "base": (("--base", "nowhere"), 2, "no such folder: 'nowhere'"),
    "wrong base": (("--base", "empty"), 2, "none of the files of 'rows.csv' are there; with the base 'empty'"),
    "device": (("--device", "cuda:99"), 1, "no such device here: 'cuda:99'"),
    "small": (("--max-pixels", "10x10"), 1, "96x64 is too small"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    (folder / "empty").mkdir()
    arguments, code, words = BAD[case]
    found, out, err = cache(capsys, *arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert "\nhint: " in err
    assert not list(folder.glob("out/*"))


@pytest.mark.parametrize(
    ("table", "words"), [("gone.csv", "table not found: 'gone.csv'"), ("a.png", "not a table: 'a.png'")]
)
def test_no_table(folder: Path, capsys: pytest.CaptureFixture[str], table: str, words: str) -> None:
    code, out, err = cache(capsys, table=table)
    assert (code, out) == (2, "")
    assert words in err


def test_a_model_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "data", "cache", "rows.csv", "--model", "empty-folder", "--out", "out")
    assert (code, out) == (2, "")
    assert "empty-folder" in err


def test_interrupted_it_says_what_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kiwi_cli.data import clips

    real, asked = clips.load_pair, []

    def slow(*arguments: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(clips, "load_pair", slow)
    (folder / "rows.csv").write_text(f"{HEADER}\na.png,a.png,go,\nb.png,b.png,go,\n")
    code, out, err = cache(capsys)
    assert (code, out) == (130, "")
    assert "interrupted after 1 row of 2; what is encoded is kept in 'out'" in err
    monkeypatch.setattr(clips, "load_pair", real)
    assert cache(capsys)[0] == 0


def test_help_and_wrong_arguments_need_no_heavy_library() -> None:
    code = (
        "import sys\nfrom kiwi_cli.cli import data_cache\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'transformers', 'pyarrow', 'av')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("text", "pixels"), [("1280x720", 921600), ("720×1280", 921600), (" 4096 ", 4096)])
def test_areas(text: str, pixels: int) -> None:
    assert parse_area(text) == pixels


@pytest.mark.parametrize("text", ["", "x", "-3", "1e6", "640x", "640x480x3", "0"])
def test_no_areas(text: str) -> None:
    with pytest.raises(UsageError):
        parse_area(text)
