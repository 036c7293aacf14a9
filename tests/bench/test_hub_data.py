"""A data set through the real client, from a Hub on loopback: fetched once, mended when cut short, then offline."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from kiwi_cli.bench.suites.items import BENCHMARKS

from ..weights.hub_server import Handler, Hub, folder_contents
from . import miniature

REPO = BENCHMARKS["openve"].repo


class DatasetHandler(Handler):
    """The same Hub; data sets only have another prefix."""

    def answer(self, method: str) -> None:
        self.path = self.path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/", 1)
        super().answer(method)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    served = Hub({REPO: folder_contents(miniature.openve(tmp_path / "data")) | {"secret.bin": b"not asked for"}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (DatasetHandler,), {"hub": served}))
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield served
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_fetched_once_then_never_asked_again(hub: Hub, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KIWI_", "HUGGING"))}
    environment = kept | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "kiwi_cli", "bench", "openve", "--stage", "data"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    first = run()
    assert first.returncode == 0, first.stderr
    assert f"fetching '{REPO}'" in first.stderr and "licence: cc-by-nc-4.0" in first.stderr
    assert "8 items (background_change 1" in first.stderr
    assert "secret.bin" not in hub.fetched() and len(hub.fetched() - {""}) == 9
    folder = Path(first.stdout.strip())
    before = sum(hub.requests.values())
    assert run().stdout == first.stdout and sum(hub.requests.values()) == before  # whole: not one request

    next(folder.glob("videos/3_0.mp4")).unlink()  # as after a fetch that was cut short
    again = run()
    assert again.returncode == 0, again.stderr
    assert hub.requests["GET", "videos/3_0.mp4"] <= 2 and hub.requests["GET", "videos/4_0.mp4"] == 1

    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert run().returncode == 0
    environment["HF_HOME"] = str(tmp_path / "empty")
    nothing = run()
    assert nothing.returncode == 1 and "error: " in nothing.stderr and "Traceback" not in nothing.stderr
