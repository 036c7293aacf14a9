"""`kiwi bench speed`: every stage is there and adds up; the table and the JSON object say the same. The script for a
machine with a GPU is rehearsed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from kiwi_cli.bench import clock
from kiwi_cli.bench.operations import coder_operations, counted
from kiwi_cli.bench.random_model import random_pipeline
from kiwi_cli.estimate import DECODE_TFLOP, ENCODE_TFLOP

from .cli.terminal import inside
from .conftest import ROOT

SMALL = ("bench", "speed", "--model", "small", "--size", "64x64", "--frames", "5", "--steps", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of the device is asked for in every run; nothing here depends on its value."""
    monkeypatch.setitem(clock.PRODUCT_SIDE, "cpu", 256)


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
    assert data["memory"]["resident"] > 50e6 and data["plan"].startswith("memory: resident")
    assert {"torch", "diffusers", "transformers"} <= data["versions"].keys()
    assert data["approximations"] == [] and data["date"].startswith("20")


def test_a_floor_is_the_counted_operations_at_the_measured_rate(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = inside(capsys, *SMALL, "--warmups", "0", "--repeats", "1", "--json", "-q")
    data = json.loads(out)
    stages, counts, floors = data["stages"], data["tflop"], data["floor"]
    assert counts["denoise"] == pytest.approx(3 * counts["step"])
    for name in ("instruction", "encode", "step", "denoise", "decode"):
        assert floors[name] == pytest.approx(counts[name] / data["matrix_tflops"])
        assert data["floor_share"][name] == pytest.approx(floors[name] / stages[name])
        assert data["tflops"][name] == pytest.approx(counts[name] / stages[name])
    assert floors["edit"] == pytest.approx(sum(floors[n] for n in ("instruction", "encode", "denoise", "decode")))


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "unipc"), "solver unipc"),
        (("--cache", "easy", "--cache-threshold", "9", "--steps", "6"), "skipped 3 of 6 steps"),
        (("--quantize", "fp8-storage"), "fp8-storage weights"),
    ],
)
def test_an_approximate_mode_is_named(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, *SMALL, "--warmups", "0", "--repeats", "1", *options, "--json", "-q")
    assert code == 0, err
    data = json.loads(out)
    assert any(words in line and "NOT exact" in line for line in data["approximations"])
    computed = data["request"]["steps"] - data["skipped"]
    assert data["tflop"]["denoise"] == pytest.approx(computed * data["tflop"]["step"])


def test_what_comes_out_can_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = inside(capsys, *SMALL, "--warmups", "0", "--repeats", "1", "--save", tmp_path / "new" / "kept")
    assert code == 0, err
    frames, latents = (np.load(tmp_path / "new" / "kept" / f"{name}.npy") for name in ("frames", "latents"))
    assert frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8 and latents.shape == (1, 48, 2, 4, 4)


def test_a_level_of_memory_does_not_change_the_latents(capsys: pytest.CaptureFixture[str]) -> None:
    hashes = set()
    for level in ("resident", "swap"):
        code, out, err = inside(capsys, *SMALL, "--warmups", "0", "--repeats", "1", "--memory", level, "--json", "-q")
        assert code == 0, err
        hashes.add(json.loads(out)["latents"])
    assert len(hashes) == 1


def test_the_table_names_the_rate_and_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = inside(capsys, *SMALL, "--warmups", "0", "--repeats", "1")
    assert code == 0
    for words in ("step, median", "TFLOP/s", "of the floor", "matrix product", "edit, cold", "write", "cpu", "float32"):
        assert words in out
    assert "small random weights" in out and "edit, warm" not in out  # without a warm-up there is none


def test_compilation_is_timed_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from kiwi_cli.bench import speed
    from kiwi_cli.compilation import compile_model

    monkeypatch.setattr(speed, "compile_model", lambda transformer: compile_model(transformer, "eager"))
    code, out, err = inside(capsys, *SMALL, "--compile", "--repeats", "1", "--against", "diffusers", "--json", "-q")
    assert code == 0, err
    data = json.loads(out)
    assert data["stages"]["compile"] > data["stages"]["step"] and data["stages"]["first"] > data["stages"]["compile"]
    assert set(data["library"]) == {"step", "encode", "decode"}


def test_the_library_is_left_out_where_it_cannot_work(capsys: pytest.CaptureFixture[str]) -> None:
    stream = ("--memory", "stream", "--against", "diffusers", "--warmups", "0", "--repeats", "1")
    code, out, err = inside(capsys, *SMALL, *stream)
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


# -- the script for a GPU -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rehearsal_runs_and_cannot_be_taken_for_a_gpu(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = ["no cap", "cap 12 GB"]
    script.main(["--rehearse", "--out", str(tmp_path), "--only", *cases])
    out, err = capsys.readouterr()
    assert {path.name for path in tmp_path.iterdir()} == {"rehearsal.jsonl", "rehearsal.md"}
    records = [json.loads(line) for line in (tmp_path / "rehearsal.jsonl").read_text().splitlines()]
    assert [record["case"] for record in records] == cases and all(record["rehearsal"] for record in records)
    assert records[0]["plan"].startswith("memory: resident") and records[1]["plan"].startswith("memory: stream")
    assert out == (tmp_path / "rehearsal.md").read_text() and out.startswith(f"**{script.REHEARSAL}**")
    assert "no figure of a GPU" in out and "| equal, equal |" in out
    for label in (*cases, "decode, bf16", "file to file, warm"):
        lines = [line for line in out.splitlines() if label in line and not line.startswith("| cap |")]
        assert lines and all(line.startswith("| rehearsal: ") for line in lines)
    assert all(line.startswith(f"[{script.REHEARSAL}] ") for line in err.splitlines())
    script.main(["--rehearse", "--out", str(tmp_path), "--only", *cases])  # done already: nothing runs again
    assert capsys.readouterr() == (out, "")


def test_without_a_gpu_the_script_says_what_to_do(script: ModuleType, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit, match="--rehearse"):
        script.main(["--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import time; time.sleep(60)", "not done after 1 s"),
        ("import sys; sys.exit('error: no room\\n\\nhint: less')", "no room"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("print('nothing')", "no JSON"),
        ("raise ValueError('strange | odd')", "ValueError: strange | odd"),
    ],
)
def test_a_case_that_fails_is_a_result(script: ModuleType, code: str, words: str) -> None:
    record = script.run("50 steps", ["-c", code], 1.0 if "sleep" in code else 60.0)
    assert words in record["error"]
    line = next(line for line in script.tables([record], False).splitlines() if line.startswith("| 50 steps"))
    assert words.replace("|", "/") in line and line.count("|") == 2 + len(script.row(record))


def test_bits_that_differ_are_said_to(script: ModuleType, tmp_path: Path) -> None:
    def kept(name: str, latents: Any, frames: Any) -> Path:
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "latents.npy", np.float32(latents))
        np.save(tmp_path / name / "frames.npy", np.uint8(frames))
        return tmp_path / name

    one, other = kept("one", [3, 4], [[0, 255]]), kept("other", [3, 4.5], [[7, 250]])
    assert script.compare(one, other) == {"latents_error": pytest.approx(0.1), "frames_largest_difference": 7}
    assert script.compare(one, tmp_path / "none") == {}
    same = {"request": {"steps": 4}, "memory": {}, "plan": "memory: swap", "latents": "a", "pixels": "b"}
    apart = same | {"latents": "c", "latents_error": 0.1, "frames_largest_difference": 7}
    assert script.capped({script.UNCAPPED: same, "cap": same}, "cap") == ["swap", "", "equal, equal"]
    assert script.capped({script.UNCAPPED: same, "cap": apart}, "cap")[2].startswith(
        "NOT equal, equal; latents 1.0e-01"
    )
    assert script.capped({"cap": same}, "cap")[2] == "nothing to compare with"


def test_every_case_is_one_the_command_line_takes(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from kiwi_cli.bench import speed
    from kiwi_cli.cli import run

    asked: list[Any] = []
    monkeypatch.setattr(speed, "measure", lambda request, progress: asked.append(request) or sys.exit(0))
    for case in script.CASES:
        for rehearse in (False, True):
            with pytest.raises(SystemExit):
                run(["bench", "speed", *script.options_of(case, rehearse), "-q"])
            assert asked[-1].device == ("cpu" if rehearse else "cuda")
            assert (asked[-1].width, asked[-1].frames) == ((64, 5) if rehearse else (1280, 81))
    assert {"5b", "small"} == {request.model for request in asked}
