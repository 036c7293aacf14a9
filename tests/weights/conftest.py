"""The small checkpoint as a repository on a loopback Hub, and `kiwi` as a process of its own that talks to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import CHECKPOINT
from .forks import Forks
from .hub_server import Hub, folder_contents, serve

REPO = "linyq/kiwi-edit-5b-instruct-reference-diffusers"
BIG = "vae/diffusion_pytorch_model.safetensors"  # 4 MB, the largest file
SMALL = "processor/merges.txt"  # the last, since larger ones come first
CODE = b"raise SystemExit('code of a repository was run')\n"

Kiwi = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    files = folder_contents(CHECKPOINT)
    extra = {"pipeline_kiwi_edit.py": CODE, "mllm_encoder/mllm_encoder.py": CODE, "README.md": b"# card\n"}
    with serve({REPO: {**files, **extra}}) as server:
        yield server


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """For a process that sees this Hub, an empty cache and nothing of the person's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KIWI_", "HUGGING"))}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        kept.pop(name, None)
        kept.pop(name.lower(), None)
    return kept | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    runner = Forks(tmp_path_factory.mktemp("forks"))
    yield runner
    runner.close()


@pytest.fixture
def kiwi(environment: dict[str, str], forks: Forks) -> Kiwi:
    def run(*arguments: str, setup: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        program = f"{setup}\nfrom kiwi_cli.__main__ import main\nimport sys\nsys.exit(main())"
        return forks.run(program, list(arguments), environment | more)

    return run


@pytest.fixture
def repo_folder(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub" / f"models--{REPO.replace('/', '--')}"


def files_below(folder: Path) -> dict[str, bytes]:
    """Path -> contents, of every file."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
