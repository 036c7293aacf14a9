"""`kiwi download` against a Hub on loopback, with the Hub's own client, each time in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..conftest import CHECKPOINT
from .conftest import BIG, REPO, SMALL, Kiwi, files_below
from .hub_server import COMMIT, Hub


def test_fetch_then_use_it_without_a_request(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    first = kiwi("download")
    assert first.returncode == 0, first.stderr
    snapshot = Path(first.stdout.strip())
    assert snapshot == repo_folder / "snapshots" / COMMIT
    assert files_below(snapshot) == files_below(CHECKPOINT)  # all of it, and neither code nor README
    assert "5." in first.stderr and "MB" in first.stderr  # how large it is was announced
    assert not any(path.endswith(".py") for _, path in hub.requests)

    hub.requests.clear()
    again = kiwi("download")
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert not hub.requests


@pytest.mark.slow
def test_a_job_makes_no_request(hub: Hub, kiwi: Kiwi) -> None:
    assert kiwi("download").returncode == 0
    hub.requests.clear()
    program = (
        "import socket\n"
        "def closed(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = closed\n"
        "from kiwi_cli import KiwiPipeline\nimport numpy as np\n"
        "pipe = KiwiPipeline.from_pretrained('instruct-reference', device='cpu')\n"
        "print(pipe.edit(np.zeros((1, 32, 32, 3), 'uint8'), 'x', steps=1).shape)\n"
        "sys_exit = __import__('sys').exit; sys_exit(0)"
    )
    ran = kiwi(setup=program)
    assert ran.returncode == 0 and "(1, 32, 32, 3)" in ran.stdout, ran.stderr
    assert not hub.requests


def test_cut_in_the_middle_of_a_file_it_goes_on_from_there(hub: Hub, kiwi: Kiwi) -> None:
    hub.failures["GET", BIG] = ["cut"]
    ran = kiwi("download")
    assert ran.returncode == 0, ran.stderr
    assert hub.ranges == [BIG] and hub.requests["GET", BIG] == 2
    assert files_below(Path(ran.stdout.strip())) == files_below(CHECKPOINT)


def test_killed_it_keeps_complete_files_and_sweeps_the_rest(
    hub: Hub, kiwi: Kiwi, environment: dict[str, str], repo_folder: Path
) -> None:
    hub.pace = 0.1  # the 4 MB file takes seconds
    command = [sys.executable, "-m", "kiwi_cli", "download"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    blobs = repo_folder / "blobs"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        whole = [p for p in blobs.glob("*") if p.suffix != ".incomplete"] if blobs.is_dir() else []
        if len(whole) >= 20 and list(blobs.glob("*.incomplete")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(blobs.glob("*.incomplete"))  # it was in the middle of a file
    complete = len(list((repo_folder / "snapshots" / COMMIT).rglob("*.json")))
    assert complete and not (repo_folder / "refs" / "main").exists()

    hub.pace = 0
    hub.requests.clear()
    ran = kiwi("download")
    assert ran.returncode == 0, ran.stderr
    assert BIG in hub.fetched() and len(hub.fetched()) < 10  # the complete ones were not fetched again
    assert files_below(Path(ran.stdout.strip())) == files_below(CHECKPOINT)
    assert not list(blobs.glob("*.incomplete"))


def test_interrupted_by_the_person(hub: Hub, environment: dict[str, str], repo_folder: Path) -> None:
    hub.pace = 0.1
    command = [sys.executable, "-m", "kiwi_cli", "download"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(repo_folder.glob("blobs/*.incomplete")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in stderr
    assert "files that are complete are kept" in stderr and "nothing was written" not in stderr
    assert not list(repo_folder.glob("blobs/*.incomplete"))


def test_a_branch_that_moved_is_fetched_with_update_only(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    assert kiwi("download").returncode == 0
    hub.commit, hub.repos[REPO]["processor/added.txt"] = "beef" * 10, b"x"
    changed = b"#version: 0.3\n"
    hub.repos[REPO][SMALL] = changed
    hub.requests.clear()
    still = kiwi("download")
    assert still.stdout.strip().endswith(COMMIT) and not hub.requests
    assert "fetched today" in still.stderr and "--update" in still.stderr
    new = kiwi("download", "--update")
    assert new.returncode == 0 and new.stdout.strip().endswith(hub.commit), new.stderr
    assert (repo_folder / "snapshots" / hub.commit / SMALL).read_bytes() == changed
    assert hub.fetched() == {SMALL}  # the rest is the same
    assert kiwi("download").stdout == new.stdout


def test_a_cache_on_a_disk_that_cannot_be_written(kiwi: Kiwi, repo_folder: Path) -> None:
    assert kiwi("download").returncode == 0
    read_only = (
        "import errno, os\n"
        "def refuse(*_, **__): raise OSError(errno.EROFS, 'Read-only file system')\n"
        "os.unlink = os.rmdir = os.remove = refuse"
    )
    refused_removal(kiwi("download", "--remove", setup=read_only), repo_folder)


def refused_removal(ran: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert ran.returncode == 1 and "freed" not in ran.stdout and "cannot delete" in ran.stderr
    assert (folder / "snapshots" / COMMIT / BIG).exists()


def test_dry_run_fetches_nothing(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    ran = kiwi("download", "--dry-run", "--json")
    told = json.loads(ran.stdout)
    contents = files_below(CHECKPOINT)
    assert {file["path"] for file in told["files"] if file["fetch"]} == set(contents)
    assert told["bytes"] == sum(map(len, contents.values()))
    assert not hub.fetched() and not repo_folder.exists()
    assert "to fetch: 5." in kiwi("download", "--dry-run").stdout


def test_another_cache_and_revision(hub: Hub, kiwi: Kiwi, tmp_path: Path, repo_folder: Path) -> None:
    ran = kiwi("download", "--cache-dir", str(tmp_path / "other"), "--revision", COMMIT)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_relative_to(tmp_path / "other") and not repo_folder.exists()


def test_options_that_exclude_each_other(kiwi: Kiwi) -> None:
    assert kiwi("download", "--verify", "--remove").returncode == 2
    assert kiwi("download", "--repair").returncode == 2


def test_without_download_it_says_what_to_run(hub: Hub, kiwi: Kiwi) -> None:
    program = (
        "from kiwi_cli.weights.hub import ensure\nfrom kiwi_cli.errors import KiwiError\n"
        "try: ensure('instruct-reference', download=False)\n"
        "except KiwiError as error: print(error.message, '|', error.hint)\nraise SystemExit(0)"
    )
    ran = kiwi(setup=program)
    assert "'instruct-reference' is not on this machine" in ran.stdout
    assert "`kiwi download instruct-reference`" in ran.stdout
    assert not hub.requests
    hub.always["GET", BIG] = 404
    assert kiwi("download").returncode == 1  # now it is there in part
    hub.requests.clear()
    assert "not complete on this machine" in kiwi(setup=program).stdout and not hub.requests
