"""From the Hub to the cache: list a repository, choose what is needed, fetch it.

The free disk is compared with what is missing before the first byte. Several files come at once, through the Hub's
own client (and Xet, where it is installed); each is checked against the Hub's hash when it is complete. Whatever
ends a download, complete files stay, and only the rest is fetched the next time.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi_cli.base.events import SILENT, Events, Transfer
from kiwi_cli.base.text import count, format_bytes
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights.cache import CachedRepo, HubFile, default_root, free_bytes
from kiwi_cli.weights.hub_errors import AGAIN, explain, offline, offline_variable, retrying
from kiwi_cli.weights.layout import PICKLE_HINT, PICKLES, RELEASED, Layout, choose_raw

WORKERS = 4  # files at once
REQUEST_TIMEOUT = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", 10))  # seconds for an answer
STALL_TIMEOUT = 12 * float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", 10))  # seconds without a sign of life
PIECE = 2**20  # bytes the client hands on at a time
LAST_PIECES = 8.0  # seconds, of all files together, for the pieces that are on their way when a download ends
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"  # as PEFT names them


@dataclass(frozen=True)
class Access:
    """How to reach the Hub and where to keep what comes from it.

    Attributes:
        root: the cache; None is the Hub's own.
        token: None takes the Hub's own (HF_TOKEN, `hf auth login`).
        download: False makes anything missing an error.
        events: told of what is announced, and of progress.
    """

    root: Path = field(default_factory=default_root)
    token: str | None = None
    download: bool = True
    events: Events = SILENT

    def cached(self, repo: str) -> CachedRepo:
        """A repository's place in the cache."""
        return CachedRepo(self.root, repo)


@dataclass(frozen=True)
class FetchPlan:
    """What fetching a repository means.

    Attributes:
        commit: what the revision is now.
        files: all that is needed; `missing`: those that are not here yet.
    """

    cached: CachedRepo
    revision: str
    commit: str
    files: tuple[HubFile, ...]

    @property
    def missing(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if not self.cached.has(self.commit, file))

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What has to be transferred."""
        return sum(file.size for file in self.missing)


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    commit: str
    files: dict[str, HubFile]


def list_repo(repo: str, revision: str, access: Access) -> Listing:
    """Ask the Hub what a repository holds: one request.

    Raises:
        CheckpointError: the Hub cannot be reached, the repository or the revision is not there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    if (variable := offline_variable()) is not None:
        raise CheckpointError(*offline(repo, variable))
    api = HfApi(library_name="kiwi-cli", token=access.token)
    try:
        info = retrying(lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=REQUEST_TIMEOUT))
    except HFValidationError as error:
        raise UsageError(f"not a Hub id: '{repo}'", "it has the form owner/name") from error
    except Exception as error:  # whatever the client and its HTTP library raise
        raise explain(error, repo, revision) from error
    return Listing(str(info.sha), {sibling.rfilename: _hub_file(sibling) for sibling in info.siblings or ()})


def plan(repo: str, revision: str, access: Access, layout: Layout | None = None) -> FetchPlan:
    """List a repository and choose what is needed of it.

    Args:
        layout: None takes whichever it is: the released layout, or a raw checkpoint.

    Raises:
        CheckpointError: as `list_repo`; or the repository lacks files of the layout.
    """
    listed = list_repo(repo, revision, access)
    if layout is None:
        layout = RELEASED if "model_index.json" in listed.files else None
    if layout is None:
        layout = Layout(required=(choose_raw(listed.files, repo),), optional=(), weights=())
    names, lacking = layout.choose(listed.files)
    if lacking:
        pickle = next((name for name in listed.files if name.endswith(PICKLES)), None)
        hint = PICKLE_HINT if pickle else "it is not a checkpoint of this kind; check the name"
        raise CheckpointError(f"'{repo}' has no {lacking[0]}", hint)
    return FetchPlan(access.cached(repo), revision, listed.commit, tuple(listed.files[name] for name in names))


def _hub_file(sibling: Any) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    return HubFile(sibling.rfilename, int(sibling.size or 0), sha256, sibling.blob_id)


def check_room(needed: int, folder: Path, what: str) -> None:
    """That a disk has room, before the first byte.

    Raises:
        CheckpointError: it has not.
    """
    free = free_bytes(folder)
    if needed > free:
        raise CheckpointError(
            f"not enough room for {what} in '{folder}': needs {format_bytes(needed)}, {format_bytes(free)} free",
            "free some space, or set HF_HOME to a folder on another disk",
        )


def fetch(chosen: FetchPlan, access: Access) -> Path:
    """Fetch what is missing of a plan, several files at once, each checked when it is complete.

    Returns:
        The snapshot. It becomes what the revision means only when it is whole.

    Raises:
        CheckpointError: in words for the person; what is complete stays.
    """
    cached, missing = chosen.cached, chosen.missing
    cached.sweep()
    check_room(chosen.missing_bytes, cached.root, f"'{cached.repo}'")
    if missing:
        size = format_bytes(chosen.missing_bytes)
        access.events.note(f"fetching '{cached.repo}': {size} in {count(len(missing), 'file')}, to '{cached.root}'")
    try:
        cached.write_record(chosen.commit, chosen.files)
        with access.events.transfer(cached.repo.partition("/")[2], chosen.missing_bytes) as counter:
            absent = [f for f in chosen.files if not (cached.snapshot(chosen.commit) / f.path).exists()]
            _fetch_files(chosen, absent, access.token, counter)
        cached.set_commit(chosen.revision, chosen.commit)
        if loose := [f.path for f in absent if cached.with_hash(chosen.commit, f).blob is None]:
            access.events.warn(
                f"{len(loose)} of {len(absent)} files could not be checked: the server gives no "
                f"hashes of them, such as of '{loose[0]}'"
            )
    except CheckpointError:
        raise
    except Exception as error:
        raise explain(error, cached.repo, chosen.revision, str(cached.root)) from error
    return cached.snapshot(chosen.commit)


class _Stopped(Exception):
    """Another file failed, or the person interrupted: this one ends at its next piece."""


def _fetch_files(chosen: FetchPlan, files: Sequence[HubFile], token: str | None, counter: Transfer) -> None:
    work: queue.SimpleQueue[HubFile] = queue.SimpleQueue()
    results: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    # The largest first: the last file to finish then is a small one.
    for file in sorted(files, key=lambda file: -file.size):
        work.put(file)

    def run() -> None:
        while not stop.is_set():
            try:
                file = work.get_nowait()
            except queue.Empty:
                return
            try:
                _fetch_file(chosen, file, token, counter, stop)
                results.put(None)
            except BaseException as error:
                results.put(error)

    # Daemons, because a thread that waits for a silent server must not keep the process from ending.
    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(WORKERS, len(files)))]
    for thread in threads:
        thread.start()
    counter.touch()
    finished = 0
    try:
        while finished < len(files):
            try:
                failure = results.get(timeout=0.2)
            except queue.Empty:
                if counter.idle() > STALL_TIMEOUT:
                    raise CheckpointError("the Hub stopped answering", f"check the network, then {AGAIN}") from None
                continue
            finished += 1
            if failure is not None:
                raise failure
    finally:
        stop.set()
        until = time.monotonic() + LAST_PIECES
        for thread in threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        chosen.cached.sweep()


def _fetch_file(chosen: FetchPlan, file: HubFile, token: str | None, counter: Transfer, stop: threading.Event) -> None:
    """One file, retried while the server is busy, and once when what came is not what the Hub said."""
    for last_try in (False, True):
        retrying(lambda: _request(chosen, file, token, counter, stop), stop.is_set)
        counter.touch()
        hashed = chosen.cached.with_hash(chosen.commit, file)
        problem = chosen.cached.check(chosen.commit, hashed, lambda _: counter.touch())
        if problem is None:
            return
        chosen.cached.discard(chosen.commit, file.path)
        if last_try:
            raise CheckpointError(
                f"'{file.path}' of '{chosen.cached.repo}' came damaged twice: {problem}",
                "it changed on the server, or something on the way alters it; try again later",
            )
        counter.advance(-file.size)


def _request(chosen: FetchPlan, file: HubFile, token: str | None, counter: Transfer, stop: threading.Event) -> None:
    from huggingface_hub import constants, hf_hub_download

    # The client's own 10 MB are minutes on a slow line: no progress, no sign of life, and lost when it breaks.
    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, PIECE)
    counted = 0

    class Bar:
        """What the client believes to be its progress bar."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            nonlocal counted
            if stop.is_set():
                raise _Stopped
            counted += int(count or 0)
            counter.advance(int(count or 0))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_, **__: None

    try:
        hf_hub_download(
            chosen.cached.repo,
            file.path,
            revision=chosen.commit,
            cache_dir=chosen.cached.root,
            token=token,
            etag_timeout=REQUEST_TIMEOUT,
            tqdm_class=Bar,
            library_name="kiwi-cli",
        )
    except BaseException:
        counter.advance(-counted)
        raise


def _with_settings(path: Path) -> bool:
    """Whether a LoRA's file is here, and with it the settings that PEFT always writes beside its own."""
    return path.is_file() and (path.name != ADAPTER_FILE or path.with_name(ADAPTER_CONFIG).is_file())


def fetch_one(repo: str, path: str | None, access: Access, revision: str = "main") -> Path:
    """One safetensors file of a repository, cached or fetched; without a path, the only one it has.

    The adapter_config.json beside it comes along: it says how strongly a LoRA wants to be added.

    Raises:
        CheckpointError: not there, several, pickles only; as `plan` and `fetch`.
    """
    cached = access.cached(repo)
    commit = cached.commit(revision)
    if commit is not None:
        wanted = path or cached.only(commit)
        if wanted in cached.listed(commit) and _with_settings(cached.snapshot(commit) / wanted):
            return cached.snapshot(commit) / wanted
    if not access.download:
        raise CheckpointError(f"'{repo}' is not on this machine", "run the command once with the network")
    listed = list_repo(repo, revision, access)
    names = [name for name in listed.files if name.endswith(".safetensors")]
    if path is None and len(names) > 1:
        raise CheckpointError(f"'{repo}' has several files: {', '.join(sorted(names)[:4])}", f"pass {repo}/FILE")
    chosen = path or (names[0] if names else "")
    if chosen not in names:
        pickle = next((name for name in listed.files if name.endswith(PICKLES)), None)
        raise CheckpointError(
            f"'{repo}' has no {path or 'safetensors file'}", PICKLE_HINT if pickle else "check the name of the file"
        )
    beside = chosen.rpartition("/")[0] + "/" if "/" in chosen else ""
    wanted_too = [listed.files[name] for name in (f"{beside}{ADAPTER_CONFIG}",) if name in listed.files]
    fetch(FetchPlan(cached, revision, listed.commit, (listed.files[chosen], *wanted_too)), access)
    if path is None:
        cached.set_only(listed.commit, chosen)
    return cached.snapshot(listed.commit) / chosen
