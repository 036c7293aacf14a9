"""Words that a model reads as part of its prompt's structure: found in its tokenizer's files, without loading it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.weights.files import is_saved, read_json

QWEN = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"),
    *("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
)
"""Qwen2.5-VL's, for a model that is not here yet."""


def reserved_tokens(folder: Path | None) -> tuple[str, ...]:
    """The reserved words of a model; Qwen2.5-VL's where its tokenizer does not say, or is not
    here yet."""
    if folder is None:
        return QWEN
    try:
        part = "tokenizer" if is_saved(folder) else "processor"
        added = read_json(folder / part / "tokenizer.json").get("added_tokens", [])
        found = tuple(str(entry["content"]) for entry in added)
    except (CheckpointError, TypeError, KeyError):  # loading the model says what is wrong with it
        return QWEN
    return found or QWEN


def check_reserved(instruction: str, tokens: Iterable[str]) -> None:
    """Refuse text that would be read as part of the prompt's structure.

    Raises:
        UsageError: with the offending token.
    """
    for token in tokens:
        if token and token in instruction:
            raise UsageError(
                f"the instruction holds a reserved token of the model: '{token}'", "remove it from the text"
            )
