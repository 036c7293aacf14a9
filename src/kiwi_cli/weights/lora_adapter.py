"""A LoRA as adapters of the library: the tensors of lora.py's files under the library's names, not merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.files import TensorFiles
from kiwi_cli.weights.lora import aliases_of, match, scale_of
from kiwi_cli.weights.lora_scale import Scales, read_scales

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HeldTensors:
    """Tensors in memory, as `TensorFiles` has those of a file."""

    label: str
    infos: Mapping[str, torch.Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape."""
        return {key: tuple(tensor.shape) for key, tensor in self.infos.items()}

    def tensor(self, key: str) -> torch.Tensor:
        """One of them."""
        return self.infos[key]


def read_adapter(
    source: Path | Mapping[str, torch.Tensor], targets: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """A LoRA's tensors under the library's names, with its scale multiplied in.

    Args:
        source: a file, or tensors, in any key style.
        targets: the transformer's parameters by name; those of adapters that are there already are passed over.

    Raises:
        CheckpointError: nothing, or only part, fits, or it changes more than low-rank matrices can say.
    """
    if isinstance(source, Path):
        files: TensorFiles | HeldTensors = TensorFiles.open_file(source)
        scales = read_scales(source)
    else:
        files, scales = HeldTensors("passed as tensors", source), Scales()
    shapes = {
        name.replace(".base_layer.", "."): tuple(value.shape) for name, value in targets.items() if ".lora_" not in name
    }
    matched, _ = match(files, aliases_of(shapes), shapes)
    state: dict[str, torch.Tensor] = {}
    for name, delta in matched.items():
        if "down" not in delta:
            raise CheckpointError(
                f"the LoRA '{files.label}' changes '{name}' as no adapter can",
                "merge it with `kiwi edit --lora`",
            )
        factor, up = scale_of(files, delta, scales), files.tensor(delta["up"])
        module = f"transformer.{name.removesuffix('.weight')}"
        state[f"{module}.lora_A.weight"] = files.tensor(delta["down"])
        state[f"{module}.lora_B.weight"] = up if factor == 1.0 else up * factor
    return state
