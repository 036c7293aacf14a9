"""A cache as training samples: mapped tensors, and the prompt around them.

    rows = CachedRows(Path("cache"), model_inputs(folder))
    rows[0].target          # (C, T, h, w) latents
    rows.held_out           # the same of the rows that are not trained on

The prompt is built from its text when a sample is asked for: the language model's queries and tokenizer are not part of
what is cached.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from kiwi_cli.data.shards import CacheError, Place, ShardReader, read_index
from kiwi_cli.errors import CheckpointError, UsageError
from kiwi_cli.model.prompt import (
    IMAGE_TOKEN,
    QUERY_TOKEN,
    REFERENCE_SUFFIX,
    VIDEO_TOKEN,
    InputBuilder,
    Mode,
    check_instruction,
    mrope_positions,
)
from kiwi_cli.train.batch import Bucket, Prompt, Sample

Grid = tuple[int, int, int]
"""Patches of a vision block in time, height and width."""

Layout = tuple[str, tuple[int, ...]]
"""Type and shape of a tensor."""

TENSORS = ("target", "source", "vision", "reference", "picture", "coverage")
"""What a row may have, as `write_cache` names it."""

_KEPT = 4096  # prompts and shapes of prompts that are kept: data sets have many rows with the same words


class PromptBuilder:
    """`InputBuilder`'s prompts from the patch grids alone: the pixels went into the cached features.

    Args:
        inputs: of the model that is trained.
    """

    def __init__(self, inputs: InputBuilder) -> None:
        self.inputs = inputs
        self._video, self._image, self._query = (
            inputs.token_id(token) for token in (VIDEO_TOKEN, IMAGE_TOKEN, QUERY_TOKEN)
        )
        self._ids = lru_cache(_KEPT)(self._tokenized)
        self._positions = lru_cache(_KEPT)(self._placed)

    def __call__(self, mode: Mode, instruction: str, grids: Sequence[Grid], vision: torch.Tensor) -> Prompt:
        """One prompt.

        Args:
            grids: of the source and, in reference mode, the reference picture.
            vision: (V, D) features of all of them in order.

        Raises:
            UsageError: an empty instruction, or one that holds a reserved token of the model.
        """
        runs = self._ids(mode, instruction)
        counts = [time * height * width // self.inputs.geometry.merge**2 for time, height, width in grids]
        pads, blocks, parts = {self._video, self._image}, iter(counts), []
        shape: list[int] = []  # lengths of the stretches of text around the vision blocks
        text = 0
        for ids in runs:
            if int(ids[0]) in pads:
                shape.append(text)
                text = 0
                parts.append(ids.expand(next(blocks)))
            else:
                text += len(ids)
                parts.append(ids)
        positions = self._positions(mode == "image", (*shape, text), tuple(grids))
        return Prompt(mode, torch.cat(parts), positions, vision)

    def _tokenized(self, mode: Mode, instruction: str) -> list[torch.Tensor]:
        """The prompt's ids, int64, in pieces: stretches of text (queries included), and one id for each vision block.

        The same messages as in `InputBuilder`, with single placeholders: a special token is a token of its own
        whatever stands around it, so repeating it in the text or in the ids is the same.
        """
        check_instruction(instruction, self.inputs.tokenizer)
        text = instruction + REFERENCE_SUFFIX if mode == "reference" else instruction
        content = [{"type": "image" if mode == "image" else "video"}, {"type": "text", "text": text}]
        if mode == "reference":
            content.append({"type": "image"})
        content.append({"type": "text", "text": QUERY_TOKEN})
        pieces: list[torch.Tensor] = []
        run: list[int] = []
        for token in self.inputs._tokenize(content, None, None):
            if token in (self._video, self._image):
                pieces += [torch.tensor(run), torch.tensor([token])]
                run = []
            else:
                run += [token] * (self.inputs.queries[mode] if token == self._query else 1)
        return [*pieces, torch.tensor(run)]

    def _placed(self, still: bool, texts: tuple[int, ...], grids: tuple[Grid, ...]) -> torch.Tensor:
        """Positions (3, L) of a prompt of that shape: they do not depend on which text it is."""
        first = self._image if still else self._video
        pads = [first, *[self._image] * (len(grids) - 1)]
        ids = [self._query] * texts[0]
        for pad, (time, height, width), text in zip(pads, grids, texts[1:], strict=True):
            ids += [pad] * (time * height * width // self.inputs.geometry.merge**2) + [self._query] * text
        found: dict[int, torch.Tensor | None] = {
            pad: torch.tensor([grid]) for pad, grid in zip(pads, grids, strict=True)
        }
        return mrope_positions(ids, found, self.inputs.geometry, self._image)[:, 0]


class CachedRows:
    """The rows of one cache that are trained on, or that are held out.

    Args:
        folder: what `kiwi data cache` wrote.
        inputs: of the model that is trained (`model_inputs`, or `KiwiPipeline.inputs`).
        split: 'train' or 'held_out'.
        weight_strength: how much more the edited region counts, where a row has a mask: 1 + strength inside it for 1
            outside, then scaled to mean 1. 0 gives no weights.

    Attributes:
        name: of the data set.
        settings: what it was encoded with.

    Raises:
        CacheError: no complete cache, or a damaged one.
    """

    def __init__(self, folder: Path, inputs: InputBuilder, split: str = "train", weight_strength: float = 0.0) -> None:
        if weight_strength < 0:
            raise UsageError(f"the weight strength is {weight_strength}", "it is a number from 0; 0 weights nothing")
        index = read_index(folder)
        self.folder, self.split, self.weight_strength = folder, split, weight_strength
        self.name: str = index["name"]
        self.settings: dict[str, Any] = index["settings"]
        self._prompts = PromptBuilder(inputs)
        self._shards = ShardReader(folder)
        # Columns, not a dict for each row: hundreds of thousands of rows stay small.
        rows = [row for row in index["rows"] if row["split"] == split]
        self._texts: list[str] = [row["prompt"] for row in rows]
        self._kinds: list[str] = [sys.intern(row["kind"]) for row in rows]
        self._layouts: list[Layout] = []
        self._places: dict[str, np.ndarray] = {name: np.full((len(rows), 3), -1, np.int64) for name in TENSORS}
        numbers: dict[Layout, int] = {}
        for name, places in self._places.items():
            for number, row in enumerate(rows):
                if key := row["tensors"].get(name):
                    place = self._shards.place(key)
                    layout = numbers.setdefault((place.dtype, place.shape), len(numbers))
                    places[number] = place.shard, place.start, layout
        self._layouts = list(numbers)
        self._shards.where.clear()
        same: dict[Bucket, Bucket] = {}
        found = (self._bucket_of(number, row["mode"]) for number, row in enumerate(rows))
        self._buckets = [same.setdefault(bucket, bucket) for bucket in found]

    @cached_property
    def held_out(self) -> CachedRows:
        """The held-out rows of the same cache; there may be none."""
        return CachedRows(self.folder, self._prompts.inputs, "held_out", self.weight_strength)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Sample:
        """The sample with the first view of its reference."""
        return self.sample(index)

    def sample(self, index: int, position: int | None = None) -> Sample:
        """A row's sample.

        Args:
            position: number of the sample in the run: each reference is cached in several views, and it draws one.
                None takes the first.

        Raises:
            CacheError: its tensors are gone.
        """
        mode = cast("Mode", self._buckets[index].mode)
        blocks = [block for name in ("vision", "picture") if (block := self._tensor(name, index)) is not None]
        flat = [block.flatten(0, 2) for block in blocks]
        target, views = self._tensor("target", index), self._tensor("reference", index)
        assert target is not None
        return Sample(
            prompt=self._prompts(
                mode,
                self._texts[index],
                [self._grid(block) for block in blocks],
                torch.cat(flat) if flat[1:] else flat[0],
            ),
            target=target,
            source=self._tensor("source", index),
            references=None if views is None else views[_drawn(position, len(views))],
            weight=self._weight(self._tensor("coverage", index)),
        )

    def bucket(self, index: int) -> Bucket:
        """What must be equal in a batch."""
        return self._buckets[index]

    @property
    def buckets(self) -> list[Bucket]:
        """The bucket of each row, as `Sampler` takes them."""
        return self._buckets

    def prompt(self, index: int) -> str:
        """The instruction."""
        return self._texts[index]

    def kind(self, index: int) -> str:
        """What kind of edit it is; empty where nobody said."""
        return self._kinds[index]

    def check_model(self, vision: str) -> None:
        """Refuse a cache made with another vision tower.

        Args:
            vision: `encode.vision_digest` of the model that is trained.

        Raises:
            CheckpointError: it differs.
        """
        if vision != self.settings["vision"]:
            raise CheckpointError(
                f"the cache '{self.folder}' was made with another model's vision tower",
                "run `kiwi data cache` with this model and another --out",
            )

    def _place(self, name: str, index: int) -> Place | None:
        shard, start, layout = self._places[name][index].tolist()
        return None if shard < 0 else Place(shard, start, *self._layouts[layout])

    def _tensor(self, name: str, index: int) -> torch.Tensor | None:
        place = self._place(name, index)
        return None if place is None else self._shards.tensor(place)

    def _weight(self, coverage: torch.Tensor | None) -> torch.Tensor | None:
        if coverage is None or not self.weight_strength:
            return None
        weight = 1.0 + self.weight_strength * coverage
        return weight / weight.mean()

    def _grid(self, block: torch.Tensor) -> Grid:
        merge = self._prompts.inputs.geometry.merge
        time, height, width = block.shape[:3]
        return time, height * merge, width * merge

    def _bucket_of(self, index: int, mode: str) -> Bucket:
        target, picture = self._place("target", index), self._place("picture", index)
        views = self._place("reference", index)
        try:
            _, frames, height, width = target.shape if target else ()
            references = views.shape[2] if views else 0
            tokens = math.prod(picture.shape[:3]) if picture else 0
        except (ValueError, IndexError) as error:
            raise CacheError(f"the index of '{self.folder}' is damaged: {error}", "make the cache again") from error
        return Bucket(mode, frames, height, width, references, tokens)


def _drawn(position: int | None, count: int) -> int:
    return 0 if position is None else random.Random(position).randrange(count)


def model_inputs(folder: Path) -> InputBuilder:
    """The prompt builder of a checkpoint in the released layout, without its weights.

    Raises:
        CheckpointError: missing or broken configs or tokenizer.
    """
    from kiwi_cli.model import checkpoint
    from kiwi_cli.model.mllm import KiwiInstructionEncoder
    from kiwi_cli.weights import read_json

    tokenizer, colour = checkpoint.load_processor(folder / "processor")
    source = folder / "mllm_encoder/config.json"
    config = {key: value for key, value in read_json(source).items() if key != "mllm_model_path"}
    config["qwen_config"] = read_json(folder / "processor/qwen_config.json")
    mllm = checkpoint.build(KiwiInstructionEncoder, config, source)  # on `meta`: nothing is allocated
    return InputBuilder(tokenizer, mllm.query_counts, mllm.geometry(**colour), mllm.bounds)
