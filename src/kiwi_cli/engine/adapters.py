"""LoRA as the library has it: adapters beside the weights, to be switched, weighted, fused and taken away.

`kiwi edit --lora` merges instead (weights/lora.py). Files come in the same key styles, under the same rule: one that
fits only in part is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.loaders import WanLoraLoaderMixin

from kiwi_cli.engine.managed import ManagedPipeline
from kiwi_cli.errors import UsageError
from kiwi_cli.weights import lora
from kiwi_cli.weights.fetch import Access
from kiwi_cli.weights.lora_adapter import read_adapter


class Adapters(ManagedPipeline, WanLoraLoaderMixin):
    """`load_lora_weights` and what follows from it, on the transformer."""

    _lora_loadable_modules: ClassVar[list[str]] = ["transformer"]

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | Mapping[str, torch.Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        *,
        weight_name: str | None = None,
        local_files_only: bool = False,
        low_cpu_mem_usage: bool = True,
    ) -> None:
        """Put a LoRA beside the transformer's weights, switched on.

        Args:
            pretrained_model_name_or_path_or_dict: a safetensors file, a folder, a Hub id, or tensors.
            adapter_name: for `set_adapters`; None is the library's choice.
            hotswap: the values replace those of the adapter of that name.
            weight_name: the file in a folder or a repository.
            local_files_only: whether nothing may be fetched.
            low_cpu_mem_usage: as the library's.

        Raises:
            CheckpointError: not found, a pickle, or keys that match nothing of this model.
        """
        source = pretrained_model_name_or_path_or_dict
        if not isinstance(source, Mapping):
            source = _file(str(source), weight_name, Access(download=not local_files_only))
        with self._rebuilding():
            state = read_adapter(source, dict(self.transformer.named_parameters()))
            self.load_lora_into_transformer(
                state,
                transformer=self.transformer,
                adapter_name=adapter_name,
                _pipeline=self,
                low_cpu_mem_usage=low_cpu_mem_usage,
                hotswap=hotswap,
            )

    def fuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """As the library's: the adapters that are on become part of the weights."""
        with self._rebuilding():
            super().fuse_lora(*args, **kwargs)

    def unfuse_lora(self, *args: Any, **kwargs: Any) -> None:
        """As the library's: what `fuse_lora` added is taken away again."""
        with self._rebuilding():
            super().unfuse_lora(*args, **kwargs)

    def unload_lora_weights(self) -> None:
        """As the library's: no adapter is left."""
        with self._rebuilding():
            super().unload_lora_weights()

    def delete_adapters(self, adapter_names: str | list[str]) -> None:
        """As the library's: these adapters are gone."""
        with self._rebuilding():
            super().delete_adapters(adapter_names)


def _file(source: str, name: str | None, access: Access) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        found = [folder / name] if name else sorted(folder.glob("*.safetensors"))
        if len(found) != 1:
            raise UsageError(f"'{source}' holds {len(found)} LoRAs", "name one with weight_name")
        return lora.locate(lora.LoraSpec(str(found[0])), access)
    return lora.locate(lora.LoraSpec(f"{source}/{name}" if name else source), access)
