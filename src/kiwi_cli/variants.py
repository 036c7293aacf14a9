"""The released Kiwi-Edit models: names people type, and where each one is.

One frozen table; everything that depends on which model it is reads it from here or from the checkpoint's own
configs, never from a substring of a path.
"""

from __future__ import annotations

from dataclasses import dataclass

RELEASED_FILES = (
    "model_index.json",
    "transformer/*.json",
    "transformer/*.safetensors",
    "vae/*.json",
    "vae/*.safetensors",
    "mllm_encoder/*.json",
    "mllm_encoder/*.safetensors",
    "source_embedder/*.json",
    "source_embedder/*.safetensors",
    "ref_embedder/*.json",
    "ref_embedder/*.safetensors",
    "scheduler/*.json",
    "processor/*.json",
    "processor/*.txt",
    "processor/*.jinja",
)
"""What a released repository is read for. Never `*.py`: those repositories also hold code for remote execution."""


@dataclass(frozen=True)
class Variant:
    """One released model.

    Attributes:
        name: what `--model` takes.
        repo: Hub repository.
        summary: one line for lists.
    """

    name: str
    repo: str
    summary: str


VARIANTS = (
    Variant(
        "instruct-reference",
        "linyq/kiwi-edit-5b-instruct-reference-diffusers",
        "5B, instructions and references; best published score for instruction edits",
    ),
    Variant(
        "reference-only",
        "linyq/kiwi-edit-5b-reference-only-diffusers",
        "5B, trained on reference edits alone; best published score for reference edits",
    ),
    Variant("instruct-only", "linyq/kiwi-edit-5b-instruct-only-diffusers", "5B, instructions only"),
)

DEFAULT_EDIT = "instruct-reference"
DEFAULT_REF_EDIT = "reference-only"


def find_variant(name: str) -> Variant | None:
    """The variant of that name or repository, or None."""
    return next((v for v in VARIANTS if name in (v.name, v.repo)), None)
