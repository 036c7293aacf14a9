"""What a checkpoint says of how it wants to be used, beyond its shapes. No torch.

Three keys of `model_index.json`, all absent in the released models:

    "working": {"pixels": 6144, "frames": 17, "steps": 20}    the size and length it was trained at, and its steps
    "offers": ["style", "background"]                         the kinds of edit it is good for
    "detail": {"steady": true, "trust": 1.0}                  its results take the source's own detail

and a file of its own beside it, `understands.json`: kind of edit -> instructions that the model was trained with.

A model with a working size gets every clip at that area and is given that many frames at a time; the result is
scaled back to the clip's own size. With `"pictures": true` in `working`, a single picture without a reference is given
to it as one, not as so many frames. `detail` makes `--detail auto` take the source's detail for a clip of any size;
`steady` is for a model whose frames flicker, `trust` for one that moves and removes nothing (docs/detail.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.files import RELAYOUT_HINT, TensorFiles, read_json
from kiwi_cli.weights.layout import STEM

UNDERSTANDS = "understands.json"
USE = ("working", "offers", "detail")
"""The keys of `model_index.json`; of a saved pipeline, whose index the library reads, those of a file of its own."""
COUNTS = ("pixels", "frames", "least", "steps")
USE_OF_SAVED = "use.json"
FEW = 8  # kinds of edit that a sentence can name
RELEASED_MULTIPLE = 32  # pixels: 16 of the released VAE, 2 of the transformer's patch


@dataclass(frozen=True)
class ModelSettings:
    """How a checkpoint wants to be used; the defaults are the released models'.

    Attributes:
        pixels: area it works at, or None: the clip's own, up to a budget.
        frames: given to it at a time, or None: as many as are asked for.
        least: given to it of a shorter clip, whose last frame is repeated; None: `frames`.
        pictures: a single picture without a reference is no such clip: it knows that form too.
        steps: of the schedule, or None: 50.
        offers: kinds of edit it is good for, in words; empty when it does not say.
        multiple: pixels that width and height must be multiples of.
        detail: its results should take the source's own detail, whatever the clip's size.
        steady: its frames flicker: the edit is averaged over neighbouring frames when they do.
        trust: the share of an edit's local variance that may stay unexplained by the source, above 0 to 1; None: the
            method's own.
        understands: kind of edit -> instructions it was trained with; empty when it does not say.
    """

    pixels: int | None = None
    frames: int | None = None
    least: int | None = None
    pictures: bool = False
    steps: int | None = None
    offers: tuple[str, ...] = ()
    multiple: int = RELEASED_MULTIPLE
    detail: bool = False
    steady: bool = False
    trust: float | None = None
    understands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def good_for(self) -> str:
        """The kinds of edit it is good for within a sentence: by name, or how many where there are more than a few."""
        return ", ".join(self.offers) if len(self.offers) <= FEW else f"{len(self.offers)} kinds of edit"


def use_of(folder: Path) -> tuple[dict[str, Any], Path]:
    """The keys of `USE` that a checkpoint has, and the file they are in."""
    path = folder / USE_OF_SAVED
    path = path if path.is_file() else folder / "model_index.json"
    found = read_json(path)
    return {key: found[key] for key in USE if key in found}, path


def read_settings(folder: Path) -> ModelSettings:
    """The settings of a checkpoint or a saved pipeline, from its configs and the VAE's header.

    Raises:
        CheckpointError: keys that are there and say nothing usable, or broken files.
    """
    index, source = use_of(folder)
    working, offers = index.get("working", {}), index.get("offers", [])
    if not isinstance(working, dict) or set(working) - {*COUNTS, "pictures"}:
        raise _unusable(source, "working", working)
    counts = [working[key] for key in COUNTS if key in working]
    if type(working.get("pictures", False)) is not bool or any(type(n) is not int or n < 1 for n in counts):
        raise _unusable(source, "working", working)
    if "least" in working and working["least"] > working.get("frames", 0):
        frames = f"'frames', {working['frames']}" if "frames" in working else "'frames', which is not there"
        raise CheckpointError(
            f"'{source}' has a 'least' of {working['least']} in 'working', more than its {frames}",
            "let 'least' be no more than 'frames', or leave it out",
        )
    if not isinstance(offers, list) or not all(isinstance(kind, str) and kind for kind in offers):
        raise _unusable(source, "offers", offers)
    detail = index.get("detail", {})
    if not isinstance(detail, dict) or set(detail) - {"steady", "trust"}:
        raise _unusable(source, "detail", detail)
    trust = detail.get("trust", 1.0)
    if type(detail.get("steady", False)) is not bool or type(trust) not in (int, float) or not 0 < trust <= 1:
        raise _unusable(source, "detail", detail)
    return ModelSettings(
        **working,
        **detail,
        offers=tuple(offers),
        detail="detail" in index,
        multiple=size_multiple(folder),
        understands=_understands(folder / UNDERSTANDS),
    )


def _understands(path: Path) -> dict[str, tuple[str, ...]]:
    if not path.is_file():
        return {}
    found = read_json(path)
    if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in found.values()):
        raise CheckpointError(f"'{path}' does not hold lists of instructions", "fetch the file again")
    return {kind: tuple(texts) for kind, texts in found.items()}


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
        'write "working" as {"pixels": N, "frames": N, "least": N, "steps": N, "pictures": true}, "offers" as a list '
        'of words, "detail" as {"steady": true, "trust": 1.0}',
    )
