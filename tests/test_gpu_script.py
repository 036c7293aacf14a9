"""The script for a machine with a GPU: rehearsed on the CPU, and watched with sections that fail in every way."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .conftest import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("gpu")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_a_rehearsal_runs_and_cannot_be_taken_for_a_gpu(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = ("smoke", "step", "caps")
    arguments = ["--rehearse", "--out", str(tmp_path), "--only", ",".join(sections)]
    assert script.main(arguments) == 0, (tmp_path / "rehearsal.log").read_text()
    out = capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "rehearsal.jsonl").read_text().splitlines()]
    assert [record["section"] for record in records] == list(sections)
    assert all(record["rehearsal"] and "error" not in record for record in records)
    assert records[1]["step"] > 0 and records[1]["tokens"] == 3 * 2 * 2  # three latent frames of 64x64
    uncapped, capped = records[2]["caps"]
    assert uncapped["equal"] and "stream" in capped["error"] and "0.6 GB" in capped["error"]
    assert out == (tmp_path / "rehearsal.md").read_text()
    figures = [line for line in out.splitlines() if line and not line.startswith(("#", "|--", "**"))]
    assert out.startswith("**REHEARSAL") and all("rehearsal" in line for line in figures)
    before = (tmp_path / "rehearsal.jsonl").read_text()
    assert script.main(arguments) == 0  # all there already: nothing runs again
    assert (tmp_path / "rehearsal.jsonl").read_text() == before


WORKER = """
import json, os, signal, sys, time
from pathlib import Path
path, names = Path(sys.argv[1]), sys.argv[2].split(",")
for count, name in enumerate(names):
    path.with_suffix(".now").write_text(",".join(names[: count + 1]))
    if name == "hangs":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(600)
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "leaves":
        sys.exit("no room for this")
    with path.open("a") as file:
        file.write(json.dumps({"section": name, "figure": 1}) + "\\n")
"""


@pytest.mark.parametrize(
    ("bad", "words"),
    [("hangs", "not done after"), ("dies", "ended with -9"), ("leaves", "no room for this")],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_section_that_fails_costs_no_other(
    script: ModuleType, tmp_path: Path, bad: str, words: str, place: int
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    path = tmp_path / "gpu.jsonl"
    names = ["first", "second"]
    names.insert(place, bad)
    limits = dict.fromkeys(names, 1.0)
    watch = script.Watch([sys.executable, str(worker), str(path)], path, time.monotonic() + 60, limits, begin=10.0)
    assert watch.run(names) == []
    found = script.read(path)
    assert found["first"]["figure"] == found["second"]["figure"] == 1
    assert words in found[bad]["error"] and words in script.tables(found)


def test_what_raises_or_takes_all_memory_costs_no_other(tmp_path: Path, script: ModuleType) -> None:
    """In the process that does the work, too."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        sections = importlib.import_module("gpu_sections.__main__")
        import torch

        def full(bench: Any) -> Any:
            bench.ready()
            raise torch.OutOfMemoryError("no room")

        before = dict(sections.SECTIONS)
        sections.SECTIONS |= {"full": full, "wrong": lambda bench: 1 / 0, "fine": lambda bench: {"figure": 1}}
        try:
            sections.run(["full", "wrong", "fine"], tmp_path / "gpu.jsonl", rehearse=True)
        finally:
            sections.SECTIONS.clear()
            sections.SECTIONS |= before
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    found = script.read(tmp_path / "gpu.jsonl")
    assert "no room" in found["full"]["error"] and "ZeroDivisionError" in found["wrong"]["error"]
    assert found["fine"]["figure"] == 1


@pytest.mark.parametrize("computing", [True, False])
def test_values_are_looked_at_unless_the_device_computes_none(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, computing: bool
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sections, bench = (importlib.import_module(f"gpu_sections.{name}") for name in ("__main__", "bench"))
    import torch

    from kiwi_cli.engine.finite import is_finite

    assert bench.computes(torch.device("cpu"))
    monkeypatch.setattr(bench, "computes", lambda device: computing)
    monkeypatch.setitem(sections.SECTIONS, "nan", lambda bench: {"figure": int(is_finite(torch.tensor(torch.nan)))})
    sections.run(["nan"], tmp_path / "gpu.jsonl", rehearse=True)
    assert script.read(tmp_path / "gpu.jsonl")["nan"]["figure"] == int(not computing)
    assert not is_finite(torch.tensor(torch.nan))


def test_at_the_end_of_its_time_it_says_what_was_not_begun(script: ModuleType, tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    path = tmp_path / "gpu.jsonl"
    limits = {"hangs": 600.0, "second": 1.0}
    watch = script.Watch([sys.executable, str(worker), str(path)], path, time.monotonic() + 1, limits)
    assert watch.run(["hangs", "second"]) == ["second"]
    assert "not done after" in script.read(path)["hangs"]["error"]


def test_every_section_has_a_limit(script: ModuleType) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        assert list(importlib.import_module("gpu_sections.__main__").SECTIONS) == list(script.LIMITS)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("option", ["--only", "--skip"])
def test_a_section_that_there_is_not_is_refused(script: ModuleType, option: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no section 'stepp'"):
        script.main([option, "step,stepp", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_without_a_gpu_it_says_what_to_do(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert script.main(["--only", "smoke", "--out", str(tmp_path)]) == 1
    assert "--rehearse" in capsys.readouterr().out


def test_the_ways_to_edit_are_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case as it is, one that steps down, and one whose level leaves no step: each is a line, and none runs twice."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    modes = importlib.import_module("gpu_modes")
    names = [case.name for case in modes.cases()]
    assert len(names) == len(set(names)) and {"auto", "stream fp8", "8 GB compiled", "swap short in decode"} <= {*names}
    arguments = ["--rehearse", "--out", str(tmp_path), "--only"]
    for only in ("auto", "auto short in denoise", "swap short in denoise"):
        assert modes.main([*arguments, only]) == 0
    records = modes.read(tmp_path / "modes-rehearsal.jsonl")
    assert [record["frames"] for name, record in records.items() if "swap" not in name] == [9, 9]
    assert "going on with less" in records["auto short in denoise"]["placed"][0]
    assert records["swap short in denoise"]["error"].startswith("out of memory on cpu")
    before = (tmp_path / "modes-rehearsal.jsonl").read_text()
    assert modes.main([*arguments, "auto"]) == 0
    assert (tmp_path / "modes-rehearsal.jsonl").read_text() == before
    table = (tmp_path / "modes-rehearsal.md").read_text()
    assert table.startswith("**REHEARSAL") and len(table.splitlines()) == 4 + len(records)


def test_a_way_that_does_not_end_well_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    modes = importlib.import_module("gpu_modes")
    runs = SimpleNamespace(frames=9)

    def well(case: Any, **record: Any) -> bool:
        return modes.Modes.well(runs, case, {"frames": 9, **record})

    plain, capped, short = modes.Case("a"), modes.Case("b", cap=8), modes.Case("c", short="decode")
    assert well(plain) and well(capped, reserved=int(8e9)) and well(short, error="out of memory on cuda:0: no room")
    assert not well(plain, frames=8) and not well(plain, left=int(2e9)) and not well(capped, reserved=int(8.1e9))
    assert not well(plain, error="out of memory on cuda:0: no room") and not well(short, error="unexpected KeyError")
    refused = modes.Case("d", cap=8, refused=True)
    assert well(refused, error="this edit needs 8.5 GB") and not well(capped, error="this edit needs 8.5 GB")
    assert well(plain, graphs=[2, 2]) and not well(plain, graphs=[2, 3])
    line = modes.table({"a": {"well": False, "error": "no room", "waits": {}}}, "").splitlines()[-1]
    assert line.startswith("| a |") and "**FAILED** no room" in line
