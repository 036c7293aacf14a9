"""Runs that are edited already, a judge on loopback, and `kiwi bench` inside and outside this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kiwi_cli.bench import run as runs
from kiwi_cli.bench.edit import Profile
from kiwi_cli.bench.suites import data
from kiwi_cli.bench.suites.items import BENCHMARKS
from kiwi_cli.cli.console import Console

from .. import fakes
from ..conftest import CHECKPOINT
from . import miniature
from .judge_server import KEY, Service, serve

FAST = ("--model", str(CHECKPOINT), "--steps", "1", "--size", "64x64", "--frames", "5", "--device", "cpu")


@pytest.fixture
def service() -> Iterator[Service]:
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "OPENAI_API_KEY", "KIWI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of processes started here: tiny models only wait for each other
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("KIWI_JUDGE_KEY", KEY)
    monkeypatch.setattr("kiwi_cli.bench.judges.gemini.FIRST_POLL", 0.005)


@pytest.fixture(scope="session")
def openve_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.openve(tmp_path_factory.mktemp("openve"))


@pytest.fixture(scope="session")
def refvie_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.refvie(tmp_path_factory.mktemp("refvie"))


@pytest.fixture(scope="session")
def imgedit_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.imgedit(tmp_path_factory.mktemp("imgedit"))


def edited_run(folder: Path, benchmark: str, source: Path, model: str = "mine", skip: tuple[str, ...] = ()) -> runs.Run:
    """A run whose edits were made without a model: each is its own source with another name."""
    dataset = data.read(BENCHMARKS[benchmark], source, "folder")
    identity = runs.describe(benchmark, dataset.describe(), {"name": model, "fingerprint": model}, Profile().describe())
    run = runs.start(folder, identity, dataset.items, dataset.root)
    for item in run.items:
        if item.category not in skip:
            target = run.edited(item)
            target.parent.mkdir(parents=True, exist_ok=True)
            # An empty box at the end leaves the file playable and makes every edit another file.
            words = f"{model} {item.id}".encode()
            target.write_bytes(run.source(item).read_bytes() + (len(words) + 8).to_bytes(4, "big") + b"free" + words)
    return run


@pytest.fixture
def openve_run(tmp_path: Path, openve_data: Path) -> runs.Run:
    return edited_run(tmp_path / "run", "openve", openve_data)


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def loads(loaded: Any) -> Iterator[list[str]]:
    """The small checkpoint, loaded once for the session; what the stages ask to load."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fakes.loads(loaded) as asked:
        yield asked
    torch.set_num_threads(threads)


Kiwi = Callable[..., tuple[int, str, str]]


@pytest.fixture
def kiwi(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Kiwi:
    """The command line without a new process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "160")  # tables as wide as their text, wherever the tests run

    def run(*arguments: Any) -> tuple[int, str, str]:
        from kiwi_cli.cli import run

        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def start_process(*arguments: Any) -> subprocess.Popen[str]:
    """The command line as a process that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "kiwi_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
