"""`kiwi download` against a Hub on loopback, with the Hub's own client, each time in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..conftest import CHECKPOINT
from .conftest import REPO, Kiwi, files_below
from .hub_server import COMMIT, Hub

BIG = "vae/diffusion_pytorch_model.safetensors"  # 4 MB, the largest file
SMALL = "processor/merges.txt"  # the last, since larger ones come first
NOW = {"Retry-After": "0"}
IMPATIENT = "import kiwi_cli.weights.fetch as f\nf.STALL_TIMEOUT = 2"


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


@pytest.mark.parametrize("flipped", [False, True], ids=["", "a byte changed on the way"])
def test_a_mirror_without_hashes_in_its_listing(flipped: bool, hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    """The cache's own names of the blobs are hashes: a file is checked by its own when it came, and again later."""
    hub.hashes = "etag"
    if flipped:
        hub.always["GET", BIG] = "flip"
        ran = kiwi("download")
        assert ran.returncode == 1 and "came damaged twice" in ran.stderr
        return
    assert kiwi("download").returncode == 0
    assert "all good" in kiwi("download", "--verify").stdout
    blob = (repo_folder / "snapshots" / COMMIT / BIG).resolve()
    data = bytearray(blob.read_bytes())
    data[1_000_000] ^= 1
    blob.write_bytes(data)
    found = kiwi("download", "--verify")
    assert (
        found.returncode == 1 and f"1 of {len(files_below(CHECKPOINT))} files" in found.stderr and BIG in found.stderr
    )


def test_files_that_nothing_says_a_hash_of_are_counted_and_named(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    hub.hashes = "none"
    ran = kiwi("download")
    count = len(files_below(CHECKPOINT))
    assert ran.returncode == 0 and f"{count} of {count} files could not be checked" in ran.stderr
    none = kiwi("download", "--verify")
    assert none.returncode == 1 and f"none of the {count} files" in none.stderr and not none.stdout
    hub.hashes = "all"
    assert kiwi("download", "--update").returncode == 0  # asks for the hashes, and fetches nothing again
    assert "all good" in kiwi("download", "--verify").stdout
    record = repo_folder / "kiwi" / f"{COMMIT}.json"
    record.write_text(json.dumps({"format": 1, "files": json.loads(record.read_text())["files"][1:]}))
    some = kiwi("download", "--verify", "--json")
    told = json.loads(some.stdout)
    assert told["checked"] == count - 1 and len(told["unchecked"]) == 1
    assert f"'{told['unchecked'][0]}' cannot be checked" in some.stderr and "all good" not in some.stdout


def test_the_embedded_models_contents_are_not_called_good(kiwi: Kiwi) -> None:
    told = kiwi("download", "tiny", "--verify")
    assert told.returncode == 0 and "could not be checked" in told.stdout and "good" not in told.stdout


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


def test_dry_run_fetches_nothing(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    ran = kiwi("download", "--dry-run", "--json")
    told = json.loads(ran.stdout)
    contents = files_below(CHECKPOINT)
    assert {file["path"] for file in told["files"] if file["fetch"]} == set(contents)
    assert told["bytes"] == sum(map(len, contents.values()))
    assert not hub.fetched() and not repo_folder.exists()
    assert "to fetch: 5." in kiwi("download", "--dry-run").stdout


def test_verify_finds_every_bad_file_and_repair_fetches_just_those(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    assert kiwi("download").returncode == 0
    assert "all good" in kiwi("download", "--verify").stdout
    snapshot = repo_folder / "snapshots" / COMMIT
    flipped, short, gone = snapshot / BIG, snapshot / "processor/tokenizer.json", snapshot / "model_index.json"
    data = bytearray(flipped.read_bytes())
    data[2_000_000] ^= 4
    flipped.resolve().write_bytes(data)
    os.truncate(short.resolve(), 100)
    gone.resolve().unlink()

    hub.requests.clear()
    found = kiwi("download", "--verify")
    assert found.returncode == 1 and not hub.requests
    for name in (BIG, "processor/tokenizer.json", "model_index.json"):
        assert f"'{name}'" in found.stderr
    assert "3 of" in found.stderr and "--repair" in found.stderr

    repaired = kiwi("download", "--verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    assert hub.fetched() == {BIG, "processor/tokenizer.json", "model_index.json"}
    assert files_below(snapshot) == files_below(CHECKPOINT)
    assert "all good" in kiwi("download", "--verify").stdout


def test_verify_what_another_program_fetched(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    other = f"from huggingface_hub import snapshot_download\nsnapshot_download({REPO!r})\nraise SystemExit"
    assert kiwi(setup=other).returncode == 0
    hub.requests.clear()
    assert "all good" in kiwi("download", "--verify").stdout
    blob = (repo_folder / "snapshots" / COMMIT / "transformer/config.json").resolve()
    blob.write_bytes(blob.read_bytes().replace(b"48", b"49"))
    assert "transformer/config.json" in kiwi("download", "--verify").stderr
    assert not hub.requests
    assert kiwi("download", "--verify", "--repair").returncode == 0
    assert hub.fetched() == {"transformer/config.json"}


def test_list_and_remove(hub: Hub, kiwi: Kiwi, repo_folder: Path) -> None:
    before = kiwi("download", "--list", setup="import sys\nsys.modules['torch'] = None")
    assert before.returncode == 0 and "instruct-reference" in before.stdout and "stage3-720p" in before.stdout
    assert "3.11" in before.stdout and not hub.requests
    assert kiwi("download").returncode == 0
    rows = {row["name"]: row for row in json.loads(kiwi("download", "--list", "--json").stdout)["models"]}
    assert rows["instruct-reference"]["cached"] == "yes" and rows["reference-only"]["cached"] == "no"
    assert rows["instruct-reference"]["cached_bytes"] > 5_000_000
    verbose = kiwi("download", "--list", "-v").stdout
    assert "Apache-2.0" in verbose and "Gemini-2.5-Pro" in verbose and "mean of 5 categories" in verbose
    assert "freed 5." in kiwi("download", "--remove").stdout and not repo_folder.exists()
    nothing = kiwi("download", "--remove")
    assert nothing.returncode == 1 and "nothing of" in nothing.stderr


def test_another_cache_and_revision(hub: Hub, kiwi: Kiwi, tmp_path: Path, repo_folder: Path) -> None:
    ran = kiwi("download", "--cache-dir", str(tmp_path / "other"), "--revision", COMMIT)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()).is_relative_to(tmp_path / "other") and not repo_folder.exists()


def test_options_that_exclude_each_other(kiwi: Kiwi) -> None:
    assert kiwi("download", "--verify", "--remove").returncode == 2
    assert kiwi("download", "--repair").returncode == 2


def test_a_repository_that_is_no_model_of_ours(hub: Hub, kiwi: Kiwi) -> None:
    hub.repos["someone/pickles"] = {"model.pth": b"x" * 100}
    hub.repos["someone/half"] = {"model_index.json": b"{}"}
    pickles = kiwi("download", "someone/pickles")
    assert pickles.returncode == 1 and "pickle" in pickles.stderr
    half = kiwi("download", "someone/half")
    assert half.returncode == 1 and "has no transformer/config.json" in half.stderr
    assert not hub.fetched()


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


def test_names_complete_in_the_shell() -> None:
    from kiwi_cli.weights.catalog import VARIANTS, complete_names

    assert [name for name, _ in complete_names("stage3")] == ["stage3-720p", "stage3-reference"]
    assert len({v.name for v in VARIANTS} | {v.repo for v in VARIANTS if v.repo}) == 8 + 9
    assert all((v.kind == "embedded") == (not v.repo) for v in VARIANTS)
    for variant in VARIANTS:
        for score in variant.scores:
            mean = sum(value for _, value in score.columns) / len(score.columns)
            if score.average.startswith("mean of"):
                assert abs(mean - score.overall) < 0.011, (variant.name, score)


def test_the_documentation_names_every_model_and_score() -> None:
    from kiwi_cli.weights.catalog import VARIANTS

    text = (CHECKPOINT.parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
    for variant in VARIANTS:
        scored, placed = [line for line in text.splitlines() if line.startswith(f"| `{variant.name}`")]
        assert all(f"{score.overall:.2f}" in scored for score in variant.scores)
        assert (f"`{variant.repo}`" if variant.repo else "part of the package") in placed
        assert all((kind in scored) == (variant.kind == kind) for kind in ("raw", "embedded"))


def test_the_list_fits_a_terminal_of_80_columns(hub: Hub, kiwi: Kiwi) -> None:
    lines = kiwi("download", "--list", COLUMNS="80").stdout.splitlines()
    assert len(lines) == 10 and max(map(len, lines)) <= 80
    assert "snow" not in lines[-1] and "snow" in kiwi("download", "--list", "-v").stdout


def test_a_dry_run_without_the_hub_says_what_is_known(kiwi: Kiwi) -> None:
    ran = kiwi("download", "--dry-run", HF_HUB_OFFLINE="1")
    assert ran.returncode == 1 and "has about 19.0 GB" in ran.stderr and "HF_HUB_OFFLINE" in ran.stderr
