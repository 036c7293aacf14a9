"""A pipeline from files and back: the released layout, raw checkpoints, and what `save_pretrained` wrote.

The released layout holds weights under their original names and a processor; `save_pretrained` writes the library's:
a folder for each part under its own names, with variants. Only safetensors are read or written, and a saved index
names no class but ours and the library's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from kiwi_cli.engine.devices import choose_device, choose_dtype
from kiwi_cli.engine.managed import ManagedPipeline
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.model import checkpoint
from kiwi_cli.weights import check_layout, is_saved, read_json
from kiwi_cli.weights.settings import UNDERSTANDS, USE, USE_OF_SAVED, use_of
from kiwi_cli.weights.tensorfile import write_json

logger = logging.get_logger(__name__)

CLASSES: dict[str, tuple[str, ...]] = {
    "transformer": ("kiwi_cli.model.transformer",),
    "source_embedder": ("kiwi_cli.model.transformer",),
    "ref_embedder": ("kiwi_cli.model.transformer",),
    "mllm_encoder": ("kiwi_cli.model.mllm",),
    "vae": ("diffusers",),
    "scheduler": ("diffusers",),
    "tokenizer": ("transformers",),
}
"""Where the class of each part may come from: the library imports whatever module an index names."""

Precision = str | torch.dtype | Mapping[str, str | torch.dtype]


class Opening(ManagedPipeline):
    """`from_pretrained` and `save_pretrained`."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        device: str = "auto",
        dtype: Precision = "auto",
        memory: str = "auto",
        max_memory: str | int | None = None,
        *,
        torch_dtype: Precision | None = None,
        variant: str | None = None,
        **options: Any,
    ) -> Any:
        """A pipeline from a checkpoint in the released layout, a raw training checkpoint, or a saved pipeline.

        Args:
            pretrained_model_name_or_path: a variant's name ('instruct-reference'), a Hub id, a folder or a file.
            device: 'cuda', 'cuda:1', 'cpu', 'mps'; 'auto' takes the accelerator there is, else the CPU.
            dtype: 'bfloat16', 'float16' or 'float32', or a dtype; 'auto' is bfloat16 on an accelerator and float32 on
                the CPU, and a saved pipeline's own. A mapping has one for each part: {'transformer': ..., 'default':
                ...}. The VAE's encoder stays fp32.
            memory, max_memory: as in `manage`.
            torch_dtype: the library's older name of `dtype`.
            variant: of the weights of a saved pipeline, such as 'fp16'.
            options: parts to use instead of the checkpoint's (`scheduler=...`); of the Hub: `revision`, `cache_dir`,
                `token`, `local_files_only`; of a saved pipeline, whatever the library takes.

        Raises:
            CheckpointError: not found, broken, or of another model.
            DeviceError: a device that is not there.
        """
        if torch_dtype is not None:
            if dtype != "auto" and dtype != torch_dtype:
                raise UsageError("dtype and torch_dtype are two names of one thing", "pass one of them")
            dtype = torch_dtype
        if "scheduler" in options:
            options.setdefault("shift", None)  # its own
        mapped = options.get("device_map") is not None
        place = None if mapped else choose_device(device)
        folder = _find(str(pretrained_model_name_or_path), options)
        if is_saved(folder):
            if mapped and max_memory is not None:
                options["max_memory"] = max_memory
            pipe = cls._from_saved(folder, dtype, variant, options)
        else:
            pipe = cls._from_released(folder, _choose(dtype, place), variant, options)
        pipe.use = _use(folder)
        # On the host the weights are mapped from the files and cost nothing; `manage` puts on the device what is
        # needed there.
        if place is not None:
            pipe.manage(place, memory, max_memory)
        return pipe

    @classmethod
    def _from_released(
        cls, folder: Path, dtype: torch.dtype | dict[str, torch.dtype], variant: str | None, options: dict[str, Any]
    ) -> Any:
        if variant is not None:
            raise UsageError(f"'{folder}' has no variant '{variant}'", "variants are of saved pipelines; use dtype")
        names = {*CLASSES, "colour", "references_first", "shift"}
        if unknown := sorted(options.keys() - names):
            raise UsageError(f"a checkpoint in the released layout takes no '{unknown[0]}'", "leave it out")
        return cls(**{**vars(checkpoint.load_parts(folder, dtype, "cpu")), **options})

    @classmethod
    def _from_saved(cls, folder: Path, dtype: Precision, variant: str | None, options: dict[str, Any]) -> Any:
        _check_index(folder)
        options = {"use_safetensors": True, **options, "trust_remote_code": False}
        if not options["use_safetensors"]:
            raise UsageError("kiwi reads no pickles", "leave out use_safetensors=False")
        if dtype == "auto":
            return super().from_pretrained(str(folder), variant=variant, **options)
        wanted = _choose(dtype, torch.device("cpu"))
        of = wanted if isinstance(wanted, dict) else {"default": wanted}
        decoder = of.get("vae", of.get("default", torch.float32))
        pipe = super().from_pretrained(str(folder), dtype={**of, "vae": torch.float32}, variant=variant, **options)
        if "vae" not in options:
            checkpoint.set_vae_dtype(pipe.vae, decoder)
        return pipe

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **options: Any,
    ) -> None:
        """The pipeline as a folder that `from_pretrained` reads, as the library writes it, always in safetensors.

        Args:
            save_directory: made where it is not there.
            safe_serialization: False asks for pickles, which kiwi never writes: it warns and writes safetensors.
            variant: goes into the names of the weights' files, such as 'fp16'.
            max_shard_size: of one file, '5GB' or bytes.
            options: of the library (`push_to_hub`).
        """
        if not safe_serialization:
            logger.warning("kiwi writes no pickles: the weights are saved as safetensors.")
        self._off_device()
        if self.config.shift != self.scheduler.config.shift:
            self.scheduler = self.scheduler.from_config(self.scheduler.config, shift=self.config.shift)
        super().save_pretrained(str(save_directory), True, variant, max_shard_size, **options)
        _keep_use(Path(save_directory), getattr(self, "use", {}))

    @classmethod
    def from_pipe(cls, pipeline: Any, **options: Any) -> Any:
        """As the library's: another pipeline with the same parts. A scheduler that is given brings its own shift."""
        if "scheduler" in options:
            options.setdefault("shift", None)
        return super().from_pipe(pipeline, **options)


def _use(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its use (weights/settings.py), by key and by file."""
    use, _ = use_of(folder)
    return use | ({UNDERSTANDS: read_json(folder / UNDERSTANDS)} if (folder / UNDERSTANDS).is_file() else {})


def _keep_use(folder: Path, use: Mapping[str, Any]) -> None:
    """Write it to a saved pipeline as it was."""
    if keys := {key: value for key, value in use.items() if key in USE}:
        write_json(folder / USE_OF_SAVED, keys)
    if UNDERSTANDS in use:
        write_json(folder / UNDERSTANDS, use[UNDERSTANDS])


def _find(name: str, options: dict[str, Any]) -> Path:
    """The folder of a checkpoint; what says how to find it is taken out of the options."""
    from kiwi_cli.weights.hub import ensure

    cache = options.pop("cache_dir", None)
    return ensure(
        name,
        download=not options.pop("local_files_only", False),
        revision=options.pop("revision", None),
        cache_dir=None if cache is None else Path(cache),
        token=options.pop("token", None),
    )


def _check_index(folder: Path) -> None:
    """Refuse a saved index that names foreign classes."""
    check_layout(folder)
    index = read_json(folder / "model_index.json")
    for name, found in index.items():
        if not isinstance(found, list):
            continue
        library = found[0] if found else None
        if library is not None and library not in CLASSES.get(name, ()):
            raise CheckpointError(f"'{folder}' wants '{name}' from '{library}'", "do not use this checkpoint")


def _choose(dtype: Precision, place: torch.device | None) -> torch.dtype | dict[str, torch.dtype]:
    device = place or torch.device("cpu")
    if isinstance(dtype, Mapping):
        return {name: choose_dtype(each, device) for name, each in dtype.items()}
    return choose_dtype(dtype, device)
