"""The base models that a raw checkpoint is completed with."""

from __future__ import annotations

from pathlib import Path

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.fetch import Access, fetch, plan
from kiwi_cli.weights.layout import PICKLE_HINT, PICKLES, RELEASED, Layout
from kiwi_cli.weights.names import resolve


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
