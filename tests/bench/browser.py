"""Headless Chromium over its own debugging pipe: no driver, no library. Skips where there is no browser."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 30.0  # seconds for any one answer


def find() -> str:
    """The browser's path; the test is skipped without one."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: install one of {', '.join(NAMES)}")
    return found


class Page:
    """One open page. Commands are JSON between zero bytes, on file descriptors 3 and 4 of the browser."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._number = write, read, b"", 0
        self.session: str | None = None
        self.requests: list[str] = []
        self.errors: list[str] = []

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(answer["params"]))

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            data = os.read(self._read, 1 << 16)
            assert data, "the browser is gone"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def open(self, path: Path) -> None:
        self.command("Page.navigate", url=path.resolve().as_uri())
        for _ in range(200):
            if self.run("document.readyState") == "complete":
                return
            time.sleep(0.05)
        raise AssertionError("the page does not load")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        result = self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> bytes:
        data = base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"])
        path.write_bytes(data)
        return data


@contextmanager
def browse(width: int = 1280, height: int = 1600) -> Iterator[Page]:
    """A page in a fresh profile, with the network off."""
    binary = find()
    to_browser, our_write = os.pipe()
    our_read, from_browser = os.pipe()
    # The browser's ends have to be 3 and 4; these may be in use here, so they are moved in the new process.
    move = "import fcntl, os, sys; a, b = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3])"
    start = f"{move}; os.dup2(a, 3); os.dup2(b, 4); os.execv(sys.argv[3], sys.argv[3:])"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # its children may still be writing
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", start, str(to_browser), str(from_browser)),
                *(binary, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}", f"--window-size={width},{height}"),
                *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
                *("--disable-sync", "--mute-audio", "--hide-scrollbars", "about:blank"),
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        page = Page(our_write, our_read)
        try:
            targets = page.command("Target.getTargets")["targetInfos"]
            target = next(entry["targetId"] for entry in targets if entry["type"] == "page")
            page.session = page.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                page.command(f"{domain}.enable")
            page.command(
                "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
            )
            yield page
        finally:
            process.kill()
            process.wait(10)
            os.close(our_write)
            os.close(our_read)
