"""Chunks of training data: what is drawn, how it lies in memory, and the drawing itself.

No torch here. A chunk is some scenes of one size and length, each with edits of some kinds, as bytes and token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kiwi_cli.data.views import SHRINK, shrink_on_white
from kiwi_cli.model.vision_sizes import IMAGE_MULTIPLE, PixelBounds, frame_sizes, smart_size
from kiwi_cli.synth.edits import LOCAL, STYLES, make_edit
from kiwi_cli.synth.natural import natural_scene, scene_with_things
from kiwi_cli.synth.photographs import read
from kiwi_cli.synth.phrases_looks import LOOK_WORDINGS
from kiwi_cli.synth.scenes import Scene, make_scene
from kiwi_cli.synth.wordings import EVERY_KIND, wording

TEXT = 30
"""Tokens of the longest instruction that is kept; a longer wording is drawn again."""

PLAIN = {
    "black-and-white": 1.4,
    "sepia": 1.0,
    "night": 1.3,
    "snow": 1.3,
    "negative": 1.0,
    "pencil": 1.2,
    "posterise": 1.2,
    "background": 5.0,
    "change": 4.0,
    "remove": 5.0,
    "add": 3.0,
}
"""Kinds without a reference picture, and how often each is drawn."""
SLOW = {
    "more-contrast": 4.0,
    "more-colour": 4.0,
    "warmer": 4.0,
    "moonlight": 2.5,
    "less-colour": 2.5,
    "brighter": 2.5,
    "pastel": 2.0,
    "low-key": 2.0,
    "cooler": 1.5,
    "tint": 6.0,
    "two-looks": 4.0,
}
"""Looks that a model was slow to tell from their neighbours, a tint, which has eight colours, and two looks, which have
many pairs."""
LOOKS = {**dict.fromkeys(LOOK_WORDINGS, 1.0), **SLOW}
"""Looks, and how often each is drawn."""
ON_ANYTHING = {**{kind: PLAIN[kind] for kind in (*STYLES, "add")}, **LOOKS}
"""Kinds of scenes without things."""
WITH_REFERENCE = {"reference-background": 1.0, "reference-subject": 1.6}


@dataclass(frozen=True)
class Spec:
    """One sort of chunk.

    Attributes:
        scenes: of a chunk. edits, references: of each scene, without and with a reference picture.
        looks: looks are among the edits. natural: scenes nearer to filmed ones, which have no things, and so only edits
            for which none is needed.
        things: on natural scenes too, which then have all kinds of edits.
    """

    name: str
    width: int
    height: int
    frames: int
    scenes: int
    edits: int = 4
    references: int = 1
    looks: bool = False
    natural: bool = False
    things: bool = False

    @property
    def kinds(self) -> Mapping[str, float]:
        """Kinds without a reference picture, and how often each is drawn."""
        if self.natural and not self.things:
            return ON_ANYTHING
        return {**PLAIN, **LOOKS} if self.looks else PLAIN


@dataclass(frozen=True)
class Tools:
    """What a process needs of the model.

    Attributes:
        tokenizer: its `tokenizer.json`. suffix: what a prompt with a reference adds to the instruction.
        bounds: on what the language model is shown.
        reduction, frames_per_latent: of the autoencoder.
        photographs: files that natural scenes are made of too.
    """

    tokenizer: str
    suffix: str
    bounds: PixelBounds
    reduction: int
    frames_per_latent: int
    photographs: tuple[str, ...] = ()

    def seen_size(self, spec: Spec) -> tuple[int, int]:
        """(width, height) of a frame as the language model sees it."""
        return frame_sizes(spec.width, spec.height, self.bounds)[1]

    def picture_size(self, spec: Spec) -> tuple[int, int]:
        """(width, height) of a reference picture as the language model sees it."""
        area = self.bounds.max_reference_tokens * IMAGE_MULTIPLE**2
        return smart_size(spec.width, spec.height, IMAGE_MULTIPLE, self.bounds.min_picture_area, area)

    def arrays(self, spec: Spec) -> dict[str, tuple[tuple[int, ...], str]]:
        """Name -> (shape, type) of a chunk's arrays. Edits of kinds without a reference come before those with one."""
        scenes, rows = spec.scenes, spec.edits + spec.references
        latents = (
            1 + (spec.frames - 1) // self.frames_per_latent,
            spec.height // self.reduction,
            spec.width // self.reduction,
        )
        (seen_w, seen_h), (pic_w, pic_h) = self.seen_size(spec), self.picture_size(spec)
        clip = (spec.frames, spec.height, spec.width, 3)
        return {
            "source": ((scenes, *clip), "u1"),
            "target": ((scenes, rows, *clip), "u1"),
            "reference": ((scenes, spec.references, 1, spec.height, spec.width, 3), "u1"),
            "seen": ((scenes, min(spec.frames, self.bounds.max_frames), seen_h, seen_w, 3), "u1"),
            "picture": ((scenes, spec.references, 1, pic_h, pic_w, 3), "u1"),
            "coverage": ((scenes, rows, *latents), "f4"),
            "text": ((scenes, rows, TEXT), "i2"),
            "length": ((scenes, rows), "i2"),
            "kind": ((scenes, rows), "i2"),
        }

    def chunk_bytes(self, spec: Spec) -> int:
        return sum(_padded(shape, kind) for shape, kind in self.arrays(spec).values())

    def views(self, spec: Spec, memory: np.ndarray) -> dict[str, np.ndarray]:
        """A chunk's arrays in a slot (bytes,)."""
        found, start = {}, 0
        for name, (shape, kind) in self.arrays(spec).items():
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            found[name] = memory[start : start + size].view(kind).reshape(shape)
            start += _padded(shape, kind)
        return found


def _padded(shape: tuple[int, ...], kind: str) -> int:
    return -(-int(np.prod(shape)) * np.dtype(kind).itemsize // 64) * 64


class Drawer:
    """Fills chunks: a function of the specification, the seed, the split and the photographs alone."""

    def __init__(self, tools: Tools) -> None:
        from tokenizers import Tokenizer

        self.tools = tools
        self.tokenizer = Tokenizer.from_file(tools.tokenizer)
        self.photographs = [read(path) for path in tools.photographs]

    def fill(self, spec: Spec, seed: int, held_out: bool, chunk: Mapping[str, np.ndarray]) -> None:
        """Scenes `seed`, `seed` + 1 and so on. Held-out ones go through all kinds in turn, all with held-out words."""
        seen, picture = self.tools.seen_size(spec), self.tools.picture_size(spec)
        for place in range(spec.scenes):
            scene = self.scene(spec, seed + place, held_out)
            rng = np.random.default_rng([seed + place, spec.frames, spec.width, int(held_out)])
            source = scene.source
            chunk["source"][place] = source
            picks = np.arange(len(source))
            if len(source) > self.tools.bounds.max_frames:
                picks = np.linspace(0, len(source) - 1, self.tools.bounds.max_frames).round().astype(int)
            for number, frame in enumerate(source[picks]):
                chunk["seen"][place, number] = _resized(Image.fromarray(frame), seen)
            for row, kind in enumerate(_kinds(spec, rng, (seed + place) if held_out else None)):
                edit = make_edit(scene, kind, rng, held_out)
                chunk["target"][place, row] = edit.target
                chunk["kind"][place, row] = EVERY_KIND.index(kind)
                everywhere = np.ones(edit.mask.shape, bool)
                chunk["coverage"][place, row] = self.coverage(edit.mask if kind in LOCAL else everywhere)
                ids = self._text(kind, edit.slots, rng, held_out)
                chunk["text"][place, row, : len(ids)] = ids
                chunk["text"][place, row, len(ids) :] = 0
                chunk["length"][place, row] = len(ids)
                if edit.reference is not None:
                    shown, number = Image.fromarray(edit.reference), row - spec.edits
                    view = shrink_on_white(shown, spec.width, spec.height, float(rng.uniform(*SHRINK)))
                    chunk["reference"][place, number, 0] = np.asarray(view)
                    chunk["picture"][place, number, 0] = _resized(shown, picture)

    def scene(self, spec: Spec, seed: int, held_out: bool) -> Scene:
        size = (spec.width, spec.height, spec.frames)
        if not spec.natural:
            return make_scene(seed, *size, held_out)
        made = scene_with_things if spec.things else natural_scene
        return made(seed, *size, held_out, self.photographs)

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """As `Encoder.coverage` for 4k + 1 frames: (F, H, W) to (T, h, w) fp32."""
        step, frames = self.tools.reduction, self.tools.frames_per_latent
        count, height, width = mask.shape
        cells = mask.reshape(count, height // step, step, width // step, step).mean((2, 4), dtype=np.float32)
        later = cells[1:].reshape(-1, frames, *cells.shape[1:]).mean(1)
        return np.concatenate([cells[:1], later])

    def _text(self, kind: str, slots: Mapping[str, str], rng: np.random.Generator, held_out: bool) -> list[int]:
        suffix = self.tools.suffix if kind in WITH_REFERENCE else ""
        while True:
            words = wording(kind, slots, rng, "held-out" if held_out else "seen") + suffix
            ids = self.tokenizer.encode(words, add_special_tokens=False).ids
            if len(ids) <= TEXT:
                return list(ids)


def _resized(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def _kinds(spec: Spec, rng: np.random.Generator, turn: int | None) -> list[str]:
    chosen: list[str] = []
    for weights, count in ((spec.kinds, spec.edits), (WITH_REFERENCE, spec.references)):
        names, values = list(weights), np.array(list(weights.values()))
        if turn is not None:
            chosen += [names[(turn * count + number) % len(names)] for number in range(count)]
        else:
            chosen += [str(name) for name in rng.choice(names, count, replace=False, p=values / values.sum())]
    return chosen
