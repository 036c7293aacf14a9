"""Raw training checkpoints as models: find one, bring its base models, convert it once, keep the result.

A raw checkpoint holds the trained parameters only. A local one may bring its base models along, in `base/qwen` and
`base/wan` beside it; otherwise KIWI_QWEN and KIWI_WAN name them, or they come from the Hub.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.errors import CheckpointError
from kiwi_cli.variants import QWEN_REPO, WAN_REPO, Variant
from kiwi_cli.weights.layout import PICKLES, QWEN_BASE, WAN_BASE, WAN_BASE_WITHOUT_TRANSFORMER, choose_raw

if TYPE_CHECKING:
    from kiwi_cli.weights.fetch import Access, Plan

HUB_DTYPE = "bfloat16"
"""What raw checkpoints from the Hub are converted to: the precision of the released ones."""


def is_raw_folder(folder: Path) -> bool:
    """Whether a folder holds weights of its own at the top, or in `raw/`, and no released checkpoint."""
    endings = (".safetensors", *PICKLES)
    return any(p.suffix in endings for place in (folder, folder / "raw") if place.is_dir() for p in place.iterdir())


def find_raw(path: Path) -> Path:
    """The checkpoint file of a folder (its own, or that in `raw/`), or the file itself.

    Raises:
        CheckpointError: several, none, or only pickles.
    """
    if path.is_file():
        return path
    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    if not any(name.endswith((".safetensors", *PICKLES)) for name in names):
        path = path / "raw"
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
    return path / choose_raw(names, str(path))


def base_models(file: Path) -> tuple[str, str]:
    """Where a local raw checkpoint's Qwen and Wan are: beside it, named by the environment, or on the Hub."""
    for place in (file.parent, file.parent.parent):
        qwen, wan = place / "base" / "qwen", place / "base" / "wan"
        if qwen.is_dir() and wan.is_dir():
            return str(qwen), str(wan)
    return os.environ.get("KIWI_QWEN", QWEN_REPO), os.environ.get("KIWI_WAN", WAN_REPO)


def convert_to(
    file: Path,
    out: Path,
    access: Access,
    *,
    qwen: str | None = None,
    wan: str | None = None,
    dtype: str = "auto",
    references_first: bool = False,
    max_shard_bytes: int | None = None,
) -> list[str]:
    """Convert one raw file, fetching the base models it needs.

    Returns:
        Notes for the person.

    Raises:
        CheckpointError: as `convert.plan_raw`, `assemble.write` and `hub.ensure_base`.
    """
    from kiwi_cli.weights import assemble, convert
    from kiwi_cli.weights.files import read_json
    from kiwi_cli.weights.hub import ensure_base

    raw = convert.read_raw(file)
    default_qwen, default_wan = base_models(file)
    qwen_folder = ensure_base(qwen or default_qwen, QWEN_BASE, access)
    # Most raw checkpoints hold the whole transformer: then 10 to 20 GB of the base need not be fetched.
    wan_folder = ensure_base(wan or default_wan, WAN_BASE_WITHOUT_TRANSFORMER, access)
    if not raw.whole_transformer(read_json(wan_folder / "transformer/config.json")):
        wan_folder = ensure_base(wan or default_wan, WAN_BASE, access)
    result = convert.plan_raw(raw, qwen_folder, wan_folder, dtype, references_first)
    assemble.write(result, out, max_shard_bytes or assemble.MAX_SHARD_BYTES, access.console)
    return result.notes


def ensure_local(path: Path, access: Access) -> Path:
    """The converted form of a raw checkpoint on this machine, in the precision it is stored in; converted once."""
    file = find_raw(path).absolute()
    out = local_cache() / _identity(file)
    if not out.is_dir():
        _convert_once(file, out, access, dtype="auto", references_first=False)
    return out


def ensure_repo(chosen: Plan, variant: Variant | None, access: Access) -> Path:
    """The converted form of a raw checkpoint on the Hub: fetched and converted, once, in bfloat16.

    Raises:
        CheckpointError: no room for the raw file, its base models and the result together, before the first byte.
    """
    from kiwi_cli.weights.fetch import check_room, fetch

    plans = [chosen, *plan_bases(access)]
    # The result is at most as large as what it is made of.
    needed = sum(part.missing_bytes + part.bytes for part in plans)
    check_room(needed, access.root, f"'{chosen.cached.repo}', its base models and the converted checkpoint")
    return ensure_snapshot(fetch(chosen, access) / chosen.files[0].path, chosen, variant, access)


def plan_bases(access: Access) -> list[Plan]:
    """What fetching the base models of a raw checkpoint from the Hub means; folders need no fetching."""
    from kiwi_cli.weights.fetch import plan

    qwen, wan = os.environ.get("KIWI_QWEN", QWEN_REPO), os.environ.get("KIWI_WAN", WAN_REPO)
    layouts = ((qwen, QWEN_BASE), (wan, WAN_BASE_WITHOUT_TRANSFORMER))
    return [
        plan(repo, "main", access, layout)
        for repo, layout in layouts
        if not Path(repo).expanduser().is_dir() and access.cached(repo).whole("main", layout) is None
    ]


def ensure_snapshot(file: Path, chosen: Plan, variant: Variant | None, access: Access) -> Path:
    """The same once the raw file is here."""
    out = chosen.cached.converted(chosen.commit, HUB_DTYPE)
    if not out.is_dir():
        first = variant is not None and variant.references_first
        _convert_once(file, out, access, dtype=HUB_DTYPE, references_first=first)
    return out


def _convert_once(file: Path, out: Path, access: Access, *, dtype: str, references_first: bool) -> None:
    console = access.console
    if console is not None:
        console.note(f"converting '{file.name}', once; the result stays in '{out}'")
    try:
        notes = convert_to(file, out, access, dtype=dtype, references_first=references_first)
    except CheckpointError:
        if out.is_dir():  # another process was faster
            return
        raise
    for note in notes:
        if console is not None:
            console.warn(note)


def local_cache() -> Path:
    """Where converted local checkpoints are kept: HF_HOME/kiwi/converted."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "kiwi" / "converted"


def _identity(file: Path) -> str:
    """A name that changes when the file or its base models do."""
    digest = hashlib.sha256()
    for place in (file, *(Path(base) for base in base_models(file))):
        digest.update(str(place).encode())
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in files:
            if path.is_file():
                status = path.stat()
                digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return f"{file.stem}-{digest.hexdigest()[:16]}"


def fetch_source(name: str, access: Access) -> tuple[Path, bool]:
    """A model on the Hub as it is there (or in the package), not converted, and whether reference tokens come first.

    Returns:
        The raw file, or the folder of a released checkpoint; and what the table of variants says of it.

    Raises:
        CheckpointError: as `hub.ensure`.
    """
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.fetch import fetch, plan
    from kiwi_cli.weights.hub import resolve

    if own := embedded.named(name):
        return embedded.ensure(own), False
    repo, variant = resolve(name)
    chosen = plan(repo, variant.revision if variant else "main", access)
    folder = fetch(chosen, access)
    if (folder / "model_index.json").is_file():
        return folder, False
    return folder / chosen.files[0].path, variant is not None and variant.references_first
