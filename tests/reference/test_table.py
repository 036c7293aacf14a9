"""Tables as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kiwi_cli.data.reference.recipe import drawn, load
from kiwi_cli.data.reference.triplets import BadTriplet, Triplet, read_triplets, unreadable
from kiwi_cli.data.rows import TableError, ours
from kiwi_cli.errors import UsageError

from ..cli.terminal import inside
from ..conftest import CHECKPOINT
from . import planted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    "names",
    [
        ("src_video", "tgt_video", "prompt"),
        ("source_path", "edited_path", "instruction"),
        ("vace_video", "video", "prompt"),
        ("original_video", "video", "prompt"),
        ("src_video", "tar_video", "instruction_final_refine"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl", ".parquet"])
def test_names_and_formats(folder: Path, names: tuple[str, str, str], ending: str) -> None:
    row = dict(zip(names, ("a.mp4", "b.mp4", "make it blue"), strict=True))
    table = folder / f"rows{ending}"
    if ending == ".csv":
        planted.write_table(table, [row])
    elif ending == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist([{**row, "iid": "one"}]), table)
    else:
        table.write_text(json.dumps([row]) if ending == ".json" else json.dumps(row) + "\n")
    (found,) = read_triplets(table)
    assert isinstance(found, Triplet) and found.prompt == "make it blue"
    assert (Path(found.source).name, Path(found.target).name) == ("a.mp4", "b.mp4")
    assert found.iid == ("one" if ending == ".parquet" else found.key)


def test_semicolons_between_columns(folder: Path) -> None:
    (folder / "rows.csv").write_text('prompt;original_video;video\n"make it blue; now, please";a.mp4;b.mp4\n')
    (found,) = read_triplets(folder / "rows.csv")
    assert isinstance(found, Triplet) and found.prompt == "make it blue; now, please"
    assert Path(found.target).name == "b.mp4"


def test_our_own_names_come_first() -> None:
    assert ours(["video", "tgt_video", "source_path", "prompt"])["video"] == "video"
    assert ours(["video", "source_path"]) == {"video": "tgt_video", "source_path": "src_video"}


def test_keys_stay_when_rows_come_and_go(folder: Path) -> None:
    one, other = ({"src_video": "a.mp4", "tgt_video": "b.mp4", "prompt": words} for words in ("make it", "leave it"))
    keys = [row.key for row in read_triplets(planted.write_table(folder / "rows.csv", [one, other, one]))]
    assert len(set(keys)) == 3
    assert [row.key for row in read_triplets(planted.write_table(folder / "rows.csv", [other, one]))] == keys[1::-1]


def test_prompts_that_cannot_be_read() -> None:
    assert unreadable("make it snow") is None and unreadable("変えて") is None
    assert "decoded wrongly" in str(unreadable("make \ufffd it")) and "no words" in str(unreadable("?!"))


def test_recipes_are_held_to_their_words(tmp_path: Path) -> None:
    assert load("drawn", []) == drawn() and load("drawn", ["thresholds.aspect=2"]).thresholds.aspect == 2.0
    for change, words in (
        ("thresholds.aspct=2", "did you mean 'thresholds.aspect'"),
        ("tresholds.similarity=1", "did you mean 'thresholds.similarity'"),
        ("thresholds.nope=1", "the keys here are changed, following"),
        ("nope=1", "the keys here are read, score"),
        ("score.by=guess", "one of local, endpoint, truth"),
        ("read.frames=0", "from 1 to"),
        ("score.model=judge", "is used by nothing"),
        ("deduplicate.of=[]", "name reference, target or both"),
    ):
        with pytest.raises(UsageError) as caught:
            load("drawn", [change])
        assert words in f"{caught.value.message}: {caught.value.hint}"


def test_a_recipe_that_there_is_not_is_named_by_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").touch()
    for name, words in (("drwn", "did you mean 'drawn'?"), ("other", "pass a TOML file, as in recipes/ or 'drawn'")):
        with pytest.raises(UsageError) as caught:
            load(name, [])
        assert caught.value.message.startswith(f"cannot read '{name}'") and caught.value.hint == words
    with pytest.raises(UsageError) as caught:
        load(str(tmp_path / "mien.toml"), [])
    assert caught.value.hint == f"did you mean '{tmp_path / 'mine.toml'}'?"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table, _ = planted.drawn(tmp_path / "rows", 3)
    command = ("data", "reference", table, "--out", "refs", "--recipe", "drawn")
    code, out, err = inside(capsys, *command, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["seconds"] is None and "not measured here yet" in err
    assert not (tmp_path / "refs").exists()
    code, out, err = inside(capsys, *command, "--json")
    told = json.loads(out)
    assert (code, told["kept"], told["output"], told["ran"]["check"]) == (0, 3, "refs/reference.parquet", 3)
    code, out, _ = inside(capsys, *command, "--stage", "write", "--set", "thresholds.largest=0.001", "--json")
    assert code == 0 and json.loads(out)["dropped"]["check"] == 3 and json.loads(out)["ran"] == {}
    assert "3 dropped" in inside(capsys, *command, "--set", "thresholds.largest=0.001")[2]
    code, out, _ = inside(capsys, *command, "--dry-run", "--json")
    assert json.loads(out)["seconds"] == 0.0 and json.loads(out)["stages"][4]["done"] == 3


def test_what_was_made_goes_into_a_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table, _ = planted.drawn(tmp_path / "rows", 2)
    assert inside(capsys, "data", "reference", table, "--out", "refs", "--recipe", "drawn")[0] == 0
    code, _, err = inside(
        capsys, "data", "cache", "refs/reference.parquet", "--model", CHECKPOINT, "--out", "cache", "--device", "cpu"
    )
    assert code == 0, err
    rows = json.loads((tmp_path / "cache/index.json").read_text())["rows"]
    assert [row["mode"] for row in rows] == ["reference"] * 2


def test_what_cannot_be_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = planted.write_table(folder / "rows.csv", [{"src_video": "a.mp4", "tgt_video": "no.mp4", "prompt": "go"}])
    command = ("data", "reference", table, "--out", "refs", "--recipe")
    for more, code, words in (
        (("drawn",), 1, "none of the 1 row"),
        (("drawn", "--stage", "paint"), 2, "there is no stage 'paint'"),
        (("no.toml",), 2, "cannot read 'no.toml'"),
        (("drawn", "--stage", "write", "--shard", "1/2"), 2, "cannot be written alone"),
        (("drawn", "--base", "nowhere"), 2, "no such folder"),
    ):
        found, _, err = inside(capsys, *command, *more)
        assert found == code and words in err
    assert not (folder / "refs").exists()
    with pytest.raises(TableError):
        list(read_triplets(planted.write_table(folder / "x.csv", [{"prompt": "go"}])))
    assert isinstance(next(iter(read_triplets(table))), BadTriplet)
