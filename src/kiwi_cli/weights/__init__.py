"""Checkpoints as files: found, fetched, verified, converted, opened. No model class here, and no torch at import.

files        the parts of a checkpoint, their headers and tensors; filling a module, strictly
layout       which files a checkpoint consists of
settings     what a checkpoint says of how it wants to be used
catalog      the models that are known by name
embedded     models in the package itself
hub          a name -> a folder; names, fetch, cache, hub_errors: how it comes from the Hub
inventory    what is known of a model, and what of it is here
raw          training checkpoints: raw_files, bases,
             convert, assemble, keys, tensorfile: how they become the released layout
lora         LoRA files
"""

from kiwi_cli.weights.files import (
    PIPELINE_CLASS,
    RELAYOUT_HINT,
    TensorFiles,
    check_layout,
    fill,
    is_saved,
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
    "is_saved",
    "open_all",
    "parameter_count",
    "read_json",
    "torch_dtype",
]
