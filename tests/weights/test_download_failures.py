"""A Hub, a network, a token or a disk that fails: tried again where that helps, else told with what does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ..conftest import CHECKPOINT
from .conftest import BIG, REPO, SMALL, Kiwi, files_below
from .hub_server import Hub

NOW = {"Retry-After": "0"}
IMPATIENT = "import kiwi_cli.weights.fetch as f\nf.STALL_TIMEOUT = 2"


@pytest.mark.parametrize(
    ("failures", "words"),
    [
        ({("GET", "info"): [(429, NOW)]}, ""),
        ({("GET", "info"): [(503, NOW), (500, NOW)]}, ""),
        ({("GET", BIG): [(503, NOW), (502, NOW)]}, ""),
        ({("HEAD", BIG): [(503, NOW)]}, ""),
        ({("GET", BIG): ["flip"]}, ""),
    ],
    ids=["429", "5xx in the listing", "5xx in a file", "5xx for a file's size", "a byte flipped on the way"],
)
def test_passing_failures_are_tried_again(hub: Hub, kiwi: Kiwi, failures: dict, words: str) -> None:
    hub.failures = failures
    ran = kiwi("download")
    assert ran.returncode == 0, ran.stderr
    assert not any(failures.values())  # all of them happened
    assert files_below(Path(ran.stdout.strip())) == files_below(CHECKPOINT)


@pytest.mark.parametrize(
    ("where", "what", "message", "hint"),
    [
        (("GET", "info"), 401, "no repository", "hf auth login"),
        (
            ("GET", "info"),
            (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            "token",
            "hf auth",
        ),
        (("GET", "info"), 403, "refuses access", "hf auth login"),
        (("GET", "info"), (403, {"X-Error-Code": "GatedRepo"}), "gated", "accept them at https://huggingface.co/linyq"),
        (("HEAD", BIG), (403, {"X-Error-Code": "GatedRepo"}), "gated", "accept them"),
        (("GET", "info"), (404, {"X-Error-Code": "RepoNotFound"}), f"no repository '{REPO}'", "check the name"),
        (("HEAD", BIG), (404, {"X-Error-Code": "EntryNotFound"}), "changed meanwhile", "same command again"),
        (("GET", "info"), (429, NOW), "fewer requests", "wait"),
        (("GET", SMALL), (500, NOW), "status 500", "same command again"),
        (("GET", BIG), "flip", "came damaged twice", "changed on the server"),
        (("GET", "info"), "hang", "does not answer", "check the network"),
        (("GET", BIG), "hang", "stopped answering", "check the network"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, int | tuple | str) else "",
)
def test_lasting_failures_are_told(
    where: tuple[str, str], what: object, message: str, hint: str, hub: Hub, kiwi: Kiwi, repo_folder: Path
) -> None:
    hub.always[where] = what
    began = time.monotonic()
    ran = kiwi("download", setup=IMPATIENT)
    assert ran.returncode == 1 and not ran.stdout
    error, _, told = ran.stderr.partition("\n\nhint: ")
    assert message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")
    assert hint in told and "Traceback" not in ran.stderr
    assert time.monotonic() - began < 15
    assert not (repo_folder / "refs" / "main").exists()
    assert what == "hang" or not list(repo_folder.glob("blobs/*.incomplete"))

    if what != (500, NOW):
        return
    # Nothing complete was lost: once it works again, only the rest is fetched.
    kept = {p.name for p in repo_folder.glob("blobs/*")}
    assert len(kept) > 5
    hub.always.clear()
    hub.requests.clear()
    assert kiwi("download").returncode == 0
    assert kept <= {p.name for p in repo_folder.glob("blobs/*")}
    assert len(hub.fetched()) <= len(files_below(CHECKPOINT)) - len(kept)


NO_HOME = (
    "import os, pwd\n"
    "def nobody(*_): raise KeyError('getpwuid(): uid not found')\n"
    "pwd.getpwuid = nobody\n"
    "for name in ('HOME', 'HF_HOME', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\n"
)


def test_without_a_home_folder_no_folder_named_tilde_is_made(kiwi: Kiwi, tmp_path: Path) -> None:
    ran = kiwi("download", setup=f"{NO_HOME}os.chdir({str(tmp_path)!r})")
    assert ran.returncode == 1 and "HOME is not set" in ran.stderr and "HF_HOME" in ran.stderr
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("variables", "setup", "message", "hint"),
    [
        ({"HF_ENDPOINT": "mirror.example/hub"}, "", "HF_ENDPOINT is 'mirror.example/hub'", "https://"),
        ({"HTTP_PROXY": "socks5://127.0.0.1:9", "NO_PROXY": ""}, "SOCKS", "proxy cannot be used", "HTTP proxy"),
        ({"HF_HOME": "FILE"}, "", "a file is in the way", "HF_HOME"),
        ({"TRANSFORMERS_OFFLINE": "1"}, "", "TRANSFORMERS_OFFLINE is set", "unset TRANSFORMERS_OFFLINE"),
        ({}, "LOCKS", "no file locks", "local disk"),
        ({}, "FAT32", "no file of that size", "HF_HOME"),
    ],
    ids=["no scheme", "a SOCKS proxy", "a file as HF_HOME", "offline by another name", "no locks", "FAT32"],
)
def test_what_no_second_try_mends(
    variables: dict[str, str], setup: str, message: str, hint: str, kiwi: Kiwi, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    said = {name: str(file) if value == "FILE" else value for name, value in variables.items()}
    raised = "def refuse(*_, **__): raise OSError(errno.{0}, '{0}')\n"
    program = {
        "LOCKS": f"import errno, fcntl\n{raised.format('ENOLCK')}fcntl.flock = refuse",
        "FAT32": f"import errno, huggingface_hub.file_download as f\n{raised.format('EFBIG')}f.http_get = refuse",
        "SOCKS": "import sys\nsys.modules['socksio'] = None",
    }.get(setup, "")
    ran = kiwi("download", setup=program, **said)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    error, _, told = ran.stderr.partition("\n\nhint: ")
    assert message in error and hint in told and "same command again" not in told


def test_a_captive_portal(hub: Hub, kiwi: Kiwi) -> None:
    hub.always["GET", "info"] = "page"
    ran = kiwi("download")
    assert ran.returncode == 1 and "is not the Hub" in ran.stderr and "browser" in ran.stderr


def test_an_expired_token_is_not_called_a_missing_repository(hub: Hub, kiwi: Kiwi) -> None:
    hub.always["GET", "info"] = (401, {"X-Error-Message": 'User Access Token "old" is expired'})
    ran = kiwi("download", HF_TOKEN="hf_old")
    assert ran.returncode == 1 and "does not accept the token" in ran.stderr and "is expired" in ran.stderr
    hub.always["GET", "info"] = 401
    assert "does not accept the token" in kiwi("download", HF_TOKEN="hf_old").stderr
    assert "no repository" in kiwi("download").stderr


def test_a_token_is_presented(hub: Hub, kiwi: Kiwi) -> None:
    hub.token = "hf_secret"
    refused = kiwi("download")
    assert refused.returncode == 1 and "does not accept the token" in refused.stderr
    assert kiwi("download", HF_TOKEN="hf_secret").returncode == 0
    assert kiwi("download", "--remove").returncode == 0
    assert kiwi("download", "--token", "hf_secret").returncode == 0


def test_names_and_revisions_that_are_not_there(hub: Hub, kiwi: Kiwi) -> None:
    wrong = kiwi("download", "instruct-refrence")
    assert wrong.returncode == 2 and "did you mean 'instruct-reference'?" in wrong.stderr
    near = kiwi("download", REPO.removesuffix("-diffusers"))
    assert near.returncode == 2 and f"did you mean '{REPO}'?" in near.stderr
    revision = kiwi("download", "--revision", "v9")
    assert revision.returncode == 2 and "no revision 'v9'" in revision.stderr and "--revision" in revision.stderr
    assert not hub.fetched()


def test_no_network(kiwi: Kiwi) -> None:
    ran = kiwi("download", HF_ENDPOINT="http://127.0.0.1:9")
    assert ran.returncode == 1 and "cannot reach the Hub" in ran.stderr and "check the network" in ran.stderr
    proxy = kiwi("download", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="")
    assert proxy.returncode == 1 and "cannot reach the Hub" in proxy.stderr


def test_offline(hub: Hub, kiwi: Kiwi) -> None:
    ran = kiwi("download", HF_HUB_OFFLINE="1")
    assert ran.returncode == 1 and "HF_HUB_OFFLINE" in ran.stderr and "kiwi download" in ran.stderr
    assert not hub.requests
    assert kiwi("download").returncode == 0
    hub.requests.clear()
    assert kiwi("download", HF_HUB_OFFLINE="1").returncode == 0
    assert kiwi("download", "--verify", HF_HUB_OFFLINE="1").returncode == 0
    assert not hub.requests


def test_a_certificate_nobody_trusts() -> None:
    import ssl

    from kiwi_cli.weights.hub_errors import explain, http_library

    http = http_library()
    error = http.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate in certificate chain")
    told = explain(error, REPO)
    assert "cannot be trusted" in told.message and "SSL_CERT_FILE" in told.hint
    told = explain(http.ProxyError("407 Proxy Authentication Required"), REPO)
    assert "407" in told.message and "HTTPS_PROXY" in told.hint


FULL = "import shutil\nshutil.disk_usage = lambda _: type('U', (), {'free': 1000, 'total': 1, 'used': 1})()"

FULL_MIDWAY = (
    "import errno, huggingface_hub.file_download as f\n"
    "get = f.http_get\n"
    "def full(url, file, **kw):\n"
    "    if 'merges' in url: raise OSError(errno.ENOSPC, 'No space left on device')\n"
    "    return get(url, file, **kw)\n"
    "f.http_get = full"
)


def test_a_full_disk_is_found_before_the_first_byte(hub: Hub, kiwi: Kiwi) -> None:
    ran = kiwi("download", setup=FULL)
    assert ran.returncode == 1 and "not enough room" in ran.stderr and "1.0 kB free" in ran.stderr
    assert not hub.fetched()


def test_a_disk_that_fills_up_midway(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    ran = kiwi("download", setup=FULL_MIDWAY)
    assert ran.returncode == 1 and "the disk is full" in ran.stderr and "HF_HOME" in ran.stderr
    assert not list(repo_folder.glob("blobs/*.incomplete")) and list(repo_folder.glob("blobs/*"))
    assert kiwi("download").returncode == 0


def test_a_repository_that_is_no_model_of_ours(hub: Hub, kiwi: Kiwi) -> None:
    hub.repos["someone/pickles"] = {"model.pth": b"x" * 100}
    hub.repos["someone/half"] = {"model_index.json": b"{}"}
    pickles = kiwi("download", "someone/pickles")
    assert pickles.returncode == 1 and "pickle" in pickles.stderr
    half = kiwi("download", "someone/half")
    assert half.returncode == 1 and "has no transformer/config.json" in half.stderr
    assert not hub.fetched()


def test_a_dry_run_without_the_hub_says_what_is_known(kiwi: Kiwi) -> None:
    ran = kiwi("download", "--dry-run", HF_HUB_OFFLINE="1")
    assert ran.returncode == 1 and "has about 19.0 GB" in ran.stderr and "HF_HUB_OFFLINE" in ran.stderr
