"""Raw training checkpoints as models: find one, bring its base models, convert it once, keep the result.

A raw checkpoint holds the trained parameters only. A local one may bring its base models along, in `base/qwen` and
`base/wan` beside it; otherwise KIWI_QWEN and KIWI_WAN name them, or they come from the Hub.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.base.identity import sampled, sampled_file
from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.cache import in_home
from kiwi_cli.weights.catalog import QWEN_REPO, WAN_REPO, Variant
from kiwi_cli.weights.layout import QWEN_BASE, WAN_BASE, WAN_BASE_WITHOUT_TRANSFORMER
from kiwi_cli.weights.raw_files import HUB_DTYPE, base_models, find_raw

if TYPE_CHECKING:
    from kiwi_cli.weights.fetch import Access, FetchPlan


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
    from kiwi_cli.weights.bases import ensure_base
    from kiwi_cli.weights.files import read_json

    raw = convert.read_raw(file)
    default_qwen, default_wan = base_models(file)
    qwen_folder = ensure_base(qwen or default_qwen, QWEN_BASE, access)
    # Most raw checkpoints hold the whole transformer: then 10 to 20 GB of the base need not be fetched.
    wan_folder = ensure_base(wan or default_wan, WAN_BASE_WITHOUT_TRANSFORMER, access)
    if not raw.whole_transformer(read_json(wan_folder / "transformer/config.json")):
        wan_folder = ensure_base(wan or default_wan, WAN_BASE, access)
    result = convert.plan_raw(raw, qwen_folder, wan_folder, dtype, references_first)
    assemble.write(result, out, max_shard_bytes or assemble.MAX_SHARD_BYTES, access.events)
    return result.notes


def ensure_local(path: Path, access: Access) -> Path:
    """The converted form of a raw checkpoint on this machine, in the precision it is stored in; converted once."""
    file = find_raw(path).absolute()
    stem, state = _identity(file)
    out = local_cache() / f"{stem}-{state}"
    if not out.is_dir():
        _convert_once(file, out, access, dtype="auto", references_first=False)
        _remove_older(out, stem, access)
    return out


def _remove_older(out: Path, stem: str, access: Access) -> None:
    """What was converted from an earlier state of the same file is of no use: it would only fill the disk."""
    for other in out.parent.glob(f"{glob.escape(stem)}-*"):
        if other != out and other.is_dir() and len(other.name) == len(out.name):
            shutil.rmtree(other, ignore_errors=True)
            access.events.note(f"removed '{other}', converted from an earlier version of the same file")


def ensure_repo(chosen: FetchPlan, variant: Variant | None, access: Access) -> Path:
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


def plan_bases(access: Access) -> list[FetchPlan]:
    """What fetching the base models of a raw checkpoint from the Hub means; folders need no fetching."""
    from kiwi_cli.weights.fetch import plan

    qwen, wan = os.environ.get("KIWI_QWEN", QWEN_REPO), os.environ.get("KIWI_WAN", WAN_REPO)
    layouts = ((qwen, QWEN_BASE), (wan, WAN_BASE_WITHOUT_TRANSFORMER))
    return [
        plan(repo, "main", access, layout)
        for repo, layout in layouts
        if not Path(repo).expanduser().is_dir() and access.cached(repo).whole("main", layout) is None
    ]


def ensure_snapshot(file: Path, chosen: FetchPlan, variant: Variant | None, access: Access) -> Path:
    """The same once the raw file is here."""
    out = chosen.cached.converted(chosen.commit, HUB_DTYPE)
    if not out.is_dir():
        first = variant is not None and variant.references_first
        _convert_once(file, out, access, dtype=HUB_DTYPE, references_first=first)
    return out


def _convert_once(file: Path, out: Path, access: Access, *, dtype: str, references_first: bool) -> None:
    access.events.note(f"converting '{file.name}', once; the result stays in '{out}'")
    try:
        notes = convert_to(file, out, access, dtype=dtype, references_first=references_first)
    except CheckpointError:
        if out.is_dir():  # another process was faster
            return
        raise
    for note in notes:
        access.events.warn(note)


def local_cache() -> Path:
    """Where converted local checkpoints are kept: HF_HOME/kiwi/converted."""
    from huggingface_hub import constants

    return in_home(constants.HF_HOME) / "kiwi" / "converted"


def _identity(file: Path) -> tuple[str, str]:
    """A name that stands for the file's place, and one that changes when its contents or its base models' do.

    By samples of the contents, not by dates: a file that was touched is the same.
    """
    state = hashlib.sha256(sampled_file(file).encode())
    for base in base_models(file):
        state.update(f"{base}\0{sampled(Path(base)) if Path(base).is_dir() else ''}\0".encode())
    place = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    return f"{file.stem[:40]}-{place}", state.hexdigest()[:16]


def fetch_source(name: str, access: Access) -> tuple[Path, bool]:
    """A model on the Hub as it is there (or in the package), not converted, and whether reference tokens come first.

    Returns:
        The raw file, or the folder of a released checkpoint; and what the table of variants says of it.

    Raises:
        CheckpointError: as `hub.ensure`.
    """
    from kiwi_cli.weights import embedded
    from kiwi_cli.weights.fetch import fetch, plan
    from kiwi_cli.weights.names import resolve

    if own := embedded.named(name):
        return embedded.ensure(own), False
    repo, variant = resolve(name)
    chosen = plan(repo, variant.revision if variant else "main", access)
    folder = fetch(chosen, access)
    if (folder / "model_index.json").is_file():
        return folder, False
    return folder / chosen.files[0].path, variant is not None and variant.references_first
