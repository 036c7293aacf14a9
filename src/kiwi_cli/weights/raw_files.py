"""Raw checkpoints and their base models, as files that lie somewhere."""

from __future__ import annotations

import os
from pathlib import Path

from kiwi_cli.weights.catalog import QWEN_REPO, WAN_REPO
from kiwi_cli.weights.layout import PICKLES, choose_raw

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
