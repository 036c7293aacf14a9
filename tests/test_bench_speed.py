"""`kiwi bench speed`: every stage is there and adds up; the table and the JSON object say the same."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kiwi_cli.base import hardware
from kiwi_cli.bench.speed import clock, diffusers_path, fit
from kiwi_cli.bench.speed.operations import coder_operations, counted
from kiwi_cli.bench.speed.request import SpeedRequest
from kiwi_cli.cli import run
from kiwi_cli.engine.devices import choose_device
from kiwi_cli.engine.estimate import DECODE_TFLOP, ENCODE_TFLOP
from kiwi_cli.engine.random_model import random_pipeline

from .cli.terminal import inside

SMALL = ("bench", "speed", "--model", "small", "--size", "64x64", "--frames", "5", "--steps", "3", "--device", "cpu")
ONCE = (*SMALL, "--warmups", "0", "--repeats", "1")


@pytest.fixture(autouse=True, scope="module")
def _small_product() -> Iterator[None]:
    """The rate of the device is asked for in every run; nothing here depends on its value."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clock.PRODUCT_SIDE, "cpu", 256)
        patch.setattr(clock, "RATE_SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def once(_small_product: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What one run says, and the folder of what it kept."""
    kept = tmp_path_factory.mktemp("speed") / "new" / "kept"
    with redirect_stdout(io.StringIO()) as out:
        assert run([*ONCE, "--save", str(kept), "--json", "-q"]) == 0
    return json.loads(out.getvalue()), kept


def test_every_stage_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *SMALL, "--reference", "--against", "diffusers", "--json", "-q")
    assert code == 0, err
    data = json.loads(out)
    stages = data["stages"]
    parts = sum(stages[name] for name in ("instruction", "encode", "denoise", "decode"))
    assert 0.5 * stages["edit"] < parts <= 1.5 * stages["edit"]
    assert 0 < stages["step"] <= stages["step_p90"] <= stages["denoise"]
    assert min(stages[name] for name in ("load", "first", "file", "write")) > 0 and "compile" not in stages
    assert stages["write"] < stages["file"]
    assert data["tokens"] == (2 + 1) * 2 * 2  # two latent frames and a reference
    assert data["step_tflops"] == pytest.approx(data["tflop"]["step"] / stages["step"])
    assert set(data["library"]) == {"step", "encode", "decode"}
    for beside in data["library"].values():
        assert 0 < beside["least"] <= beside["ratio"] <= beside["most"] and beside["seconds"] > 0
        assert beside["pairs"] >= 5
    assert data["memory"]["resident"] > 50e6 and data["plan"].startswith("memory: resident")
    assert {"torch", "diffusers", "transformers"} <= data["versions"].keys()
    assert data["approximations"] == [] and data["date"].startswith("20")


def test_a_floor_is_the_counted_operations_at_the_measured_rate(once: tuple[dict[str, Any], Path]) -> None:
    data, _ = once
    stages, counts, floors = data["stages"], data["tflop"], data["floor"]
    assert counts["denoise"] == pytest.approx(3 * counts["step"])
    for name in ("instruction", "encode", "step", "denoise", "decode"):
        assert floors[name] == pytest.approx(counts[name] / data["matrix_tflops"])
        assert data["floor_share"][name] == pytest.approx(floors[name] / stages[name])
        assert data["tflops"][name] == pytest.approx(counts[name] / stages[name])
    assert floors["edit"] == pytest.approx(sum(floors[n] for n in ("instruction", "encode", "denoise", "decode")))


@pytest.mark.slow
def test_the_released_coders_are_counted_as_the_estimates_count_them() -> None:
    config = random_pipeline("5b", torch.device("meta"), torch.bfloat16).vae.config
    encode, decode = coder_operations(config, 3, 704, 1280, references=0)
    longer = coder_operations(config, 4, 704, 1280, references=0)
    assert (longer[0] - encode) / 1e12 == pytest.approx(ENCODE_TFLOP, rel=0.06)
    assert (longer[1] - decode) / 1e12 == pytest.approx(DECODE_TFLOP, rel=0.06)


def test_a_reference_is_encoded_as_one_frame_and_not_decoded(loaded: Any) -> None:
    encode, decode = coder_operations(loaded.vae.config, 2, 64, 64, references=0)
    more, same = coder_operations(loaded.vae.config, 2, 64, 64, references=2)
    assert same == decode and 0 < (more - encode) / 2 < encode / 3


def test_attention_on_the_cpu_is_counted() -> None:
    """torch's own counter leaves it out."""
    query, key = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 5, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert counted(lambda: attention(query, key, key)) == 2 * 2 * (2 * 3 * 5 * 8)


def test_attention_with_shared_key_heads_is_counted_for_every_query_head() -> None:
    """Qwen's; the formula of some versions of torch refuses them."""
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert counted(lambda: attention(query, key, key, enable_gqa=True)) == 2 * 2 * (4 * 3 * 5 * 8)


@pytest.mark.slow
def test_it_runs_from_a_folder_that_nobody_installed_and_without_a_reader_of_clips() -> None:
    """A machine to measure on may have neither."""
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from kiwi_cli.base import hardware\n"
        "from kiwi_cli.bench.speed import measure\n"
        "from kiwi_cli.engine.random_model import moving_picture\n"
        "print(moving_picture(5, 32, 64).shape, hardware.version_of('no-such-package'))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(5, 32, 64, 3) None"


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_cuda_device_has_a_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's calls for the memory of a process refuse a device without one."""
    for call, answer in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, call, lambda answer=answer: answer)
    assert choose_device(name) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "unipc"), "solver unipc"),
        (("--cache", "easy", "--cache-threshold", "9", "--steps", "6"), "skipped 3 of 6 steps"),
        (("--quantize", "fp8-storage"), "fp8-storage weights"),
    ],
)
def test_an_approximate_mode_is_named(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *ONCE, *options, "--json", "-q")
    assert code == 0, err
    data = json.loads(out)
    assert any(words in line and "NOT exact" in line for line in data["approximations"])
    computed = data["request"]["steps"] - data["skipped"]
    assert data["tflop"]["denoise"] == pytest.approx(computed * data["tflop"]["step"])


def test_what_comes_out_can_be_kept(once: tuple[dict[str, Any], Path]) -> None:
    frames, latents = (np.load(once[1] / f"{name}.npy") for name in ("frames", "latents"))
    assert frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8 and latents.shape == (1, 48, 2, 4, 4)


def test_a_level_of_memory_does_not_change_the_latents(
    once: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    resident, _ = once
    code, out, err = inside(capsys, *ONCE, "--memory", "swap", "--json", "-q")
    assert code == 0, err
    swapped = json.loads(out)
    assert resident["plan"].startswith("memory: resident") and swapped["plan"].startswith("memory: swap")
    assert swapped["latents"] == resident["latents"]


def test_the_table_names_the_rate_and_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inside(capsys, *ONCE)
    assert code == 0
    for words in ("step, median", "TFLOP/s", "of the floor", "matrix product", "edit, cold", "write", "cpu", "float32"):
        assert words in out
    assert "small random weights" in out and "edit, warm" not in out  # without a warm-up there is none


@pytest.mark.slow
def test_compilation_is_timed_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from kiwi_cli.bench.speed import measure as speed
    from kiwi_cli.engine.compilation import compile_model

    monkeypatch.setattr(speed, "compile_model", lambda transformer: compile_model(transformer, "eager"))
    code, out, err = inside(capsys, *SMALL, "--compile", "--repeats", "1", "--against", "diffusers", "--json", "-q")
    assert code == 0, err
    data = json.loads(out)
    assert data["stages"]["compile"] > data["stages"]["step"] and data["stages"]["first"] > data["stages"]["compile"]
    assert set(data["library"]) == {"step", "encode", "decode"}


def test_two_ways_are_timed_in_turn() -> None:
    """And each begins as often as the other, but for one."""
    calls: list[str] = []
    found = diffusers_path.paired(
        lambda: calls.append("ours"), lambda: calls.append("library"), clock.Clock(torch.device("cpu"))
    )
    assert len(calls) == 2 * (found.pairs + 1) and calls.count("ours") == found.pairs + 1
    pairs = [calls[index : index + 2] for index in range(2, len(calls), 2)]
    assert all(set(pair) == {"ours", "library"} for pair in pairs)
    assert abs(sum(1 if pair[0] == "ours" else -1 for pair in pairs)) <= 1


def test_the_ceiling_is_the_best_of_all_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = clock.matrix_rate(torch.device("cpu"), torch.float32)
    products = clock.products(torch.device("cpu"), torch.float32)
    assert rate > 0 and len(products) >= 4
    for operations, work in products:
        assert counted(work) == operations


@pytest.mark.parametrize("free", [21, 3, 0.1])
def test_what_does_not_fit_the_host_is_refused_before_it_begins(
    free: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default's 38 GB of weights on a machine of 24 GB; what is proposed instead is accepted."""
    monkeypatch.setattr(hardware, "memory", lambda: (24 * 10**9, int(free * 1e9)))
    monkeypatch.setattr(fit, "random_pipeline", on_meta_only)
    code, out, err = inside(capsys, "bench", "speed", "--device", "cpu")
    assert code == 1 and out == "" and f"{free:.1f} GB are free" in err and "5b weights at 1280x704, 81 frames" in err
    needed = float(re.search(r"need (\d+\.\d) GB of main memory", err)[1])  # type: ignore[index]
    assert 38 < needed < 65
    hint = err.split("hint: ")[1].split()
    if free < 1:
        assert hint[:5] == ["use", "a", "machine", "with", "more"]
        return
    options = dict(zip(hint[1::2], hint[2::2], strict=True))
    width, height = map(int, options["--size"].split("x"))
    request = SpeedRequest(options["--model"], width, height, int(options["--frames"]))
    fit.check_room(request, torch.device("cpu"), torch.float32)


@cache
def on_meta_only(size: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Any:
    assert device.type == "meta"
    return random_pipeline(size, device, dtype, **options)


def test_what_does_not_fit_the_device_is_refused_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "random_pipeline", on_meta_only)
    full = ("bench", "speed", "--device", "cpu", "--dtype", "bfloat16", "--max-memory", "5GB")
    code, out, err = inside(capsys, *full)
    assert code == 1 and out == "" and "5.0 GB may be used" in err and "hint: use a smaller size" in err


def test_the_library_is_left_out_where_it_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *ONCE, "--memory", "stream", "--against", "diffusers")
    assert code == 0 and "the library is not timed" in out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "huge"), "'huge'"),
        (("--size", "100x64"), "'100x64'"),
        (("--size", "0x64"), "'0x64'"),
        (("--steps", "0"), "--steps"),
        (("--against", "time"), "'time'"),
        (("--memory", "huge"), "'huge'"),
        (("--max-memory", "plenty"), "'plenty'"),
        (("--attention", "best"), "'best'"),
        (("--frames", "6"), "4k + 1"),
        (("--cache", "warm"), "'warm'"),
        (("--cache", "mag"), "no ratios"),
        (("--solver", "magic"), "'magic'"),
        (("--quantize", "int3"), "'int3'"),
        (("--quantize", "fp8-storage", "--against", "diffusers"), "--against"),
        (("--compile", "--cache", "sea"), "--compile does not go together"),
    ],
)
def test_bad_options_are_refused(arguments: tuple[str, str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *SMALL, *arguments)
    assert code == 2 and words in err and out == ""
