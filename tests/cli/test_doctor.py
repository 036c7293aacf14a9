"""`kiwi doctor`: each check on machines that are not this one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kiwi_cli.base import hardware
from kiwi_cli.editing import doctor
from kiwi_cli.weights.catalog import VARIANTS

from .terminal import inside

CUDA = doctor.Check("device", "ok", "a GPU", "", {"kind": "cuda", "gpus": [{"free": 24 * 10**9}]})
NOTHING = {variant.name: "no" for variant in VARIANTS}


def test_it_says_what_is_here_and_ends_accordingly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(doctor, "import_problem", lambda module: None)  # seconds each; tested below
    code, out, err = inside(capsys, "doctor", "--json")
    data = json.loads(out)
    assert err == "" and data["usable"] == (code == 0)
    found = {check["name"]: check for check in data["checks"]}
    assert {"python", "packages", "torchvision", "imports", "device", "memory", "disk", "codecs"} <= found.keys()
    assert {f"model {variant.name}" for variant in VARIANTS} <= found.keys()
    # Without its build: a wheel with CUDA calls itself 2.11.0 and its module 2.11.0+cu130.
    assert found["packages"]["data"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    if not torch.cuda.is_available():
        assert code == 1 and found["device"]["state"] == "failed" and "--device cpu" in found["device"]["hint"]
    code, out, _ = inside(capsys, "doctor")
    assert "python" in out and "kiwi edit can" in out.splitlines()[-1]


def test_a_broken_torchvision_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    check = doctor.check_torchvision()
    assert check.state == "warning" and "nms does not exist" in check.text and "pip uninstall torchvision" in check.hint
    assert "torchvision" not in sys.modules
    monkeypatch.setattr(doctor, "import_problem", lambda module: "RuntimeError: nms")
    assert doctor.check_import(check).hint == check.hint  # the import that fails is explained by it


def test_an_import_that_fails_is_told_in_one_line() -> None:
    assert doctor.import_problem("json") is None
    problem = doctor.import_problem("no_such_module_of_ours")
    assert problem is not None and "no_such_module_of_ours" in problem and "\n" not in problem


def test_a_gpu_that_torch_cannot_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "gpus", lambda: [hardware.Gpu("NVIDIA RTX 4090", 24 * 2**30, 23 * 2**30, "535.1")])
    check = doctor.check_device()
    assert check.state == "failed" and "NVIDIA RTX 4090" in check.text and "built for CUDA" in check.hint


def test_a_gpu_that_torch_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (20 * 10**9, 24 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA RTX 4090")
    monkeypatch.setattr(hardware, "gpus", lambda: [])
    for capability, state in (((8, 9), "ok"), ((7, 5), "warning")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, value=capability: value)
        check = doctor.check_device()
        assert check.state == state and "24.0 GB, 20.0 GB free" in check.text


@pytest.mark.parametrize(("free", "mode"), [(80, "resident"), (20, "release"), (8, "stream"), (1, None)])
def test_models_are_judged_by_the_memory_that_is_free(free: int, mode: str | None) -> None:
    device = doctor.Check("device", "ok", "", "", {"kind": "cuda", "gpus": [{"free": free * 10**9}]})
    checks = doctor.check_models({**NOTHING, "instruct-reference": "yes"}, device)
    first = checks[0]
    assert first.data["memory"] == mode and first.text.startswith("here; ")
    assert (f"--memory {mode}" in first.text) if mode else ("do not fit" in first.text and first.state == "failed")


def test_no_room_for_the_model_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "free_bytes", lambda path: 5 * 10**9)
    check = doctor.check_disk(NOTHING)
    assert check.state == "failed" and "HF_HOME" in check.hint
    assert doctor.check_disk({**NOTHING, "instruct-reference": "yes"}).state == "ok"


def test_without_h264_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_codecs", lambda: {"libx264": False, "libvpx-vp9": True})
    assert doctor.check_codecs().state == "failed"


def test_the_driver_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*arguments: Any, **options: Any) -> Any:
        return SimpleNamespace(stdout="NVIDIA H200, 143771, 143000, 570.1\nOdd card, [N/A], [N/A], 570.1\n")

    monkeypatch.setattr(hardware.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(hardware.subprocess, "run", answer)
    first, second = hardware.gpus()
    assert (first.name, first.total, first.driver) == ("NVIDIA H200", 143771 * 2**20, "570.1")
    assert second.total == 0
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    assert hardware.gpus() == []


def test_memory_of_this_machine() -> None:
    has = hardware.memory()
    assert has is not None and has[0] >= has[1] > 0
