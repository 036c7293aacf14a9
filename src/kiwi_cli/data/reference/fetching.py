"""The models of a recipe: which there are, under which licence, how large, and where they are on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi_cli.data.reference.recipe import STAGES, Recipe
from kiwi_cli.errors import KiwiError

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Weights are safetensors: nothing that runs code when it is read is fetched."""
_PARTS = (("model", ""), ("detector", "detector_"), ("judge_model", "judge_"))


@dataclass(frozen=True)
class Named:
    """A model that a stage takes. `licence`: as the recipe says, '' where it does not."""

    stage: str
    name: str
    revision: str
    licence: str

    @property
    def is_folder(self) -> bool:
        return Path(self.name).is_dir()


def models(recipe: Recipe) -> Iterator[Named]:
    """The models that are loaded here, each stage's in turn; those of a server are not."""
    for stage in STAGES:
        part = vars(getattr(recipe, stage))
        for key, before in _PARTS:
            if part.get(key) and _is_used(part, key):
                yield Named(stage, part[key], part[f"{before}revision"], part[f"{before}licence"])


def _is_used(part: dict[str, Any], key: str) -> bool:
    if key == "judge_model":
        return part["judge"] == "local"
    if key == "detector":
        return part["by"] == "phrase"
    if part.get("by") == "phrase":
        return part["asked"] == "local"
    how = part.get("by") or part.get("features") or part.get("background")
    return how not in ("endpoint", "truth", "difference", "drawn", "fill", "kiwi")


@dataclass(frozen=True)
class Size:
    """Bytes of a model's files: all, and those that are not here. `licence`: the Hub's word; gated: to be agreed to."""

    total: int
    missing: int
    licence: str
    gated: bool


def size_of(model: Named) -> Size:
    """What fetching a model takes; nothing is fetched.

    Raises:
        KiwiError: the Hub does not answer, or does not know it.
    """
    from huggingface_hub import HfApi, snapshot_download

    if model.is_folder:
        return Size(0, 0, "", False)
    try:
        info = HfApi().model_info(model.name, revision=model.revision or None)
        found = snapshot_download(
            model.name, revision=model.revision or None, allow_patterns=list(PATTERNS), dry_run=True
        )
    except Exception as error:
        raise _unreached(model, error) from None
    said = info.card_data.get("license") if info.card_data is not None else None
    missing = sum(file.file_size or 0 for file in found if file.will_download)
    return Size(sum(file.file_size or 0 for file in found), missing, str(said or ""), bool(info.gated))


def folder_of(name: str, revision: str) -> str:
    """The folder of a model, which is fetched when it is not here.

    Raises:
        KiwiError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return name
    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=list(PATTERNS)))
    except Exception as error:
        raise _unreached(Named("", name, revision, ""), error) from None


def _unreached(model: Named, error: Exception) -> KiwiError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return KiwiError(
        f"the model '{model.name}' cannot be had from the Hub: {reason}",
        "check its name and the network; a gated one wants its terms accepted there and HF_TOKEN in the environment",
    )
