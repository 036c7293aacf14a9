"""Data sets: odd paths found, ids that stay, and everything wrong said before anything is written."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.bench.suites import data, items
from kiwi_cli.bench.suites.items import BENCHMARKS
from kiwi_cli.cli.console import Console
from kiwi_cli.errors import KiwiError

from . import miniature
from .conftest import Kiwi

HEAD = "edited_type,prompt,original_video\n"


def test_odd_paths_are_found_and_ids_differ(openve_data: Path) -> None:
    found = data.read(BENCHMARKS["openve"], openve_data, "folder")
    assert [item.category for item in found.items] == list(miniature.OPENVE_TYPES)
    assert len({item.id for item in found.items}) == 8
    assert found.items[0].source == "videos/0_0.mp4" and found.items[2].source == "videos/deeper/0_0.mp4"
    assert all((found.root / item.source).is_file() for item in found.items)
    assert all(item.id.isascii() and "/" not in item.id for item in found.items)
    assert found.items[0].instruction == 'Make the global_style "0", please, with commas'
    assert "8 items, where the published data set has 431" in found.notices


def test_ids_are_the_same_wherever_the_data_lies(tmp_path: Path) -> None:
    plain = miniature.openve(tmp_path / "plain")
    nested = tmp_path / "elsewhere" / "OpenVE-Bench"
    nested.parent.mkdir()
    miniature.openve(nested)
    first, second = (data.read(BENCHMARKS["openve"], folder, "folder") for folder in (plain, nested.parent))
    assert first.items == second.items and first.describe()["digest"] == second.describe()["digest"]
    # Pinned: an id that changes would make every old run start again.
    assert items.item_id("local_add", "add a hat", "videos/a b.mp4") == "a-b-2e6a1d31a8"


def test_the_other_two(refvie_data: Path, imgedit_data: Path) -> None:
    refvie = data.read(BENCHMARKS["refvie"], refvie_data, "folder")
    assert refvie.counts == {"background": 1, "subject": 2} and all(item.reference for item in refvie.items)
    assert "2 subject items, where the published data set has 70" in refvie.notices
    imgedit = data.read(BENCHMARKS["imgedit"], imgedit_data, "folder")
    assert imgedit.counts == {"add": 1, "remove": 1, "style": 1} and len({item.id for item in imgedit.items}) == 3


def test_a_repeated_row_is_another_item(tmp_path: Path) -> None:
    row = ("local_add", "again", "videos/0_0.mp4")
    found = data.read(BENCHMARKS["openve"], miniature.openve(tmp_path, extra=(row, row)), "folder")
    assert len(found.items) == 10 and len({item.id for item in found.items}) == 10
    assert any("repeats an earlier item" in notice for notice in found.notices)


BAD_TABLES = {
    "missing column": ("edited_type,prompt\nlocal_add,x\n", "lacks column 'original_video'"),
    "extra column": (HEAD.strip() + ",seed\nlocal_add,x,videos/0_0.mp4,1\n", "has the unknown column 'seed'"),
    "short row": (HEAD + "local_add,x\n", "does not have 3 cells"),
    "long row": (HEAD + "local_add,x,videos/0_0.mp4,more\n", "does not have 3 cells"),
    "unknown type": (HEAD + "local_paint,x,videos/0_0.mp4\n", "unknown type 'local_paint' in line 2"),
    "no instruction": (HEAD + "local_add,  ,videos/0_0.mp4\n", "has no instruction"),
    "missing video": (HEAD + "local_add,x,videos/9_9.mp4\n", "1 file that"),
    "leads out": (HEAD + "local_add,x,../../etc/passwd\n", "leads out of the data set"),
    "absolute": (HEAD + "local_add,x,/etc/passwd\n", "leads out of the data set"),
    "empty": (HEAD, "no items in"),
    "nothing": ("", "lacks column"),
    "binary": (HEAD + "\udcff\udcfe", "cannot read"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(kiwi: Kiwi, tmp_path: Path, name: str) -> None:
    text, words = BAD_TABLES[name]
    miniature.clip(tmp_path / "data/videos/0_0.mp4", 0)
    (tmp_path / "data/benchmark_videos.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    out = tmp_path / "run"
    code, stdout, err = kiwi("bench", "openve", "--stage", "edit", "--data", tmp_path / "data", "--out", out)
    assert code in (1, 2) and stdout == "" and words in err and err.count("error: ") == 1, err
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "table", "text", "words"),
    [
        ("refvie", "refvie_bench.yaml", "- [1", "cannot read"),
        ("refvie", "refvie_bench.yaml", "a: 1", "is not a list"),
        ("refvie", "refvie_bench.yaml", "- src_video: x", "lacks column"),
        ("refvie", "refvie_bench.yaml", "- !!python/object/apply:os.system ['true']", "cannot read"),
        ("imgedit", "singleturn.json", "[]", "is not an object"),
        ("imgedit", "singleturn.json", '{"1": {"id": "a", "prompt": "b"}}', "lacks column 'edit_type'"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, table: str, text: str, words: str) -> None:
    (tmp_path / table).write_text(text)
    with pytest.raises(KiwiError, match=words):
        data.read(BENCHMARKS[name], tmp_path, "folder")


def test_a_folder_without_a_table(kiwi: Kiwi, tmp_path: Path) -> None:
    code, _, err = kiwi("bench", "openve", "--stage", "data", "--data", tmp_path)
    assert code == 2 and "no benchmark_videos.csv in" in err
    code, _, err = kiwi("bench", "openve", "--stage", "data", "--data", tmp_path / "missing")
    assert code == 2 and "no such folder" in err


def test_the_data_stage_counts(kiwi: Kiwi, openve_data: Path) -> None:
    code, out, err = kiwi("bench", "openve", "--stage", "data", "--data", openve_data, "--json")
    assert code == 0 and json.loads(out)["counts"] == dict.fromkeys(sorted(miniature.OPENVE_TYPES), 1)
    assert "8 items (background_change 1" in err


class FakeHub:
    """Stands for the Hub's client: what it is asked for, and a snapshot made on the spot."""

    def __init__(self, make: Any, cache: Path) -> None:
        self.make, self.cache, self.calls = make, cache, 0

    def snapshot(self, repo: str, **options: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        assert options["repo_type"] == "dataset"
        if options.get("local_files_only"):
            if not self.cache.exists():
                raise LocalEntryNotFoundError("not here")
            return str(self.cache)
        self.calls += 1
        if not self.cache.exists():
            self.make(self.cache)
        return str(self.cache)


@pytest.mark.parametrize("name", ["openve", "imgedit"])
def test_from_the_hub_once_with_its_licence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    def make(folder: Path) -> None:
        folder.mkdir()
        if name == "openve":
            miniature.openve(folder)
            return
        miniature.imgedit(tmp_path / "packed")
        with tarfile.open(folder / "Benchmark.tar", "w") as tar:
            tar.add(tmp_path / "packed" / "Benchmark", "Benchmark")

    hub = FakeHub(make, tmp_path / "snapshot-c0ffee")
    card = SimpleNamespace(license="cc-by-nc-4.0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee", card_data=card)
    )
    first = data.load(BENCHMARKS[name], None, Console(), tmp_path / "unpacked")
    assert "licence: cc-by-nc-4.0" in capsys.readouterr().err and first.revision == "c0ffee"
    calls = hub.calls
    second = data.load(BENCHMARKS[name], None, Console(), tmp_path / "unpacked")
    assert hub.calls == calls and second.items == first.items


def test_choosing() -> None:
    some = [items.Item(f"{c}{k}", c, "x", "y") for c in "abc" for k in range(4)]
    assert [item.id for item in items.choose(some, limit=4)] == ["a0", "a1", "b0", "c0"]
    assert [item.id for item in items.choose(some, ["b"])] == ["b0", "b1", "b2", "b3"]
    parts = [items.choose(some, shard=(k, 3)) for k in (1, 2, 3)]
    assert sorted(item.id for part in parts for item in part) == sorted(item.id for item in some)
