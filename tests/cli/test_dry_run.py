"""`--dry-run` and what it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base import hardware
from kiwi_cli.cli.dry_run import last_run
from kiwi_cli.engine import estimate, last_runs, memory
from kiwi_cli.model import shape as shapes
from kiwi_cli.video import Size

from .. import fakes
from ..conftest import CHECKPOINT, ROOT
from .terminal import CLIP, FAST, REFERENCE, inside

FULL = (Size(1280, 704), 81)


def test_the_full_shape_is_counted_as_the_speed_benchmark_counts_it() -> None:
    from types import SimpleNamespace

    from kiwi_cli.bench.speed.operations import step_operations

    shape = shapes.RELEASED_5B
    found = estimate.estimate(shape, *FULL, references=0, steps=50)
    config = SimpleNamespace(num_layers=30, num_attention_heads=24, attention_head_dim=128, ffn_dim=14336)
    assert (found.latent_frames, found.tokens) == (21, 18_480)
    step = estimate.step_operations(shape.width, shape.ffn, shape.layers, 18_480, 768)
    assert step == step_operations(config, 18_480, 768)
    assert step / 1e12 == pytest.approx(292.4, abs=0.1)
    assert 14_500 + 256 + 1348 < found.tflop < 14_700 + 256 + 1348 + 40


def test_memory_is_counted_as_the_memory_plan_counts_it() -> None:
    found = estimate.estimate(shapes.RELEASED_5B, *FULL, references=0, steps=50)
    assert list(found.levels) == ["resident", "release", "swap", "stream"]
    assert sorted(found.levels.values(), reverse=True) == list(found.levels.values())
    assert 24e9 < found.levels["resident"] < 32e9
    for room, level in ((80e9, "resident"), (20e9, "release"), (14e9, "swap"), (8e9, "stream")):
        placement = found.place(int(room))
        assert placement is not None and placement.level.name == level and placement.peak < room
    assert found.place(2**30) is None


def test_a_checkpoints_own_shape_is_read_from_its_files(loaded: object) -> None:
    from kiwi_cli.weights import parameter_count

    shape = shapes.read_shape(CHECKPOINT)
    assert (shape.width, shape.layers, shape.queries) == (48, 3, (8, 16, 24))
    unused = 48 * 32 + 48 * 48 + 2 * 48  # the text embedder of the released layout
    assert sum(counts.total for counts in shape.units.values()) == parameter_count(CHECKPOINT) - unused


def test_the_plan_says_everything_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("ref-edit", CLIP, "--ref", REFERENCE, *FAST, "--frames", 30, "--compare", "-o", tmp_path / "out.mp4")
    code, out, err = inside(capsys, *arguments, "--dry-run")
    assert (code, err) == (0, "")
    for words in (
        "480x270, 48 frames, 24 frames/s, 2.000 s, h264",
        "aac",
        "30 frames, 0.000 s to 1.250 s",
        "480x270 -> 96x64 (stretch), and back",
        "33 frames: the model is shown the last one again",
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
    counted = ("33 frames (4k + 1): 9 latent frames", "tokens", "FLOP")  # for those who know the model
    assert not any(words in out for words in counted)
    code, out, _ = inside(capsys, *arguments, "--dry-run", "-v")
    assert code == 0 and all(words in out for words in counted)
    code, out, _ = inside(capsys, *arguments, "--dry-run", "--json")
    data = json.loads(out)
    assert data["dry_run"] and data["padded_frames"] == 33 and data["estimate"]["latent_frames"] == 9
    assert data["estimate"]["of_this_checkpoint"] and data["comparison"].endswith("out-compare.mp4")


def test_a_model_that_is_not_here_is_said_to_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    code, out, _ = inside(capsys, "edit", CLIP, "x", "--dry-run", "--device", "cpu", "-o", tmp_path / "out.mp4")
    if "here in" in out:
        pytest.skip("the released model is on this machine")
    assert code == 0 and "NOT here: to be fetched, about 19.0 GB" in out and "of a 5B model" in out


@pytest.fixture(autouse=True)
def _no_runs_yet(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


def test_a_recorded_rate_gives_a_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rate = estimate.Recorded("Test GPU", "a test", {("as-stored", False): 100.0}, {False: 50.0}, 40.0, 10.0)
    monkeypatch.setattr(estimate, "RECORDED", (rate,))
    monkeypatch.setattr(hardware, "gpus", lambda: [hardware.Gpu("NVIDIA Test GPU 80GB", 80 * 10**9, 30 * 10**9, "1")])
    found = estimate.estimate(shapes.RELEASED_5B, *FULL, references=0, steps=50)
    expected = 33 / 10 + 256 / 40 + 50 * found.step_tflop / 100 + 1348 / 50
    assert estimate.seconds(found, "NVIDIA Test GPU 80GB") == (pytest.approx(expected), rate)
    compiled = estimate.estimate(shapes.RELEASED_5B, *FULL, references=0, steps=50, compiled=True)
    assert estimate.seconds(compiled, "NVIDIA Test GPU 80GB") is None  # nobody measured that
    assert estimate.seconds(found, "another") is None
    _, out, _ = inside(capsys, "edit", CLIP, "x", *FAST, "--dry-run")
    assert "on NVIDIA Test GPU 80GB (estimate, from a test)" in out and "30.0 GB free: resident" in out
    more = ("--memory", "swap", "--max-memory", "12GB", "--quantize", "int8")
    _, out, _ = inside(capsys, "edit", CLIP, "x", *FAST, "--dry-run", *more)
    assert "12.0 GB free: swap" in out


@pytest.mark.parametrize(
    ("quantize", "compiled", "section"), [("as-stored", False, "step"), ("as-stored", True, "edit"), ("fp8", True, "")]
)
def test_an_h100_takes_what_was_measured_on_it(quantize: str, compiled: bool, section: str) -> None:
    """50 steps and the decode; the whole compiled edit within a tenth of the one that was timed."""
    lines = (ROOT / "benchmarks" / "results" / "h100-2026-11-26.jsonl").read_text().splitlines()
    rows = {row["section"]: row for row in map(json.loads, lines)}
    found = estimate.estimate(shapes.RELEASED_5B, *FULL, 0, 50, quantize=quantize, compiled=compiled)
    said = estimate.seconds(found, rows["smoke"]["device"])
    assert said is not None and "H100" in said[1].source and "2026-11-26" in said[1].source
    step = {"step": "step", "edit": "compile", "": "fp8"}[section]
    decode = rows["compiled-decode" if compiled else "decode"]["decode"]
    parts = rows["encode"]["instruction"] + rows["encode"]["encode"] + 50 * rows[step]["step"] + decode
    assert said[0] == pytest.approx(parts, rel=0.02)
    if section == "edit":
        assert said[0] == pytest.approx(rows["edit"]["edit"], rel=0.1)


def test_the_next_dry_run_knows_what_the_last_edit_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By device, model and shape; another shape by its operations; another way of working has no figure."""
    edit = ("edit", REFERENCE, "in red", *FAST, "-o", tmp_path / "out.png", "--overwrite")
    plain = (*edit, "--dry-run")
    assert "no figure recorded for this device" in inside(capsys, *plain)[1]
    code, out, err = inside(capsys, *edit, "--json")
    assert code == 0, err
    total = json.loads(out)["seconds"]["total"]
    (kept,) = last_runs.read()
    assert kept.load + kept.work == pytest.approx(total, abs=0.001) and kept.tflop > 0
    # Seconds of our own from here on, so that nothing hangs on how fast this machine was.
    last_runs.remember(replace(kept, load=5.0, work=100.0))
    data = json.loads(inside(capsys, *plain, "--json")[1])["estimate"]
    assert data["seconds"] == 105.0 and "the last such edit here, 20" in data["seconds_source"]
    other = json.loads(inside(capsys, *plain, "--size", "128x128", "--json")[1])["estimate"]
    larger = fakes.plan(REFERENCE, tmp_path / "o.png", instruction="in red", size="128x128", steps=1)
    assert other["seconds"] == pytest.approx(5 + 100 * last_run(larger).tflop / kept.tflop, abs=0.06)
    assert other["seconds"] > data["seconds"] and "at 96x64, 1 frame" in other["seconds_source"]
    assert "no figure" in inside(capsys, *plain, "--dtype", "bfloat16")[1]
    again = json.loads(inside(capsys, "rerun", tmp_path / "out.png", "--dry-run", "--json")[1])["estimate"]
    assert again["seconds"] == 105.0  # its record says 'float32' where nothing was typed
    # A file that nobody can read, or write: no fault, no figure.
    last_runs.state_file().write_text("[{}]")
    assert "no figure" in inside(capsys, *plain)[1]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    code, _, err = inside(capsys, *edit)
    assert code == 0 and "state" not in err
    assert "no figure" in inside(capsys, *plain)[1]


def test_a_smaller_working_size_writes_as_many_pixels() -> None:
    run = last_runs.LastRun("CPU", "m", "fast", "160x90", 100.0, 2.0, 60.0, writing=20.0, pixels=1000)
    last_runs.remember(run)
    smaller = last_runs.expected(replace(run, shape="80x48", tflop=25.0))
    assert smaller is not None and smaller[0] == pytest.approx(2 + 40 / 4 + 20)
    longer = last_runs.expected(replace(run, shape="160x90, more", tflop=200.0, pixels=2000))
    assert longer is not None and longer[0] == pytest.approx(2 + 80 + 40)


def test_a_short_edit_does_not_make_a_long_one_seem_endless() -> None:
    """Much of a short edit's time does not grow with the clip: 132 frames of 480p were to take five hours."""
    short = last_runs.LastRun("CPU", "m", "fast", "128x80, 1 frame", 0.1, 2.0, 8.0)
    long, longer = replace(short, shape="long", tflop=100.0), replace(short, shape="longer", tflop=200.0)
    last_runs.remember(short)
    alone = last_runs.expected(long)
    assert alone is not None and "so short that this is too long" in alone[1]
    last_runs.remember(replace(longer, work=108.0))
    both = last_runs.expected(long)
    assert both is not None and both[0] == pytest.approx(2 + 8 + 100 * 99.9 / 199.9) and "too long" not in both[1]
    between = last_runs.expected(replace(short, shape="shorter still", tflop=0.01))
    assert between is not None and 2.8 <= between[0] <= 10.0


def test_the_last_runs_are_kept_one_of_a_kind_and_not_without_end() -> None:
    run = last_runs.LastRun("CPU", "m", "fast", "64x64", 2.0, 1.0, 4.0)
    for index in range(last_runs.MOST + 5):
        last_runs.remember(replace(run, shape=f"shape {index}"))
    last_runs.remember(replace(run, shape="shape 100", work=6.0))
    kept = last_runs.read()
    assert len(kept) == last_runs.MOST and len({entry.shape for entry in kept}) == last_runs.MOST
    assert kept[-1].work == 6.0 and kept[0].shape == "shape 5"
    assert last_runs.expected(replace(run, shape="shape 100", tflop=1.0)) == (
        1.0 + 3.0,
        f"the last such edit here, {kept[-1].day}",
    )
    assert last_runs.expected(replace(run, device="GPU")) is None
    assert [path.name for path in last_runs.state_file().parent.iterdir()] == ["last-runs.json"]


def test_more_of_anything_takes_more() -> None:
    shape = shapes.RELEASED_5B
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


def _needs_torchao(quantize: str) -> None:
    if quantize in ("int8", "fp8"):
        pytest.importorskip("torchao")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", ["as-stored", "int8", "fp8", "fp8-storage"])
def test_weights_are_counted_as_they_are_kept(quantize: str, dtype: str) -> None:
    """Against the weights of the loaded and quantised model, to the byte in fp32; in bf16 a few stay fp32."""
    from kiwi_cli import KiwiPipeline
    from kiwi_cli.engine.quantize import quantize as put
    from kiwi_cli.engine.residency import weigh

    _needs_torchao(quantize)
    pipe = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype=dtype)
    if quantize != "as-stored":
        put(pipe, quantize)
    found, item = weigh(pipe.units), 4 if dtype == "float32" else 2
    counted = estimate.weights_of(shapes.read_shape(CHECKPOINT), item, quantize)
    buffers = 96  # the language model's
    for ours, theirs in ((counted.whole, found.whole), (counted.streamed, found.streamed)):
        assert theirs["mllm"] - ours["mllm"] == buffers
    for unit in ("vae_encoder", "vae_decoder"):
        assert counted.whole[unit] == found.whole[unit] == counted.streamed[unit]  # type: ignore[index]
    for ours, theirs in ((counted.whole, found.whole), (counted.streamed, found.streamed)):
        kept = 0 if item == 4 else 0.03 * theirs["transformer"]
        assert 0 <= theirs["transformer"] - ours["transformer"] <= kept


def test_the_released_weights_are_counted_as_they_are_kept() -> None:
    import torch

    from kiwi_cli.engine.quantize import large_layers
    from kiwi_cli.engine.random_model import random_pipeline
    from kiwi_cli.engine.residency import weigh

    full = random_pipeline("5b", torch.device("meta"), torch.bfloat16)
    found, counted = weigh(full.units), estimate.weights_of(shapes.RELEASED_5B, 2, "as-stored")
    for unit, size in found.whole.items():
        assert counted.whole[unit] == pytest.approx(size, rel=3e-3)
        assert counted.streamed[unit] == pytest.approx(found.streamed[unit], rel=3e-2)
    units = shapes.RELEASED_5B.units
    for name, layers in (("transformer", "transformer"), ("mllm", "mllm_encoder")):
        own = [layer for prefix, layer in large_layers(full) if prefix.startswith(layers)]
        assert units[name].matrices == sum(layer.weight.numel() for layer in own)
        assert units[name].rows == sum(layer.out_features for layer in own)
        assert units[name].biases == sum(layer.bias.numel() for layer in own if layer.bias is not None)


@pytest.mark.parametrize(("quantize", "expected"), [("as-stored", "stream"), ("int8", "swap"), ("fp8-storage", "swap")])
def test_8_bits_move_a_card_to_a_better_level(quantize: str, expected: str) -> None:
    """The full shape on a card of 12 GB."""
    found = estimate.estimate(shapes.RELEASED_5B, *FULL, references=0, steps=50, quantize=quantize)
    placement = found.place(12 * 10**9)
    assert placement is not None and placement.level.name == expected


@pytest.mark.parametrize(
    "quantize",
    ["as-stored", pytest.param("int8", marks=pytest.mark.slow), pytest.param("fp8-storage", marks=pytest.mark.slow)],
)
def test_the_level_is_the_one_that_the_loaded_model_chooses(
    quantize: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For room on both sides of where each level begins, asked of the same command with and without --dry-run."""
    _needs_torchao(quantize)
    picture = ("edit", REFERENCE, "in red", "--model", CHECKPOINT, "--size", "64x64", "--steps", "1")
    asked = (*picture, "--quantize", quantize, "--device", "cpu", "-o", tmp_path / "out.png", "--overwrite")
    code, out, err = inside(capsys, *asked, "--dry-run", "--json")
    assert code == 0, err
    levels = json.loads(out)["estimate"]["memory_bytes"]
    seen = []
    for begin in sorted({size + memory.RESERVE for size in levels.values()}):
        for room in (begin - 60_000, begin + 60_000):
            limit = ("--max-memory", f"{room}B")
            code, out, err = inside(capsys, *asked, *limit, "--dry-run", "--json")
            assert code == 0, err
            level = json.loads(out)["estimate"]["level"]
            code, _, err = inside(capsys, *asked, *limit)
            assert (code == 0) == (level is not None), (room, level, err)
            assert level is None or f"memory: {level}" in err, (room, level, err)
            seen.append(level)
    assert seen[0] is None and seen[-1] == "resident" and len(set(seen)) >= 3


@pytest.mark.parametrize("frames", [1, 9, 40])
@pytest.mark.parametrize("size", [(64, 64), (1280, 704), (352, 640)])
@pytest.mark.parametrize("references", [0, 1])
def test_what_the_language_model_sees_is_counted_as_it_is_built(
    frames: int, size: tuple[int, int], references: int, loaded: Any
) -> None:
    """Patches and prompt; of a reference picture, the most there can be. The small tokenizer takes a byte a token."""
    from kiwi_cli.engine.demand import demand_of

    clip = np.zeros((frames, size[1], size[0], 3), np.uint8)
    pictures = [np.zeros((900, 900, 3), np.uint8)] * references
    inputs = loaded.inputs(clip, "in red", [Image.fromarray(picture) for picture in pictures])
    actual = demand_of(loaded, clip, references, inputs)
    counted = estimate.estimate(shapes.read_shape(CHECKPOINT), Size(*size), frames, references, 1, 4).demand
    assert counted.latent_bytes == actual.latent_bytes and counted.tokens == actual.tokens
    assert counted.prompt >= 0.6 * actual.prompt if frames == 1 else counted.prompt >= 0.97 * actual.prompt
    assert counted.prompt <= 1.3 * actual.prompt


@pytest.mark.parametrize("options", [(), ("--model", CHECKPOINT, "--device", "cuda")], ids=["a large model", "cuda"])
def test_what_would_be_refused_for_want_of_a_gpu_is_no_success(
    options: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    code, out, err = inside(capsys, "edit", CLIP, "x", *options, "--dry-run")
    assert code == 1 and out.startswith("input "), err
    assert "error: " in err and ("--model tiny" in err or options)
