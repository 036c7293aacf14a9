"""A run's settings and folder: published unless changed, refused for another run, and whole whatever happened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kiwi_cli.batch.journal import Journal, read_lines
from kiwi_cli.bench import edit
from kiwi_cli.bench import run as runs
from kiwi_cli.bench.media import floor_size
from kiwi_cli.bench.suites.items import Item
from kiwi_cli.errors import UsageError

from . import miniature
from .conftest import FAST, Kiwi


def test_floor_size_is_the_published_one() -> None:
    assert floor_size(1280, 720, 1280 * 720, 32) == (1280, 704)
    assert floor_size(1920, 1080, 1280 * 720, 32) == (1280, 704)
    assert floor_size(720, 480, 1280 * 720, 32) == (704, 480)
    assert floor_size(20, 20, 1280 * 720, 32) == (32, 32)


def test_the_profile_is_published_and_says_what_was_changed() -> None:
    profile = edit.Profile()
    assert (profile.frames, profile.max_pixels, profile.fit, profile.steps, profile.seed) == (
        81,
        921_600,
        "crop",
        50,
        0,
    )
    assert profile.sigma_min == 0.0
    assert profile.changed(steps=None, seed=0) is profile
    assert profile.changed(steps=4, size="64x64").name == "published but steps 4, size 64x64"


def test_a_dry_run_writes_nothing_and_needs_no_model_and_no_key(
    kiwi: Kiwi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, openve_data: Path
) -> None:
    monkeypatch.delenv("GEMINI_API_KEY")
    code, _, err = kiwi("bench", "openve", "--data", openve_data, "--out", tmp_path / "run", "--limit", 2, "--dry-run")
    assert code == 0, err
    assert "settings published: 81 frames" in err and "2 items to edit" in err and "dollars at list price" in err
    assert not (tmp_path / "run").exists()


def test_what_does_not_go_together_is_said_before_anything_is_read(kiwi: Kiwi, tmp_path: Path) -> None:
    for more, words in (
        (("--compile", "--cache", "sea"), "--compile does not go together with --cache sea"),
        (("--solver", "heun"), "unknown --solver: 'heun'"),
        (("--steps", 0), "--steps must be at least 1"),
    ):
        code, _, err = kiwi("bench", "openve", "--out", tmp_path / "run", *more)
        assert code == 2 and words in err, err


def test_variables_that_are_meant_for_edits_change_no_benchmark(
    kiwi: Kiwi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, openve_data: Path
) -> None:
    for name, value in {"KIWI_SOLVER": "unipc", "KIWI_STEPS": "3", "KIWI_QUANTIZE": "fp8", "KIWI_SIZE": "480p"}.items():
        monkeypatch.setenv(name, value)
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--out", tmp_path / "run", "--dry-run")
    code, _, err = kiwi(*command)
    assert code == 0 and "settings published: 81 frames" in err and "50 steps" in err


def test_a_folder_of_something_else_is_refused(
    kiwi: Kiwi, loads: list[str], tmp_path: Path, openve_data: Path, refvie_data: Path
) -> None:
    out = tmp_path / "run"
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--limit", 1)
    assert kiwi(*command, "--out", out, *FAST)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other_model = tmp_path / "other"
    shutil.copytree(FAST[1], other_model)
    (other_model / "extra.json").write_text("{}")
    cases = {
        "its settings is": (*command, "--out", out, *FAST, "--seed", 7),
        "its model is": (*command, "--out", out, *FAST, "--model", other_model),
        "its benchmark is": ("bench", "refvie", "--stage", "edit", "--data", refvie_data, "--out", out, *FAST),
        "its data is": (*command, "--out", out, *FAST, "--data", miniature.openve(tmp_path / "more", per_type=2)),
    }
    for words, arguments in cases.items():
        code, _, err = kiwi(*arguments)
        assert code == 2 and words in err and "nothing was changed" in err, err
    code, _, err = kiwi("bench", "refvie", "--stage", "judge", "--out", out)
    assert code == 2 and "holds a run of openve" in err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.txt").write_text("mine")
    code, _, err = kiwi(*command, "--out", strange, *FAST)
    assert code == 2 and "not a run, and not empty" in err and [p.name for p in strange.iterdir()] == ["thesis.txt"]


def test_bad_options(kiwi: Kiwi, openve_data: Path, tmp_path: Path) -> None:
    for more, words in (
        (("--stage", "paint"), "unknown --stage: 'paint'"),
        (("--limit", 0), "--limit must be at least 1, not 0"),
        (("--shard", "3/2"), "shard not understood: '3/2'"),
        (("--shard", "1/2", "--gpus", "0,1"), "--gpus and --shard exclude each other"),
        (("--model", "instruct-refrence"), "instruct-refrence"),
    ):
        code, _, err = kiwi("bench", "openve", "--stage", "edit", "--data", openve_data, "--out", tmp_path / "x", *more)
        assert code in (1, 2) and words in err and not (tmp_path / "x").exists(), err


def test_run_folders(tmp_path: Path) -> None:
    some = [Item("a", "b/../c", "x", "y.mp4")]
    identity = runs.describe("openve", {"digest": "1"}, {"fingerprint": "2"}, {})
    run = runs.start(tmp_path / "run", identity, some, tmp_path)
    assert run.edited(some[0]) == tmp_path / "run/edits/b----c/a.mp4"
    assert runs.start(tmp_path / "run", identity, some, tmp_path).items == run.items
    (tmp_path / "run/run.json").write_text('{"format": 99, "benchmark": "openve"}')
    with pytest.raises(UsageError, match="another version of kiwi"):
        runs.open_run(tmp_path / "run")


def test_journals_survive_anything(tmp_path: Path) -> None:
    with Journal(tmp_path, "j") as journal:
        journal.append({"a": 1})
        with pytest.raises(UsageError, match="another process"):
            Journal(tmp_path, "j")
    whole = (tmp_path / "j.jsonl").read_bytes()
    for cut in (b'{"a"', b"\xff\xfe", b"[1]", b"{}{}"):
        (tmp_path / "j.jsonl").write_bytes(whole + cut)
        with Journal(tmp_path, "j") as journal:
            journal.append({"b": 2})
        assert [record for record in read_lines(tmp_path, "j") if record] == [{"a": 1}, {"b": 2}], cut


def test_help_is_light() -> None:
    program = (
        "import sys\nfrom kiwi_cli.cli import run\nrun(['bench', '--help'])\nrun(['bench', 'openve', '--help'])\n"
        "heavy = {'torch', 'google.genai', 'openai', 'transformers', 'diffusers', 'numpy', 'av'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ), timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "openve" in done.stdout and "--judge-url" in done.stdout
