"""Starts `kiwi` processes quickly: a parent that has imported everything but the Hub's client, and forks.

The client reads its environment when it is imported, so every run needs a process of its own; what it imports
besides is the same for all, and most of the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PRELOADED = ("typer", "rich.progress", "tqdm.auto", "yaml", "filelock", "packaging.version", "kiwi_cli.cli")
HTTP = ("httpx2", "httpx")


def serve() -> None:
    """The parent: one JSON request a line, one exit code a line."""
    import importlib
    import importlib.util

    for name in PRELOADED:
        importlib.import_module(name)
    for name in HTTP:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    assert "huggingface_hub" not in sys.modules and "torch" not in sys.modules
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(request: dict[str, Any]) -> None:
    code = 1
    try:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["kiwi", *request["arguments"]]
        exec(request["program"], {"__name__": "__main__"})  # noqa: S102 (our own test programs)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Forks:
    """The other end: runs programs, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-m", f"{__package__}.forks"]
        root = Path(__file__).resolve().parents[2]
        self.parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def run(self, program: str, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run to the end; the test's own timeout bounds it."""
        assert self.parent.stdin and self.parent.stdout
        out, err = self.folder / "stdout", self.folder / "stderr"
        request = {
            "program": program,
            "arguments": arguments,
            "environment": environment,
            "stdout": str(out),
            "stderr": str(err),
        }
        self.parent.stdin.write(json.dumps(request) + "\n")
        self.parent.stdin.flush()
        code = int(self.parent.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())

    def close(self) -> None:
        assert self.parent.stdin
        self.parent.stdin.close()
        self.parent.wait(10)


if __name__ == "__main__":
    serve()
