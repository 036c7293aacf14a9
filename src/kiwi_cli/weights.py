"""Files to tensors: find a checkpoint, read its headers, fill a module with it, strictly.

Nothing here knows a model class. Everything read is untrusted: only JSON and safetensors are opened, names in
an index may not leave their folder, and shapes are compared before a byte of data is touched.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.errors import CheckpointError
from kiwi_cli.variants import RELEASED_FILES, VARIANTS, find_variant

if TYPE_CHECKING:
    import torch

MAX_JSON_BYTES = 64 * 2**20
"""An index of a 19 GB checkpoint is below 1 MB; the tokenizer, the largest, 11 MB."""

RELAYOUT_HINT = "use a folder in the released Kiwi-Edit layout"


def locate(name_or_path: str) -> Path:
    """A checkpoint folder on this machine for a variant's name, a folder or a Hub id.

    A folder that exists is taken as it is. Anything else is asked of the Hub's cache, and fetched if need be.

    Raises:
        CheckpointError: nothing of that name, or the Hub cannot be reached.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    variant = find_variant(name_or_path)
    repo = variant.repo if variant else name_or_path
    if folder.exists():
        raise CheckpointError(f"not a checkpoint folder: '{name_or_path}'", RELAYOUT_HINT)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or ".." in repo:
        names = [v.name for v in VARIANTS]
        close = difflib.get_close_matches(name_or_path, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known models: {', '.join(names)}"
        raise CheckpointError(f"no such model or folder: '{name_or_path}'", hint)
    return _fetch(repo)


def _fetch(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(RELEASED_FILES), local_files_only=True))
    except Exception:  # any reason not to have it whole in the cache means: ask the Hub
        pass
    try:
        return Path(snapshot_download(repo, allow_patterns=list(RELEASED_FILES)))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"could not fetch '{repo}': {reason}", "check the name and the network, then try again"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"'{path}' is too large for a config", RELAYOUT_HINT)
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{path.parent}' is not a Kiwi-Edit checkpoint: no {path.name}", RELAYOUT_HINT) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read '{path}': {error}", "fetch the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"'{path}' does not hold a JSON object", "fetch the file again")
    return data


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one part of a checkpoint, in one file or in shards.

    Attributes:
        label: what errors call it: the path of the file or of the index.
        where: key -> file that holds it.
        shapes: key -> shape.
    """

    label: Path
    where: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, folder: Path, stem: str) -> TensorFiles:
        """Read the headers of `{stem}.safetensors`, or of the shards named by `{stem}.safetensors.index.json`.

        Raises:
            CheckpointError: missing or broken files, an index that names files elsewhere or keys they lack.
        """
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            shapes = _read_header(single)
            return cls(single, dict.fromkeys(shapes, single), shapes)
        if not index.is_file():
            raise CheckpointError(f"no {single.name} in '{folder}'", RELAYOUT_HINT)
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"'{index}' has no weight_map", "fetch the file again")
        headers = {name: _read_header(_shard(folder, name, index)) for name in set(weight_map.values())}
        for key, name in weight_map.items():
            if key not in headers[name]:
                raise CheckpointError(
                    f"'{folder / name}' has no tensor '{key}', which its index names", "fetch the file again"
                )
        where = {key: folder / name for key, name in weight_map.items()}
        return cls(index, where, {key: headers[name][key] for key, name in weight_map.items()})

    def tensors(self, keys: Iterable[str], device: torch.device | str = "cpu") -> Iterable[tuple[str, torch.Tensor]]:
        """Each key with its tensor, in stored precision, file by file; on the CPU it is mapped, not read."""
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.where[key], []).append(key)
        for path, names in by_file.items():
            with safe_open(path, framework="pt", device=str(device)) as file:
                for name in names:
                    yield name, file.get_tensor(name)


def _shard(folder: Path, name: Any, index: Path) -> Path:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointError(f"'{index}' names a file outside its folder: '{name}'", "do not use this checkpoint")
    return folder / name


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:  # refuses oversized headers and truncated data
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"missing file: '{path}'", "fetch the checkpoint again") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' is damaged or not a safetensors file: {error}", "fetch the file again"
        ) from error


def fill(
    module: torch.nn.Module,
    files: Iterable[TensorFiles],
    *,
    rename: Callable[[str], str] = lambda key: key,
    unused: tuple[str, ...] = (),
    dtype: Callable[[str], torch.dtype],
    device: torch.device | str = "cpu",
) -> None:
    """Give a module built on `meta` its weights.

    Args:
        module: its parameters are replaced, not copied into; its buffers stay.
        files: the tensors; together they must be exactly the module's.
        rename: stored key -> module key.
        unused: prefixes of stored keys that are known not to be needed.
        dtype: module key -> precision; stored tensors of any precision are converted.
        device: where the weights go.

    Raises:
        CheckpointError: missing, unexpected or misshapen keys, naming the first few and the file.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    plan: list[tuple[TensorFiles, dict[str, str]]] = []
    seen: set[str] = set()
    unexpected: list[str] = []
    misshapen: list[str] = []
    label = ""
    for part in files:
        label = label or str(part.label)
        targets: dict[str, str] = {}
        for key, shape in part.shapes.items():
            if key.startswith(unused) if unused else False:
                continue
            target = rename(key)
            if target not in expected or target in seen:
                unexpected.append(key)
            elif shape != expected[target]:
                misshapen.append(f"{key} is {_dims(shape)}, needs {_dims(expected[target])}")
            seen.add(target)
            targets[key] = target
        plan.append((part, targets))
    missing = [key for key in expected if key not in seen]
    for problem, names in (("lacks", missing), ("has unexpected", unexpected), ("has misshapen", misshapen)):
        if names:
            raise CheckpointError(
                f"'{label}' {problem} {len(names)} of the model's tensors: {_first(names)}",
                "the weights and the configs of this checkpoint do not belong together",
            )
    state = {
        targets[key]: tensor.to(dtype(targets[key]))
        for part, targets in plan
        for key, tensor in part.tensors(targets, device)
    }
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(False)
    module.eval()
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_buffer(leaf, buffer.to(device), persistent=False)


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
