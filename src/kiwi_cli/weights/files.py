"""Files to tensors: open a checkpoint's parts, read their headers, fill a module with them, strictly.

Nothing here knows a model class. Everything read is untrusted: only JSON and safetensors are opened, names in
an index may not leave their folder, and shapes are compared before a byte of data is touched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi_cli.errors import CheckpointError
from kiwi_cli.weights.layout import RELEASED, SAVED
from kiwi_cli.weights.tensorfile import LFS_POINTER, WEIGHT_TYPES, TensorInfo, lfs_pointer, read_header

if TYPE_CHECKING:
    import torch

MAX_JSON_BYTES = 64 * 2**20
"""An index of a 19 GB checkpoint is below 1 MB; the tokenizer, the largest, 11 MB."""

RELAYOUT_HINT = "use a folder in the released Kiwi-Edit layout"

PIPELINE_CLASS = "KiwiEditPipeline"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"'{path}' is too large for a config", RELAYOUT_HINT)
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(LFS_POINTER.decode()):
            raise lfs_pointer(path)
        data = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"'{path.parent}' is not a Kiwi-Edit checkpoint: no {path.name}", RELAYOUT_HINT) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read '{path}': {error}", "fetch the file again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"'{path}' does not hold a JSON object", "fetch the file again")
    return data


def check_layout(folder: Path) -> None:
    """That a folder is a Kiwi-Edit checkpoint, by its index alone.

    Raises:
        CheckpointError: no `model_index.json`, or one of another pipeline.
    """
    name = read_json(folder / "model_index.json").get("_class_name")
    found = name[-1] if isinstance(name, list) and name else name
    if found not in (PIPELINE_CLASS, "KiwiPipeline"):
        raise CheckpointError(
            f"'{folder}' holds another kind of model: '{found}'", f"{RELAYOUT_HINT} ({PIPELINE_CLASS})"
        )


def is_saved(folder: Path) -> bool:
    """Whether a folder is what `save_pretrained` writes, by its index."""
    index = read_json(folder / "model_index.json")
    return isinstance(index.get("tokenizer"), list) and "processor" not in index


def open_all(folder: Path) -> dict[tuple[str, str], TensorFiles]:
    """Every part's headers and indexes, checked: what is there to see without reading weights or importing torch.

    Returns:
        (folder, stem) as in the layout, the released one or that of a saved pipeline -> its tensors.

    Raises:
        CheckpointError: as `TensorFiles.open`.
    """
    layout = SAVED if is_saved(folder) else RELEASED
    return {(part, stem): TensorFiles.open(folder / part, stem) for part, stem in layout.weights}


def parameter_count(folder: Path) -> int:
    """Number of stored parameters, from the headers."""
    return sum(info.elements for files in open_all(folder).values() for info in files.infos.values())


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one part of a checkpoint, in one file or in shards.

    Attributes:
        label: what errors call it: the path of the file or of the index.
        where: key -> file that holds it.
        infos: key -> its type, shape and place in that file.
    """

    label: Path
    where: Mapping[str, Path]
    infos: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, folder: Path, stem: str) -> TensorFiles:
        """Read the headers of `{stem}.safetensors`, or of the shards named by `{stem}.safetensors.index.json`.

        Raises:
            CheckpointError: missing or broken files, an index that names files elsewhere or keys they lack.
        """
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            return cls.open_file(single)
        if not index.is_file():
            if variants := sorted(folder.glob(f"{stem}.*.safetensors")):
                raise CheckpointError(
                    f"'{folder}' holds a variant alone: '{variants[0].name}'",
                    "save the pipeline without a variant; from_pretrained(..., variant=...) in Python reads this one",
                )
            raise CheckpointError(f"no {single.name} in '{folder}'", RELAYOUT_HINT)
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"'{index}' has no weight_map", "fetch the file again")
        paths = {name: _shard(folder, name, index) for name in weight_map.values()}
        headers = {name: read_header(path) for name, path in sorted(paths.items())}
        for key, name in weight_map.items():
            if key not in headers[name]:
                raise CheckpointError(
                    f"'{paths[name]}' has no tensor '{key}', which its index names", "fetch the file again"
                )
        where = {key: paths[name] for key, name in weight_map.items()}
        return cls(index, where, {key: headers[name][key] for key, name in weight_map.items()})

    @classmethod
    def open_file(cls, path: Path) -> TensorFiles:
        """Read the header of one file."""
        infos = read_header(path)
        return cls(path, dict.fromkeys(infos, path), infos)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape."""
        return {key: info.shape for key, info in self.infos.items()}

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor on the CPU in stored precision, in memory of its own."""
        import torch

        info = self.infos[key]
        buffer = torch.empty(info.stop - info.start, dtype=torch.uint8)
        with self.where[key].open("rb", buffering=0) as file:
            file.seek(info.start)
            view: memoryview = memoryview(buffer.numpy())  # type: ignore[arg-type]
            filled = 0
            while filled < len(view):
                count = file.readinto(view[filled:])
                if not count:
                    raise CheckpointError(f"'{self.where[key]}' became shorter while it was read", "fetch it again")
                filled += count
        return buffer.view(torch_dtype(info.dtype)).reshape(info.shape)

    def tensors(
        self, wanted: Mapping[str, torch.dtype], device: torch.device | str = "cpu"
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Each wanted key with its tensor, in file order.

        A tensor that stays on the CPU in its stored precision is mapped: nothing is read until it is used, and the
        system can drop its pages again. Any other is read into memory of its own, one at a time, because the pages
        of a mapping would stay resident beside the copy.
        """
        import torch

        by_file: dict[Path, list[str]] = {}
        for key in sorted(wanted, key=lambda key: (str(self.where[key]), self.infos[key].start)):
            by_file.setdefault(self.where[key], []).append(key)
        for path, keys in by_file.items():
            mapping: Any = None
            for key in keys:
                info = self.infos[key]
                stored = torch_dtype(info.dtype)
                aligned = info.start % stored.itemsize == 0
                if torch.device(device).type == "cpu" and stored == wanted[key] and aligned and info.elements:
                    if mapping is None:
                        size = path.stat().st_size
                        mapping = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
                    count = info.stop - info.start
                    flat = torch.empty(0, dtype=torch.uint8).set_(mapping, info.start, (count,), (1,))
                    yield key, flat.view(stored).reshape(info.shape)
                else:
                    yield key, self.tensor(key).to(device, wanted[key])


def torch_dtype(name: str) -> torch.dtype:
    """The library's type of a type in the file format."""
    import torch

    return {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
    }[name]


def _shard(folder: Path, name: Any, index: Path) -> Path:
    inside = isinstance(name, str) and Path(name).name == name and "\\" not in name and name.endswith(".safetensors")
    if not inside:
        raise CheckpointError(f"'{index}' names a file outside its folder: '{name}'", "do not use this checkpoint")
    return folder / name


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
            elif part.infos[key].dtype not in WEIGHT_TYPES:
                misshapen.append(f"{key} is {part.infos[key].dtype}, no type of weights")
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
        targets[key]: tensor
        for part, targets in plan
        for key, tensor in part.tensors({key: dtype(target) for key, target in targets.items()}, device)
    }
    module.load_state_dict(state, strict=True, assign=True)
    _settle(module, device)


def _settle(module: torch.nn.Module, device: torch.device | str) -> None:
    """Make a filled module ready to work: no gradients, its buffers where its weights are."""
    module.requires_grad_(False)
    module.eval()
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner).register_buffer(leaf, buffer.to(device), persistent=False)


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
