"""Models by name: the one question everything else asks is `ensure`.

`ensure(name)` answers with a folder in the released layout. What is on this machine already is used without a
single request; what is missing is announced, fetched, and if it is a raw checkpoint, converted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from kiwi_cli.console import Console
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.variants import VARIANTS, Variant, find_variant
from kiwi_cli.weights import embedded
from kiwi_cli.weights.cache import default_root
from kiwi_cli.weights.fetch import Access, Plan, fetch, plan
from kiwi_cli.weights.layout import PICKLE_HINT, PICKLES, RELEASED, Layout
from kiwi_cli.weights.transfer import transfer


def ensure(
    name: str,
    *,
    download: bool = True,
    console: Console | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
    token: str | None = None,
) -> Path:
    """A folder in the released layout for a variant's name, a Hub id, a folder or a raw training checkpoint.

    An embedded model is where it is: the rest of the arguments does not concern it.

    Args:
        name: as the person wrote it.
        download: whether what is missing may be fetched; otherwise it is an error that says how to.
        console: announces sizes and shows progress.
        revision: branch, tag or commit, of a model on the Hub.
        cache_dir: instead of the Hub's own cache.
        token: instead of the Hub's own.

    Raises:
        CheckpointError: nothing of that name, something missing, or the Hub cannot be reached.
    """
    from kiwi_cli.weights import raw

    access = Access(cache_dir or default_root(), token, download, console)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "model_index.json").is_file() or not raw.is_raw_folder(path):
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
    found = cached_model(repo, wanted, variant, access)
    if found is not None:
        return found
    if not download:
        raise missing_error(name, repo)
    chosen = plan(repo, wanted, access, RELEASED if variant and variant.kind == "released" else None)
    if any(file.path == "model_index.json" for file in chosen.files):
        return fetch(chosen, access)
    return raw.ensure_repo(chosen, variant, access)


def resolve(name: str) -> tuple[str, Variant | None]:
    """A name as a person writes it -> Hub repository, and its variant if it is one of ours.

    Raises:
        CheckpointError: neither a variant nor the form of a Hub id; suggests the nearest name. Or an embedded model.
    """
    variant = find_variant(name)
    if variant is not None and variant.kind == "embedded":
        raise CheckpointError(f"'{name}' is part of kiwi itself, not on the Hub", "there is nothing to fetch")
    if variant is not None:
        return variant.repo, variant
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and ".." not in name and "--" not in name:
        return name, None
    names = [v.name for v in VARIANTS]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known models: {', '.join(names)}"
    raise CheckpointError(f"no such model or folder: '{name}'", hint)


def peek(repo: str, revision: str, access: Access) -> Path | None:
    """A model that can be used at once: whole in the cache, or converted there. Fetches and converts nothing."""
    from kiwi_cli.weights.raw import HUB_DTYPE

    cached = access.cached(repo)
    commit = cached.commit(revision)
    if commit is not None and cached.converted(commit, HUB_DTYPE).is_dir():
        return cached.converted(commit, HUB_DTYPE)
    return cached.whole(revision, RELEASED)


def cached_model(repo: str, revision: str, variant: Variant | None, access: Access) -> Path | None:
    """As `peek`; a raw checkpoint that is here and not yet converted is converted now."""
    from kiwi_cli.weights import raw

    if found := peek(repo, revision, access):
        return found
    cached = access.cached(repo)
    commit = cached.commit(revision)
    if commit is None or not cached.snapshot(commit).is_dir():
        return None
    snapshot = cached.snapshot(commit)
    if (snapshot / "model_index.json").exists() or not raw.is_raw_folder(snapshot):
        return None
    return raw.ensure_snapshot(raw.find_raw(snapshot), Plan(cached, revision, commit, ()), variant, access)


def missing_error(name: str, repo: str) -> CheckpointError:
    """For a model that may not be fetched now."""
    return CheckpointError(f"'{name}' is not complete on this machine ('{repo}')", f"run `kiwi download {name}` once")


def ensure_base(repo: str, layout: Layout, access: Access, revision: str = "main") -> Path:
    """A base model in its own layout: a folder as it is, a Hub id from the cache or fetched.

    A folder in the released layout stands for any base model: it holds them all.

    Raises:
        CheckpointError: a folder that lacks files of the layout; as `ensure`.
    """
    folder = Path(repo).expanduser()
    if folder.is_dir():
        if (folder / "model_index.json").is_file():
            layout = RELEASED
        if lacking := layout.missing(folder):
            raise CheckpointError(f"'{repo}' lacks {lacking[0]}", _base_hint(folder))
        return folder
    repo, _ = resolve(repo)
    found = access.cached(repo).whole(revision, layout)
    if found is not None:
        return found
    if not access.download:
        raise CheckpointError(f"'{repo}' is not complete on this machine", "run the command once with the network")
    return fetch(plan(repo, revision, access, layout), access)


def _base_hint(folder: Path) -> str:
    if any(path.suffix in PICKLES for path in folder.glob("*")):
        return PICKLE_HINT
    return "a base model is a folder as it is on the Hub: Qwen2.5-VL, and Wan 2.2 in the library's format"


def verify(repo: str, revision: str, access: Access) -> tuple[int, list[tuple[str, str]]]:
    """Check the cached files of a model against what the Hub said of them; no network.

    Returns:
        How many files were checked, and (file, what is wrong) for the bad ones.

    Raises:
        CheckpointError: nothing of it is cached.
    """
    cached = access.cached(repo)
    commit = cached.commit(revision)
    if commit is None or not cached.snapshot(commit).is_dir():
        raise missing_error(repo, repo)
    files = cached.expected(commit, cached.listed(commit))
    total = sum(max(file.size, 0) for file in files)
    with transfer(access.console, f"checking {repo.partition('/')[2]}", total) as counter:
        checked = [(file.path, cached.check(commit, file, counter.advance)) for file in files]
    return len(files), [(path, problem) for path, problem in checked if problem is not None]


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
    return fetch(Plan(cached, revision, commit, known), access)
