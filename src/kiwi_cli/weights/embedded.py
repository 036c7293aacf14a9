"""Models that lie in the package itself: a folder in the released layout, `kiwi_cli/<name>/`. No network, no cache."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.catalog import Variant, find_variant


def folder_of(variant: Variant) -> Path:
    """Where an embedded model's folder is, or would be."""
    return Path(str(resources.files("kiwi_cli"))) / variant.name


def find(variant: Variant) -> Path | None:
    """The folder of an embedded model; None when this installation does not have it."""
    folder = folder_of(variant)
    return folder if (folder / "model_index.json").is_file() else None


def ensure(variant: Variant) -> Path:
    """The folder of an embedded model.

    Raises:
        CheckpointError: this installation does not have it.
    """
    found = find(variant)
    if found is None:
        raise CheckpointError(
            f"the model '{variant.name}' is not in this installation", "choose another: kiwi download --list shows them"
        )
    return found


def named(name: str) -> Variant | None:
    """The embedded model of that name, or None."""
    variant = find_variant(name)
    return variant if variant is not None and variant.kind == "embedded" else None


def size(variant: Variant) -> int:
    """Bytes of its files; 0 when it is not here."""
    found = find(variant)
    return sum(path.stat().st_size for path in found.rglob("*") if path.is_file()) if found else 0
