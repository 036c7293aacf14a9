"""Models by name: the one question everything else asks is `ensure`.

`ensure(name)` answers with a folder in the released layout. What is on this machine already is used without a
single request; what is missing is announced, fetched, and if it is a raw checkpoint, converted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights import embedded
from kiwi_cli.weights.cache import default_root
from kiwi_cli.weights.catalog import Variant
from kiwi_cli.weights.fetch import Access, FetchPlan, fetch, plan
from kiwi_cli.weights.layout import PICKLE_HINT, PICKLES, RELEASED
from kiwi_cli.weights.names import missing_error, resolve


def ensure(
    name: str,
    *,
    download: bool = True,
    events: Events = SILENT,
    revision: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
    update: bool = False,
) -> Path:
    """A folder in the released layout for a variant's name, a Hub id, a folder or a raw training checkpoint.

    Embedded models are returned as they lie in the package; no download argument applies.

    Args:
        name: as the person wrote it.
        download: whether what is missing may be fetched; otherwise it is an error that says how to.
        events: told of sizes and progress.
        revision: branch, tag or commit, of a model on the Hub.
        cache_dir: instead of the Hub's own cache.
        token: instead of the Hub's own.
        update: ask the Hub what the revision is now, although it is here.

    Raises:
        CheckpointError: nothing of that name, something missing, or the Hub cannot be reached.
    """
    from kiwi_cli.weights import raw, raw_files

    access = Access(cache_dir or default_root(), token, download, events)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "model_index.json").is_file() or not raw_files.is_raw_folder(path):
            return path
        return raw.ensure_local(path, access)
    if path.is_file():
        if path.suffix == ".safetensors":
            return raw.ensure_local(path, access)
        if path.suffix in PICKLES:
            raise CheckpointError(f"'{name}' is a pickle", PICKLE_HINT)
        raise CheckpointError(f"not a checkpoint: '{name}'", "name a folder, a .safetensors file or a model")
    if own := embedded.named(name):
        if revision is not None:
            raise UsageError(f"--revision is for models on the Hub, not for '{name}'", "leave it out")
        return embedded.ensure(own)
    repo, variant = resolve(name)
    wanted = revision or (variant.revision if variant else "main")
    found = None if update else cached_model(repo, wanted, variant, access)
    if found is not None:
        return found
    if not download:
        raise missing_error(name, repo, access.cached(repo).folder.is_dir())
    chosen = plan(repo, wanted, access, RELEASED if variant and variant.kind == "released" else None)
    if any(file.path == "model_index.json" for file in chosen.files):
        return fetch(chosen, access)
    return raw.ensure_repo(chosen, variant, access)


def peek(repo: str, revision: str, access: Access) -> Path | None:
    """A model that can be used at once: whole in the cache, or converted there. Fetches and converts nothing."""
    from kiwi_cli.weights.raw_files import HUB_DTYPE

    cached = access.cached(repo)
    commit = cached.commit(revision)
    if commit is not None and cached.converted(commit, HUB_DTYPE).is_dir():
        return cached.converted(commit, HUB_DTYPE)
    return cached.whole(revision, RELEASED)


def cached_model(repo: str, revision: str, variant: Variant | None, access: Access) -> Path | None:
    """As `peek`; a raw checkpoint that is here and not yet converted is converted now."""
    from kiwi_cli.weights import raw, raw_files

    if found := peek(repo, revision, access):
        return found
    cached = access.cached(repo)
    commit = cached.commit(revision)
    if commit is None or not cached.snapshot(commit).is_dir():
        return None
    snapshot = cached.snapshot(commit)
    if (snapshot / "model_index.json").exists() or not raw_files.is_raw_folder(snapshot):
        return None
    return raw.ensure_snapshot(raw_files.find_raw(snapshot), FetchPlan(cached, revision, commit, ()), variant, access)


@dataclass(frozen=True)
class Verified:
    """What a check of the cached files found.

    Attributes:
        checked: files whose contents were compared with a hash, or found wrong otherwise.
        bad: (file, what is wrong). unchecked: files that nothing gives a hash of.
    """

    checked: int
    bad: list[tuple[str, str]]
    unchecked: list[str]


def verify(repo: str, revision: str, access: Access) -> Verified:
    """The state of a model's cached files, by what the Hub said of them; no network.

    Raises:
        CheckpointError: nothing of it is cached.
    """
    cached = access.cached(repo)
    commit = cached.commit(revision)
    if commit is None or not cached.snapshot(commit).is_dir():
        raise missing_error(repo, repo, cached.folder.is_dir())
    files = cached.expected(commit, cached.listed(commit))
    total = sum(max(file.size, 0) for file in files)
    with access.events.transfer(f"checking {repo.partition('/')[2]}", total) as counter:
        found = [(file, cached.check(commit, file, counter.advance)) for file in files]
    bad = [(file.path, problem) for file, problem in found if problem is not None]
    unchecked = [file.path for file, problem in found if problem is None and file.blob is None]
    return Verified(len(files) - len(unchecked), bad, unchecked)


def repair(repo: str, revision: str, bad: Iterable[str], access: Access) -> Path:
    """Fetch the bad files of a cached model again, and nothing else."""
    cached = access.cached(repo)
    commit = cached.commit(revision)
    assert commit is not None
    for name in bad:
        cached.discard(commit, name)
    record = cached.record(commit)
    known = tuple(record[name] for name in cached.listed(commit) if name in record)
    if any(name not in record for name in bad):
        fresh = plan(repo, commit, access)
        known = fresh.files
    return fetch(FetchPlan(cached, revision, commit, known), access)


def locate(name_or_path: str) -> Path:
    """A checkpoint folder on this machine for a variant's name, a folder, a raw training checkpoint or a Hub id.

    What is here already is used without any network request; the rest is fetched, and raw checkpoints are
    converted, once.

    Raises:
        CheckpointError: nothing of that name, or the Hub cannot be reached.
    """
    from kiwi_cli.weights.hub import ensure

    return ensure(name_or_path)
