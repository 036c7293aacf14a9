"""`kiwi train` as a person meets it: from tables of edits to a checkpoint that edits, and interrupted on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from kiwi_cli.data.encode import Encoder
from kiwi_cli.data.latents import Item, write_cache

from ..conftest import CHECKPOINT, ROOT, random_frames
from .terminal import inside

FILE = """
stage = "instruction"
model = "{model}"
out = "{out}"
steps = 4
global_batch = 2
micro_batch = 1
precision = "fp32"
checkpointing = false
ema = 0.5
log_every = 1
[optimiser]
lr = 1e-3
[validate]
every = 2
rows = 2
[[data]]
cache = "{cache}"
"""


@pytest.fixture(scope="module")
def cache(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "pictures"
    rows = [random_frames(1, seed=seed) for seed in range(8)]
    split = ["train"] * 6 + ["held_out"] * 2
    items = [Item(row, 255 - row, "negative", split=side) for row, side in zip(rows, split, strict=True)]  # type: ignore[arg-type]
    write_cache(out, items, Encoder.from_pipeline(loaded))
    return out


@pytest.fixture
def stage(cache: Path, tmp_path: Path) -> Path:
    path = tmp_path / "stage.toml"
    path.write_text(FILE.format(model=CHECKPOINT, out=tmp_path / "run", cache=cache))
    return path


def test_a_stage_from_its_file_to_a_checkpoint(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "train", stage, "--device", "cpu")
    exported = tmp_path / "run/export/folder"
    assert (code, out) == (0, f"{exported}\n"), err
    for words in ("step 0: held-out loss pictures ", "step 4: held-out loss pictures ", "train, loss ", "done in"):
        assert words in err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "curves.png",
        "export",
        "metrics.jsonl",
        "states",
    ]
    picture = tmp_path / "out.png"
    edit = ("edit", ROOT / "examples/reference.png", "negative", "--model", exported, "--size", "64x64", "--steps", 1)
    code, out, err = inside(capsys, *edit, "--device", "cpu", "-o", picture)
    assert code == 0 and picture.exists(), err
    code, out, err = inside(capsys, "train", stage, "--device", "cpu")
    assert code == 2 and "holds a run that is at step 4" in err and "--resume" in err


def test_json_and_another_folder(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "steps=2", "--set", 'export.forms=["raw"]', "--out", tmp_path / "other")
    code, out, err = inside(capsys, "train", stage, *settings, "--device", "cpu", "--json", "--quiet")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert (data["stage"], data["steps"], data["out"]) == ("instruction", 2, str(tmp_path / "other"))
    assert data["exports"] == {"raw": str(tmp_path / "other/export/raw.safetensors")}
    assert data["loss"] > 0 and set(data["held_out"]) == {"pictures"}
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "train", stage, "--dry-run")
    assert (code, err) == (0, "")
    for words in ("data 'pictures'", "6 rows, 2 held out, 1.33 epochs", "transformer", "memory in all", "an estimate"):
        assert words in out
    code, out, _ = inside(capsys, "train", stage, "--dry-run", "--json")
    assert json.loads(out)["rows"] == {"pictures": {"train": 6, "held_out": 2}}
    assert [path.name for path in tmp_path.iterdir()] == ["stage.toml"]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--set", "optimizer.lr=1"], "unknown key 'optimizer'", "did you mean 'optimiser.lr'?"),
        (["--set", "stage=second"], "'stage' is one of alignment, instruction, reference, not 'second'", ""),
        (["--device", "tpu"], "unknown device: 'tpu'", "auto or cpu"),
        (["--set", "global_batch=3", "--set", "micro_batch=2"], "global_batch 3 is no multiple of 2", "multiple of 2"),
        (["--set", "data=[]"], "there is no data to train on", "[[data]]"),
        (["--set", "strategy=fsdp"], "strategy is 'fsdp' and no processes were started", "torchrun"),
        (["--set", 'trackers=["abacus"]'], "the tracker 'abacus' is not installed", ""),
    ],
)
def test_wrong_usage(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str, hint: str
) -> None:
    code, out, err = inside(capsys, "train", stage, *arguments)
    assert (code, out) == (2, "")
    assert message in err and hint in err.split("hint: ")[1]
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inside(capsys, "train", tmp_path / "gone.toml")
    assert (code, out) == (2, "") and "cannot read" in err and "gone.toml" in err


def test_caches_and_models_that_do_not_fit(
    stage: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = inside(capsys, "train", stage, "--set", f"data.0.cache={tmp_path}", "--device", "cpu")
    assert code == 1 and str(tmp_path) in err
    code, _, err = inside(capsys, "train", stage, "--set", f"model={tmp_path}", "--device", "cpu")
    assert code != 0 and str(tmp_path) in err
    index = json.loads((cache / "index.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for path in cache.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    index["settings"]["vision"] = "0" * 32
    (other / "index.json").write_text(json.dumps(index))
    code, _, err = inside(capsys, "train", stage, "--set", f"data.0.cache={other}", "--device", "cpu")
    assert code == 1 and "another model's vision tower" in err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_saves_the_state(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "run/metrics.jsonl"

    def hang_up() -> None:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGHUP)

    thread = threading.Thread(target=hang_up, daemon=True)
    thread.start()
    code, out, err = inside(
        capsys, "train", stage, "--set", "steps=4000", "--set", "validate.every=0", "--device", "cpu"
    )
    thread.join()
    assert (code, out) == (130, "") and "the state is saved in" in err
    assert (tmp_path / "run/states/latest").is_file()


def test_a_finished_run_goes_on_with_more_steps(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = ("--set", "validate.every=0", "--set", 'export.forms=["folder", "raw"]', "--device", "cpu", "--quiet")
    export = tmp_path / "run/export/folder"
    assert inside(capsys, "train", stage, "--set", "steps=1", *quiet)[0] == 0
    first = (export / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
    code, out, err = inside(capsys, "train", stage, "--set", "steps=3", *quiet, "--resume")
    assert code == 0 and out.splitlines()[0] == str(export), err
    assert (export / "transformer/diffusion_pytorch_model.safetensors").read_bytes() != first
    assert sorted(path.name for path in export.parent.iterdir()) == ["folder", "raw.safetensors"]


def test_one_run_at_a_time_in_a_folder(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom kiwi_cli.base import lock\n"
        "with lock.held(Path(sys.argv[1]), 'training'):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    arguments = ("train", stage, "--set", "steps=1", "--set", "validate.every=0", "--device", "cpu", "--quiet")
    code, out, err = inside(capsys, *arguments)
    assert (code, out) == (2, "")
    assert f"another run is training in '{tmp_path / 'run'}' (process {other.pid} on {socket.gethostname()})" in err
    other.kill()  # a run that dies lets go
    other.communicate()
    code, _, err = inside(capsys, *arguments)
    assert code == 0, err
    assert ".kiwi-run" not in [path.name for path in (tmp_path / "run").iterdir()]


def test_a_file_that_begins_with_a_mark(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.write_bytes(b"\xef\xbb\xbf" + stage.read_bytes())
    code, out, err = inside(capsys, "train", stage, "--dry-run")
    assert code == 0 and "6 rows" in out, err


@pytest.mark.slow
def test_an_interruption_saves_and_resuming_gives_the_same_numbers(stage: Path, tmp_path: Path) -> None:
    def command(out: Path, *arguments: str) -> list[str]:
        steps = ("--set", "steps=400", "--set", "validate.every=0", "--set", "save.every=1000")
        return [sys.executable, "-m", "kiwi_cli", "train", str(stage), *steps, "--out", str(out), *arguments]

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    out = tmp_path / "cut"
    process = subprocess.Popen(
        command(out), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = out / "metrics.jsonl"
    end = time.monotonic() + 150
    while time.monotonic() < end and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=100)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert "finishing this step" in stderr and "the state is saved in" in stderr and "--resume" in stderr
    step = int((out / "states/latest").read_text().removeprefix("step-"))
    assert 3 <= step < 400 and not (out / "export").exists()
    last = f"steps={step + 3}"
    for folder, resume in ((out, ["--resume"]), (tmp_path / "whole", [])):
        done = subprocess.run(
            [*command(folder, *resume), "--set", last],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for name in ("weights", "optimiser", "ema"):
        one, two = (load_file(f / f"states/step-{step + 3:08d}/{name}.safetensors") for f in (out, tmp_path / "whole"))
        assert one.keys() == two.keys() and all(bool((one[key] == two[key]).all()) for key in one), name
