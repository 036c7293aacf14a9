"""Prompts of one form as fixed shapes: what never differs is laid out once, and a step only fills in the words.

`KiwiTrainModel.context` counts, searches and compares on the host; a GPU would be waited for at each. Here a prompt is
prefix, words, tail, padded on the left to one length, and every place but the words' is known before the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from kiwi_cli.model.mllm import KiwiInstructionEncoder
from kiwi_cli.model.prompt import IMAGE_TOKEN, QUERY_TOKEN, REFERENCE_SUFFIX, VIDEO_TOKEN, InputBuilder, mrope_positions

MULTIPLE = 8
"""Prompts' lengths are multiples of it: what attention kernels with a mask want."""
_WORDS = "make it snowy"


@dataclass
class PromptForm:
    """All prompts of one mode, size and number of frames.

    Attributes:
        mode: 'video', 'image' or 'reference'.
        prefix, tail: (a,), (c,) token ids before and after the words.
        positions: (words + 1, 3, length) of a prompt of so many words, padded.
        length: of all prompts, padded.
        seen, pictures: first place and number of the source's vision tokens in the prefix, of the reference's in the
            tail. queries: the same of the queries, in the tail.
    """

    mode: Any
    prefix: torch.Tensor
    tail: torch.Tensor
    positions: torch.Tensor
    length: int
    seen: tuple[int, int]
    pictures: tuple[int, int]
    queries: tuple[int, int]

    @classmethod
    def of(cls, inputs: InputBuilder, frames: int, width: int, height: int, reference: bool, words: int) -> PromptForm:
        """The form of prompts about clips of that size with at most `words` tokens of words, on the CPU."""
        clip = np.zeros((frames, height, width, 3), np.uint8)
        built = inputs(clip, _WORDS, [Image.fromarray(clip[0])] if reference else [])
        ids = built.input_ids[0].tolist()
        text = inputs.tokenizer(_WORDS + (REFERENCE_SUFFIX if reference else ""), add_special_tokens=False)["input_ids"]
        starts = [at for at in range(len(ids)) if ids[at : at + len(text)] == text]
        assert len(starts) == 1, "the words stand once in a prompt"
        prefix, tail = ids[: starts[0]], ids[starts[0] + len(text) :]
        video, image, query = (inputs.token_id(token) for token in (VIDEO_TOKEN, IMAGE_TOKEN, QUERY_TOKEN))
        length = -(-(len(prefix) + words + len(tail)) // MULTIPLE) * MULTIPLE
        grids = {video: built.video_grid_thw, image: built.image_grid_thw}
        positions = torch.zeros(words + 1, 3, length, dtype=torch.long)
        for count in range(words + 1):
            found = mrope_positions(prefix + [query] * count + tail, grids, inputs.geometry, still=image)[:, 0]
            positions[count, :, length - found.shape[1] :] = found
        return cls(
            built.mode,
            torch.tensor(prefix),
            torch.tensor(tail),
            positions,
            length,
            _block(prefix, (video, image)),
            _block(tail, (image,)),
            _block(tail, (query,)),
        )

    def to(self, device: torch.device) -> PromptForm:
        """The same with its tables on a device."""
        self.prefix, self.tail, self.positions = (
            value.to(device) for value in (self.prefix, self.tail, self.positions)
        )
        return self

    def ids(self, text: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """(B, words) ids of the words and `places` -> (B, length), padded on the left with 0."""
        first, last = len(self.prefix), self.length - len(self.tail)
        words = text.long().gather(1, (place - first).clamp(0, text.shape[1] - 1))
        front = self.prefix[place.clamp(0, first - 1)]
        whole = torch.where(place < 0, torch.zeros_like(front), torch.where(place < first, front, words))
        return torch.cat([whole[:, :last], self.tail.expand(len(text), -1)], dim=1)

    def places(self, count: torch.Tensor) -> torch.Tensor:
        """(B, length), from the words' numbers (B,): what number of its prompt stands there; below 0 it is padding."""
        padding = self.length - len(self.prefix) - len(self.tail) - count.long()
        return torch.arange(self.length, device=count.device) - padding[:, None]

    def context(
        self,
        mllm: KiwiInstructionEncoder,
        text: torch.Tensor,
        count: torch.Tensor,
        seen: torch.Tensor,
        picture: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Context tokens (B, N, D): what `KiwiInstructionEncoder.read` gives, and no value is read by the host.

        Args:
            text: (B, words) ids, of which the first `count` (B,) are words.
            seen: (B, V, D) vision features of the source. picture: (B, P, D) of the reference, or None.
            dtype: of the features between the layers.
        """
        place, tail = self.places(count), self.length - len(self.tail)
        embeds = functional.embedding(self.ids(text, place), mllm.qwen.get_input_embeddings().weight).to(dtype)
        start, number = self.seen
        inside = place - start
        features = seen.to(dtype).gather(1, inside.clamp(0, number - 1)[..., None].expand(-1, -1, seen.shape[-1]))
        embeds = torch.where(((inside >= 0) & (inside < number))[..., None], features, embeds)
        if picture is not None:
            embeds = _put(embeds, tail + self.pictures[0], picture.to(dtype))
        queries = mllm._queries()[self.mode].to(dtype).expand(len(text), -1, -1)
        embeds = _put(embeds, tail + self.queries[0], queries)
        hidden = mllm.qwen.language_model(
            inputs_embeds=embeds,
            position_ids=self.positions[count.long()].permute(1, 0, 2),
            attention_mask={"full_attention": self._mask(place)},
            use_cache=False,
        ).last_hidden_state
        context = mllm.connector(hidden[:, -queries.shape[1] :])
        if picture is not None:
            start = tail + self.pictures[0]
            context = torch.cat([mllm.ref_connector(hidden[:, start : start + self.pictures[1]]), context], dim=1)
        return context

    def _mask(self, place: torch.Tensor) -> torch.Tensor:
        """(B, 1, L, L): backwards, and not at padding, which looks at itself so that nothing is divided by zero."""
        number = torch.arange(self.length, device=place.device)
        causal, itself = number[None] <= number[:, None], number[None] == number[:, None]
        return (causal & (place >= 0)[:, None] | itself)[:, None]


def _put(embeds: torch.Tensor, start: int, rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([embeds[:, :start], rows, embeds[:, start + rows.shape[1] :]], dim=1)


def _block(ids: list[int], tokens: tuple[int, ...]) -> tuple[int, int]:
    """First place and number of these tokens, which stand together; (0, 0) where there are none."""
    places = [at for at, token in enumerate(ids) if token in tokens]
    return (places[0], len(places)) if places else (0, 0)
