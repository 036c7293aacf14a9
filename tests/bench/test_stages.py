"""Every stage with the small checkpoint: whole results, resumed, one bad item, several processes, killed anywhere."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from kiwi_cli.batch.jobs import STATE, Job, JobStore
from kiwi_cli.batch.journal import read_lines
from kiwi_cli.batch.records import Tail
from kiwi_cli.batch.worker import Told
from kiwi_cli.bench import edit
from kiwi_cli.bench import run as runs
from kiwi_cli.editors.base import Edited, Frames
from kiwi_cli.engine.choice import ModelChoice, Sampling

from .. import fakes
from ..conftest import CHECKPOINT, make_model
from . import miniature
from .conftest import FAST, Kiwi, start_process
from .judge_server import Service


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def results(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (folder / "edits").rglob("*") if path.is_file()}


def test_openve_through_all_stages(
    kiwi: Kiwi, service: Service, loads: list[str], tmp_path: Path, openve_data: Path
) -> None:
    out = tmp_path / "run"
    command = ("bench", "openve", "--data", openve_data, "--out", out, *FAST, "--judge-url", service.url)
    code, stdout, err = kiwi(*command)
    assert code == 0, err
    assert len(loads) == 1 and service.total == 8
    for words in (
        "settings published but steps 1",
        "8 items to edit, 0 of them done",
        "8 of 8 items scored",
        "report.html",
    ):
        assert words in err
    assert "OpenVE-Bench: your runs" in stdout and "mean of 5 categories" in stdout
    run = runs.open_run(out)
    for item in run.items:
        frames = frames_of(run.edited(item))
        assert frames.shape == (5, 64, 64, 3)
        assert np.abs(frames.astype(int) - frames_of(run.source(item))).mean() > 3  # something was done
    with av.open(str(run.edited(run.items[0]))) as container:
        assert container.streams.video[0].average_rate == 8  # the clip's own
        assert json.loads(container.metadata["comment"])["profile"].startswith("published but")
    before = results(out)
    assert kiwi(*command)[0] == 0  # again: nothing is made and nothing is asked
    assert results(out) == before and len(loads) == 1 and service.total == 8
    assert [path.name for path in out.rglob(".*")] == [STATE]


def test_a_model_may_be_changed_for_a_run_and_the_run_says_so(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    import torch
    from safetensors.torch import save_file

    style, module = tmp_path / "style.safetensors", "blocks.0.attn1.to_q"
    save_file({f"{module}.lora_A.weight": torch.ones(2, 48), f"{module}.lora_B.weight": torch.ones(48, 2)}, style)
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--limit", 1, *FAST)
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    asked = ("--lora", f"{style}:0.5", "--quantize", "fp8-storage")
    assert kiwi(*command, "--out", plain)[0] == 0
    code, _, err = kiwi(*command, "--out", changed, *asked)
    assert code == 0, err
    name = json.loads((changed / "run.json").read_text())["settings"]["name"]
    assert name.startswith("published but steps 1, frames 5, size 64x64, loras ") and "quantize fp8-storage" in name
    assert "options" not in json.loads((plain / "run.json").read_text())["settings"]
    (before,), (after,) = results(plain).values(), results(changed).values()
    assert before != after
    code, _, err = kiwi(*command, "--out", changed)
    assert code == 2 and "holds another run" in err
    style.write_bytes(style.read_bytes() + b" ")  # the same name, another file
    code, _, err = kiwi(*command, "--out", changed, *asked)
    assert code == 2 and "holds another run" in err


def test_refvie_and_imgedit_through_all_stages(
    kiwi: Kiwi, service: Service, loads: list[str], tmp_path: Path, refvie_data: Path, imgedit_data: Path
) -> None:
    for name, folder, count in (("refvie", refvie_data, 3), ("imgedit", imgedit_data, 3)):
        out = tmp_path / name
        before = service.total
        code, stdout, err = kiwi("bench", name, "--data", folder, "--out", out, *FAST, "--judge-url", service.url)
        assert code == 0 and "your runs" in stdout, err
        assert len(results(out)) == count and service.total == before + count
    pictures = [Image.open(path) for path in (tmp_path / "imgedit/edits").rglob("*.png")]
    assert [picture.size for picture in pictures] == [(64, 64)] * 3


def test_the_kiwi_protocol_scores_five_types_with_the_authors_words(
    kiwi: Kiwi, service: Service, tmp_path: Path, openve_run: runs.Run
) -> None:
    from .test_rubrics import SCRIPT

    script = tmp_path / "eval.py"
    categories = ("background_change", "local_change", "local_remove")
    more = "".join(
        f"{name.upper()} = LOCAL_ADD = 'Did It: 1-5. {{edit_prompt}}'\n".replace(" = LOCAL_ADD", "")
        for name in categories
    )
    script.write_text(SCRIPT + more)
    code, _, err = kiwi(
        *("bench", "openve", "--stage", "judge", "--out", openve_run.folder, "--judge-url", service.url),
        *("--protocol", "kiwi", "--rubrics", script),
    )
    assert code == 0 and service.total == 5, err
    texts = [body["systemInstruction"]["parts"][0]["text"] for body in service.bodies]
    assert all("Make the " in text and "{edit_prompt}" not in text for text in texts)
    line = next(line for line in read_lines(openve_run.folder, "judgements") if line["kind"] == "answer")
    assert line["asked"] == "gemini-2.5-pro" and line["rubric"].startswith("file-")


def test_one_bad_item_never_ends_a_run(kiwi: Kiwi, loads: list[str], tmp_path: Path) -> None:
    folder = miniature.openve(tmp_path / "data")
    (folder / "videos/3_0.mp4").write_bytes(b"not a clip")
    out = tmp_path / "run"
    types = ("--category", "local_remove", "--category", "local_add")
    command = ("bench", "openve", "--stage", "edit", "--data", folder, "--out", out, *FAST, *types)
    code, stdout, err = kiwi(*command, "--json")
    assert code == 1 and "1 item failed" in err
    data = json.loads(stdout)["edited"]
    assert data["done"] == 1 and len(data["failures"]) == 1
    ((name, reason),) = data["failures"].items()
    assert name.startswith("3-0-") and "3_0.mp4" in reason
    assert edit.last_failures(runs.open_run(out)) == {name: reason}
    assert kiwi("bench", "report", out, "-q")[0] == 0
    assert reason.split("'")[0] in (out / "report/report.md").read_text()
    miniature.clip(folder / "videos/3_0.mp4", 21)
    assert kiwi(*command)[0] == 0 and len(results(out)) == 2 and not edit.last_failures(runs.open_run(out))


def test_a_model_that_fails_on_one_item(openve_run: runs.Run) -> None:
    shutil.rmtree(openve_run.folder / "edits")
    failures: list[str] = []

    class Broken(fakes.FakeEditor):
        def edit(self, frames: np.ndarray, instruction: str, *arguments: Any, **options: Any) -> Edited:
            if "local_add" in instruction:
                raise MemoryError("too large")
            return Edited(self.halves(frames, "local_change" in instruction))

        def halves(self, frames: np.ndarray, broken: bool) -> Frames:
            yield frames[:2]
            if broken:
                raise RuntimeError("broke while decoding")
            yield frames[2:]

    class Heard(Told):
        def ended(self, job: Job, record: dict[str, Any]) -> None:
            if record["state"] == "failed":
                failures.append(record["reason"])

    editor = Broken()
    with fakes.commands_use(editor):
        choice = ModelChoice(str(CHECKPOINT))
        summary, troubles = edit.edit_items(openve_run, openve_run.items, choice, Sampling(), told=Heard())
    assert troubles == []
    assert editor.closed == 1
    assert summary.made == 6 and failures == ["RuntimeError: broke while decoding", "MemoryError: too large"]
    assert len(results(openve_run.folder)) == 6 and [path.name for path in openve_run.folder.rglob(".*")] == [STATE]


@pytest.mark.slow
def test_two_processes_share_a_run_and_their_results_are_those_of_one(
    kiwi: Kiwi, loads: list[str], tmp_path: Path, openve_data: Path
) -> None:
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--limit", 2, *FAST[:-2])
    assert kiwi(*command, "--device", "cpu", "--out", tmp_path / "one")[0] == 0
    code, stdout, err = kiwi(*command, "--gpus", "cpu,cpu", "--out", tmp_path / "two", "--json")
    assert code == 0, err
    assert "one process on each of cpu, cpu" in err and json.loads(stdout)["edited"]["made"] == 2
    assert results(tmp_path / "one") == results(tmp_path / "two")
    workers = {line["worker"] for line in Tail(JobStore(tmp_path / "two").journal).new()}
    assert len(workers) == 2


@pytest.mark.parametrize(
    "moment", [pytest.param("loading", marks=pytest.mark.slow), "first", pytest.param("third", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_killed_while_editing(tmp_path: Path, openve_data: Path, moment: str) -> None:
    out = tmp_path / "run"
    command = ("bench", "openve", "--stage", "edit", "--data", openve_data, "--out", out, "--limit", 4, *FAST)
    process = start_process(*command)
    reached: Callable[[], bool] = {
        "loading": lambda: (out / "run.json").exists(),
        "first": lambda: bool(list((out / "edits").rglob("*.mp4"))),  # even if it is still being written
        "third": lambda: len(results(out)) >= 3,
    }[moment]
    deadline = time.monotonic() + 60
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    whole = {key: data for key, data in results(out).items() if not key.startswith(".")}
    for path in (out / "edits").rglob("*.mp4"):
        if not path.name.startswith("."):
            assert len(frames_of(path)) == 5  # what has its name is whole
    done = start_process(*command)
    _, err = done.communicate(timeout=100)
    assert done.returncode == 0, err
    assert f"{len(whole)} of them done already" in err
    after = {key: data for key, data in results(out).items() if not key.startswith(".")}
    assert len(after) == 4 and all(after[key] == data for key, data in whole.items())


def test_an_interruption_says_that_items_are_kept(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    out = tmp_path / "run"
    done: list[int] = []

    def interrupted(frames: np.ndarray) -> np.ndarray:
        if (out / "edits").exists() and list((out / "edits").rglob("*.mp4")):
            raise KeyboardInterrupt
        done.append(len(frames))
        return frames

    with fakes.commands_use(fakes.FakeEditor(interrupted)):
        code, stdout, err = kiwi("bench", "openve", "--stage", "edit", "--data", openve_data, "--out", out, *FAST)
    assert (code, stdout) == (130, "") and done
    assert f"items that are done are kept in '{out}'" in err and "nothing was written" not in err
    assert len(results(out)) == 1


def test_a_models_own_size_and_length_are_its_own_here_too(kiwi: Kiwi, tmp_path: Path, openve_data: Path) -> None:
    model = make_model(tmp_path / "model", working={"pixels": 2048, "frames": 3, "steps": 1})
    out, editor = tmp_path / "run", fakes.FakeEditor()
    options = ("--data", openve_data, "--out", out, "--limit", 1, "--model", model, "--steps", 1, "--device", "cpu")
    with fakes.commands_use(editor):
        code, _, err = kiwi("bench", "openve", "--stage", "edit", *options)
    assert code == 0, err
    shapes = {call["frames"].shape for call in editor.seen}
    assert {shape[0] for shape in shapes} == {3} and all(shape[1] * shape[2] <= 2048 for shape in shapes)
    (path,) = (out / "edits").rglob("*.mp4")
    assert frames_of(path).shape[1] * frames_of(path).shape[2] <= 2048
