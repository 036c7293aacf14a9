"""Checkpoints as files: found, fetched, verified, converted, opened. No model class here, and no torch at import.

files        the parts of a checkpoint, their headers and tensors; filling a module, strictly
layout       which files a checkpoint consists of
settings     what a checkpoint says of how it wants to be used
embedded     models in the package itself
hub          a name -> a folder; fetch, cache, transfer, hub_errors: how it comes from the Hub
raw          training checkpoints: convert, assemble, keys, tensorfile: how they become the released layout
lora         LoRA files
"""

from kiwi_cli.weights.files import (
    PIPELINE_CLASS,
    RELAYOUT_HINT,
    TensorFiles,
    check_layout,
    fill,
    locate,
    open_all,
    parameter_count,
    read_json,
    torch_dtype,
)

__all__ = [
    "PIPELINE_CLASS",
    "RELAYOUT_HINT",
    "TensorFiles",
    "check_layout",
    "fill",
    "locate",
    "open_all",
    "parameter_count",
    "read_json",
    "torch_dtype",
]
