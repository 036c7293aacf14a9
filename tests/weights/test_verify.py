"""`kiwi download --verify`: every damaged file is found and named, and what cannot be checked is never called good."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ..conftest import CHECKPOINT
from .conftest import BIG, REPO, Kiwi, files_below
from .hub_server import COMMIT, Hub


@pytest.mark.parametrize("flipped", [False, True], ids=["", "a byte changed on the way"])
def test_a_mirror_without_hashes_in_its_listing(flipped: bool, hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    """The cache's own names of the blobs are hashes: a file is checked by its own when it came, and again later."""
    hub.hashes = "etag"
    if flipped:
        hub.always["GET", BIG] = "flip"
        ran = kiwi("download")
        assert ran.returncode == 1 and "came damaged twice" in ran.stderr
        return
    assert kiwi("download").returncode == 0
    assert "all good" in kiwi("download", "--verify").stdout
    blob = (repo_folder / "snapshots" / COMMIT / BIG).resolve()
    data = bytearray(blob.read_bytes())
    data[1_000_000] ^= 1
    blob.write_bytes(data)
    found = kiwi("download", "--verify")
    assert (
        found.returncode == 1 and f"1 of {len(files_below(CHECKPOINT))} files" in found.stderr and BIG in found.stderr
    )


def test_files_that_nothing_says_a_hash_of_are_counted_and_named(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    hub.hashes = "none"
    ran = kiwi("download")
    count = len(files_below(CHECKPOINT))
    assert ran.returncode == 0 and f"{count} of {count} files could not be checked" in ran.stderr
    none = kiwi("download", "--verify")
    assert none.returncode == 1 and f"none of the {count} files" in none.stderr and not none.stdout
    hub.hashes = "all"
    assert kiwi("download", "--update").returncode == 0  # asks for the hashes, and fetches nothing again
    assert "all good" in kiwi("download", "--verify").stdout
    record = repo_folder / "kiwi" / f"{COMMIT}.json"
    record.write_text(json.dumps({"format": 1, "files": json.loads(record.read_text())["files"][1:]}))
    some = kiwi("download", "--verify", "--json")
    told = json.loads(some.stdout)
    assert told["checked"] == count - 1 and len(told["unchecked"]) == 1
    assert f"'{told['unchecked'][0]}' cannot be checked" in some.stderr and "all good" not in some.stdout


def test_the_embedded_models_contents_are_not_called_good(kiwi: Kiwi) -> None:
    told = kiwi("download", "tiny", "--verify")
    assert told.returncode == 0 and "could not be checked" in told.stdout and "good" not in told.stdout


def test_verify_finds_every_bad_file_and_repair_fetches_just_those(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    assert kiwi("download").returncode == 0
    assert "all good" in kiwi("download", "--verify").stdout
    snapshot = repo_folder / "snapshots" / COMMIT
    flipped, short, gone = snapshot / BIG, snapshot / "processor/tokenizer.json", snapshot / "model_index.json"
    data = bytearray(flipped.read_bytes())
    data[2_000_000] ^= 4
    flipped.resolve().write_bytes(data)
    os.truncate(short.resolve(), 100)
    gone.resolve().unlink()

    hub.requests.clear()
    found = kiwi("download", "--verify")
    assert found.returncode == 1 and not hub.requests
    for name in (BIG, "processor/tokenizer.json", "model_index.json"):
        assert f"'{name}'" in found.stderr
    assert "3 of" in found.stderr and "--repair" in found.stderr

    repaired = kiwi("download", "--verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert hub.fetched() == {BIG, "processor/tokenizer.json", "model_index.json"}
    assert files_below(snapshot) == files_below(CHECKPOINT)
    assert "all good" in kiwi("download", "--verify").stdout


def test_verify_what_another_program_fetched(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    other = f"from huggingface_hub import snapshot_download\nsnapshot_download({REPO!r})\nraise SystemExit"
    assert kiwi(setup=other).returncode == 0
    hub.requests.clear()
    assert "all good" in kiwi("download", "--verify").stdout
    blob = (repo_folder / "snapshots" / COMMIT / "transformer/config.json").resolve()
    blob.write_bytes(blob.read_bytes().replace(b"48", b"49"))
    assert "transformer/config.json" in kiwi("download", "--verify").stderr
    assert not hub.requests
    assert kiwi("download", "--verify", "--repair").returncode == 0
    assert hub.fetched() == {"transformer/config.json"}
