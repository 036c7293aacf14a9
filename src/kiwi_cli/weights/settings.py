"""What a checkpoint says of how it wants to be used, beyond its shapes. No torch.

Two keys of `model_index.json`, both absent in the released models:

    "working": {"pixels": 6144, "frames": 17, "steps": 20}    the size and length it was trained at, and its steps
    "offers": ["style", "background"]                         the kinds of edit it is good for

A model with a working size gets every clip at that area and is given that many frames at a time; the result is
scaled back to the clip's own size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.files import RELAYOUT_HINT, TensorFiles, read_json
from kiwi_cli.weights.layout import STEM

RELEASED_MULTIPLE = 32  # pixels: 16 of the released VAE, 2 of the transformer's patch


@dataclass(frozen=True)
class ModelSettings:
    """How a checkpoint wants to be used; the defaults are the released models'.

    Attributes:
        pixels: area it works at, or None: the clip's own, up to a budget.
        frames: given to it at a time, or None: as many as are asked for.
        steps: of the schedule, or None: 50.
        offers: kinds of edit it is good for, in words; empty when it does not say.
        multiple: pixels that width and height must be multiples of.
    """

    pixels: int | None = None
    frames: int | None = None
    steps: int | None = None
    offers: tuple[str, ...] = ()
    multiple: int = RELEASED_MULTIPLE


def read_settings(folder: Path) -> ModelSettings:
    """The settings of a checkpoint in the released layout, from its configs and the VAE's header.

    Raises:
        CheckpointError: keys that are there and say nothing usable, or broken files.
    """
    index = read_json(folder / "model_index.json")
    working, offers = index.get("working", {}), index.get("offers", [])
    source = folder / "model_index.json"
    if not isinstance(working, dict) or set(working) - {"pixels", "frames", "steps"}:
        raise _unusable(source, "working", working)
    for value in working.values():
        if type(value) is not int or value < 1:
            raise _unusable(source, "working", working)
    if not isinstance(offers, list) or not all(isinstance(kind, str) and kind for kind in offers):
        raise _unusable(source, "offers", offers)
    return ModelSettings(**working, offers=tuple(offers), multiple=size_multiple(folder))


def size_multiple(folder: Path) -> int:
    """Pixels that width and height must be multiples of: the VAE's reduction times the transformer's patch."""
    vae, dit = read_json(folder / "vae/config.json"), read_json(folder / "transformer/config.json")
    if "scale_factor_spatial" in vae:
        reduction = vae["scale_factor_spatial"]
    else:
        shapes = TensorFiles.open(folder / "vae", STEM).shapes
        first = shapes.get("encoder.conv1.weight") or shapes.get("encoder.conv_in.weight") or (0, 12)
        reduction = isqrt(first[1] // 3) * 2 ** (len(vae.get("dim_mult", (1, 2, 4, 4))) - 1)
    try:
        return int(reduction * dit.get("patch_size", (1, 2, 2))[1])
    except (TypeError, IndexError, ValueError) as error:
        raise CheckpointError(f"the configs of '{folder}' give no reduction: {error}", RELAYOUT_HINT) from error


def _unusable(path: Path, key: str, value: Any) -> CheckpointError:
    return CheckpointError(
        f"'{path}' says nothing usable of '{key}': {value!r}",
        'write "working" as {"pixels": N, "frames": N, "steps": N} and "offers" as a list of words',
    )
