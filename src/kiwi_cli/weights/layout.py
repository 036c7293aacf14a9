"""Which files a checkpoint consists of: the one list that download, cache check, conversion and loader read.

A layout names configs exactly and weights by folder and stem, because how weights are cut into shards is only
known from a repository's listing or an index. Nothing else of a repository is ever fetched or opened: no `*.py`,
no pickles.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kiwi_cli.errors import CheckpointError

STEM = "diffusion_pytorch_model"
MAX_INDEX_BYTES = 64 * 2**20  # one of a 19 GB checkpoint is below 1 MB
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
PICKLE_HINT = "pickles run code when they are opened; use a safetensors file, or save it as one where it came from"


@dataclass(frozen=True)
class Layout:
    """The files of one kind of checkpoint, as paths inside its folder.

    Attributes:
        required: files without which it does not load.
        optional: files that are taken along when they are there.
        weights: (folder, stem): `folder/stem.safetensors`, or its numbered shards and index.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    weights: tuple[tuple[str, str], ...]

    def choose(self, names: Iterable[str]) -> tuple[list[str], list[str]]:
        """Which of a listing's files are needed, and which needed ones the listing lacks."""
        listed = set(names)
        chosen = [name for name in (*self.required, *self.optional) if name in listed]
        lacking = [name for name in self.required if name not in listed]
        for folder, stem in self.weights:
            path = f"{folder}/{stem}".lstrip("/")
            shards = sorted(n for n in listed if re.fullmatch(rf"{re.escape(path)}-\d+-of-\d+\.safetensors", n))
            if f"{path}.safetensors" in listed:
                chosen.append(f"{path}.safetensors")
            elif f"{path}.safetensors.index.json" in listed and shards:
                chosen += [f"{path}.safetensors.index.json", *shards]
            else:
                lacking.append(f"{path}.safetensors")
        return chosen, lacking

    def missing(self, root: Path) -> list[str]:
        """Which needed files a folder lacks; shards are read from its indexes."""
        lacking = [name for name in self.required if not (root / name).is_file()]
        for folder, stem in self.weights:
            single, index = root / folder / f"{stem}.safetensors", root / folder / f"{stem}.safetensors.index.json"
            if single.is_file():
                continue
            if not index.is_file():
                lacking.append(f"{folder}/{stem}.safetensors".lstrip("/"))
                continue
            try:
                if index.stat().st_size > MAX_INDEX_BYTES:
                    raise ValueError
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                names = set()  # a broken index is the loader's to refuse, with its own words
            lacking += [
                f"{folder}/{name}".lstrip("/")
                for name in sorted(map(str, names))
                if not (root / folder / name).is_file()
            ]
        return lacking


TOKENIZER_OPTIONAL = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "video_preprocessor_config.json",
    "vocab.json",
)

RELEASED = Layout(
    required=(
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "mllm_encoder/config.json",
        "source_embedder/config.json",
        "ref_embedder/config.json",
        "scheduler/scheduler_config.json",
        "processor/qwen_config.json",
        "processor/preprocessor_config.json",
        "processor/tokenizer_config.json",
        "processor/tokenizer.json",
    ),
    optional=(
        "mllm_encoder/generation_config.json",
        "understands.json",
        *(f"processor/{name}" for name in TOKENIZER_OPTIONAL),
    ),
    weights=(
        ("transformer", STEM),
        ("vae", STEM),
        ("mllm_encoder", "model"),
        ("mllm_encoder", STEM),
        ("source_embedder", STEM),
        ("ref_embedder", STEM),
    ),
)
"""The released Kiwi-Edit layout."""

SAVED = Layout(
    required=(
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "mllm_encoder/config.json",
        "source_embedder/config.json",
        "ref_embedder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/tokenizer.json",
    ),
    optional=("understands.json", "use.json", *(f"tokenizer/{name}" for name in TOKENIZER_OPTIONAL)),
    weights=tuple((part, STEM) for part in ("transformer", "vae", "mllm_encoder", "source_embedder", "ref_embedder")),
)
"""What `KiwiPipeline.save_pretrained` writes: each part under the library's own names, the language model in one."""

QWEN_BASE = Layout(
    required=("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"),
    optional=("generation_config.json", *TOKENIZER_OPTIONAL),
    weights=(("", "model"),),
)
"""Qwen2.5-VL in its Hub layout, which a raw checkpoint needs."""

WAN_BASE = Layout(
    required=("transformer/config.json", "vae/config.json"),
    optional=(),
    weights=(("transformer", STEM), ("vae", STEM)),
)
"""Wan 2.2 in the library's layout, which a raw checkpoint needs."""

WAN_BASE_WITHOUT_TRANSFORMER = Layout(WAN_BASE.required, (), (("vae", STEM),))
"""The same for a raw checkpoint that holds all of the transformer itself: 10 GB less to fetch."""


def choose_raw(names: Iterable[str], where: str) -> str:
    """The training checkpoint among a folder's or a repository's files: the only one, or the last step.

    Raises:
        CheckpointError: none, or several with nothing to choose by, or only pickles.
    """
    files = sorted(names)
    found = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if not found:
        if pickles := [name for name in files if name.endswith(PICKLES)]:
            raise CheckpointError(f"'{where}' holds its weights as a pickle: '{pickles[0]}'", PICKLE_HINT)
        raise CheckpointError(f"no weights in '{where}'", "name a checkpoint in the released layout, or a raw one")
    if len(found) == 1:
        return found[0]
    finals = [name for name in found if Path(name).stem == "final"]
    steps = {name: int(match[1]) for name in found if (match := re.search(r"(\d+)$", Path(name).stem))}
    if finals:
        return finals[0]
    if len(steps) == len(found) and not any("-of-" in name for name in found):
        return max(steps, key=lambda name: steps[name])
    raise CheckpointError(f"'{where}' holds several checkpoints: {', '.join(found[:4])}", "name one of the files")
