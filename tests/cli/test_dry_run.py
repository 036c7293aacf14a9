"""`--dry-run` and what it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kiwi_cli import estimate, machine
from kiwi_cli.video import Size

from ..conftest import CHECKPOINT
from .terminal import CLIP, FAST, REFERENCE, inside

FULL = (Size(1280, 704), 81)


def test_the_full_shape_is_counted_as_the_speed_benchmark_counts_it() -> None:
    from types import SimpleNamespace

    from kiwi_cli.bench.operations import step_operations

    shape = estimate.RELEASED_5B
    found = estimate.estimate(shape, *FULL, references=0, steps=50)
    config = SimpleNamespace(num_layers=30, num_attention_heads=24, attention_head_dim=128, ffn_dim=14336)
    assert (found.latent_frames, found.tokens) == (21, 18_480)
    assert estimate.step_operations(shape, 18_480, 768) == step_operations(config, 18_480, 768)
    assert estimate.step_operations(shape, 18_480, 768) / 1e12 == pytest.approx(292.4, abs=0.1)
    assert 14_500 + 256 + 1348 < found.tflop < 14_700 + 256 + 1348 + 40


def test_memory_is_counted_as_the_memory_plan_counts_it() -> None:
    found = estimate.estimate(estimate.RELEASED_5B, *FULL, references=0, steps=50)
    assert list(found.levels) == ["resident", "release", "swap", "stream"]
    assert sorted(found.levels.values(), reverse=True) == list(found.levels.values())
    assert 27e9 < found.levels["resident"] < 32e9
    for room, level in ((80e9, "resident"), (20e9, "release"), (14e9, "swap"), (8e9, "stream")):
        plan = found.plan(int(room))
        assert plan is not None and plan.level == level and plan.peak < room
    assert found.plan(2**30) is None


def test_a_checkpoints_own_shape_is_read_from_its_files(loaded: object) -> None:
    from kiwi_cli.weights import parameter_count

    shape = estimate.read_shape(CHECKPOINT)
    assert (shape.width, shape.layers, shape.queries) == (48, 3, (8, 16, 24))
    assert sum(shape.parameters.values()) == parameter_count(CHECKPOINT)


def test_the_plan_says_everything_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("ref-edit", CLIP, "--ref", REFERENCE, *FAST, "--frames", 30, "--compare", "-o", tmp_path / "out.mp4")
    code, out, err = inside(capsys, *arguments, "--dry-run")
    assert (code, err) == (0, "")
    for words in (
        "480x270, 48 frames, 24 frames/s, 2.000 s, h264",
        "aac",
        "30 frames, 0.000 s to 1.250 s",
        "480x270 -> 96x64 (stretch), and back",
        "33 frames (4k + 1): 9 latent frames",
        "Replace the main subject",
        str(REFERENCE),
        "here",
        "(estimate)",
        "no figure recorded for this device",
        f"'{tmp_path / 'out.mp4'}': 30 frames of 480x270",
        "out-compare.mp4",
    ):
        assert words in out, words
    assert list(tmp_path.iterdir()) == []
    code, out, _ = inside(capsys, *arguments, "--dry-run", "--json")
    data = json.loads(out)
    assert data["dry_run"] and data["padded_frames"] == 33 and data["estimate"]["latent_frames"] == 9
    assert data["estimate"]["of_this_checkpoint"] and data["comparison"].endswith("out-compare.mp4")


def test_a_model_that_is_not_here_is_said_to_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    code, out, _ = inside(capsys, "edit", CLIP, "x", "--dry-run", "-o", tmp_path / "out.mp4")
    if "here in" in out:
        pytest.skip("the released model is on this machine")
    assert code == 0 and "NOT here: to be fetched, about 19.0 GB" in out and "of a 5B model" in out


def test_a_recorded_rate_gives_a_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rate = estimate.Recorded("Test GPU", 100.0, "a test")
    monkeypatch.setattr(estimate, "RECORDED", (rate,))
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("NVIDIA Test GPU 80GB", 80 * 10**9, 30 * 10**9, "1")])
    found = estimate.estimate(estimate.RELEASED_5B, *FULL, references=0, steps=50)
    assert estimate.seconds(found, "NVIDIA Test GPU 80GB") == (found.tflop / 100, rate)
    assert estimate.seconds(found, "another") is None
    _, out, _ = inside(capsys, "edit", CLIP, "x", *FAST, "--dry-run")
    assert "on NVIDIA Test GPU 80GB (estimate, from a test)" in out and "30.0 GB free: resident" in out
    more = ("--memory", "swap", "--max-memory", "12GB", "--quantize", "int8")
    _, out, _ = inside(capsys, "edit", CLIP, "x", *FAST, "--dry-run", *more)
    assert "12.0 GB free: swap" in out and "before --quantize" in out


def test_more_of_anything_takes_more() -> None:
    shape = estimate.RELEASED_5B
    small = estimate.estimate(shape, Size(640, 352), 41, 0, 20)
    for other in (
        estimate.estimate(shape, Size(1280, 704), 41, 0, 20),
        estimate.estimate(shape, Size(640, 352), 81, 0, 20),
        estimate.estimate(shape, Size(640, 352), 41, 1, 20),
        estimate.estimate(shape, Size(640, 352), 41, 0, 50),
        estimate.estimate(replace(shape, layers=40), Size(640, 352), 41, 0, 20),
    ):
        assert other.tflop > small.tflop


def test_a_dry_run_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from kiwi_cli.cli import run; code = run(sys.argv[1:]);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    arguments = ["edit", str(CLIP), "x", *FAST, "--dry-run", "-o", str(tmp_path / "out.mp4")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
