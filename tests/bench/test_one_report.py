"""Seven editors through one bench end in one report that compares them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.bench import run as runs
from kiwi_cli.editors import fal
from kiwi_cli.editors.files import Limits

from ..conftest import CHECKPOINT
from ..editors import services, tiny_pipelines
from .conftest import Kiwi
from .judge_server import Service
from .test_editors import done

for module in ("ftfy", "runwayml", "fal_client"):
    pytest.importorskip(module, reason="needs the extras 'editors', 'runway' and 'fal'")

FAL = "fal:some/editor"
SHORT = ("--size", "64x64", "--frames", "5", "--limit", "2")
LOCAL = ("--steps", "1", "--device", "cpu")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Any:
    with services.serve() as running:
        services.use(monkeypatch, running)
        yield running


@pytest.mark.slow
def test_seven_editors_in_one_report(
    kiwi: Kiwi,
    service: Service,
    remote: services.Services,
    tmp_path: Path,
    openve_data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(fal.MODELS, "some/editor", fal.Endpoint(Limits(pictures=False), dollars=0.5))
    clips = tmp_path / "clips"
    models = {name: tiny_pipelines.save(name, tmp_path / "models" / name) for name in ("lucy-edit", "vace")}
    editors: dict[str, tuple[Any, ...]] = {
        "kiwi": ("--model", CHECKPOINT, *LOCAL),
        "lucy-edit": ("--editor", "lucy-edit", "--model", models["lucy-edit"], *LOCAL),
        "vace": ("--editor", "vace", "--model", models["vace"], *LOCAL),
        "command": ("--editor", "command:cp {input} {output}"),
        "folder": ("--editor", f"folder:{clips}"),
        "runway": ("--editor", "runway"),
        "fal": ("--editor", FAL),
    }
    for name, options in editors.items():
        if name == "folder":  # what the program made, as clips that exist
            for path in (tmp_path / "command" / "edits").rglob("*.mp4"):
                clips.mkdir(exist_ok=True)
                shutil.copy(path, clips / path.name)
        command = ("bench", "openve", "--data", openve_data, "--out", tmp_path / name, *SHORT, *options)
        code, _, err = kiwi(*command, "--judge-url", service.url)
        assert code == 0 and "2 items edited" in err and "2 of 2 items scored" in err, err
        if name in ("runway", "fal"):
            assert "at list price" in err  # before
            assert "dollars\n" in err.split("2 items edited")[1][:60]  # and after
        assert services.KEY not in err
    folders = [tmp_path / name for name in editors]
    code, stdout, err = kiwi("bench", "report", *folders, "--out", tmp_path / "report")
    assert code == 0, err
    data = json.loads((tmp_path / "report" / "report.json").read_text())["benchmarks"][0]
    assert [row["run"] for row in data["rows"]] == list(editors) and all(row["scored"] == 2 for row in data["rows"])
    known = [run["model"]["fingerprint"] for run in data["runs"]]
    assert len(set(known)) == len(editors) and all(known)
    assert [run["model"].get("editor", "kiwi") for run in data["runs"]] == list(editors)
    changed = {run["run"]: run["changed"] for run in data["runs"]}
    assert "given with its last frame 11 times more, to 2.00 s" in changed["runway"]
    assert all(name in stdout for name in editors)
    for item in data["items"][:2]:
        assert {edit["run"] for edit in item["edits"] if edit["path"]} <= set(editors)
    # An editor's run is its own: no other is taken for it.
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, *SHORT)
    for name, other in zip(editors, [*list(editors)[1:], "kiwi"], strict=True):
        code, _, err = kiwi(*command, "--out", tmp_path / name, *editors[other])
        assert code == 2 and "holds another run: its " in err, (name, other, err)
    for path in tmp_path.rglob("*.json*"):
        assert services.KEY not in path.read_text()
    dollars = [line["dollars"] for line in done(runs.open_run(tmp_path / "runway")) if "dollars" in line]
    assert dollars == [0.6, 0.6] and len(runs.open_run(tmp_path / "fal").items) == 8
