"""What counting an edit needs to know of a model: widths, and parameter counts split by how quantisation stores them.

From configs and headers alone; no torch.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi_cli import weights
from kiwi_cli.model.vision_sizes import PixelBounds
from kiwi_cli.weights.keys import UNUSED_DIT
from kiwi_cli.weights.settings import size_multiple

SCALES = {"int8": 5, "fp8": 4}
"""Bytes that quantize.py's formats keep for each row of a matrix: a scale in fp32, int8 a zero point as well."""

ROTARY_POSITIONS = 1024  # of the transformer's tables of cosines and sines, in fp32

_BOUNDS = {  # of `PixelBounds` -> of mllm_encoder/config.json
    "max_frames": "max_frames",
    "max_frame_area": "max_pixels_per_frame",
    "max_reference_tokens": "max_object_token",
    "min_visual_tokens": "min_visual_tokens",
}

_REPEATED = re.compile(r"(^|\.)(blocks|layers)\.\d+\.")


@dataclass(frozen=True)
class Counts:
    """Parameter counts of a part, split by how quantisation stores them.

    Attributes:
        plain: those that stay as they are. matrices: of the repeated blocks, which are put into 8 bits.
        biases, rows: of the layers that those matrices belong to.
        odd: parameters of those with a side that is no multiple of 16: a GPU's fp8 products leave them as they are.
    """

    plain: int = 0
    matrices: int = 0
    biases: int = 0
    rows: int = 0
    odd: int = 0

    @property
    def total(self) -> int:
        return self.plain + self.matrices + self.biases

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.plain + other.plain,
            self.matrices + other.matrices,
            self.biases + other.biases,
            self.rows + other.rows,
            self.odd + other.odd,
        )

    def stored(self, item: int, quantize: str = "as-stored") -> int:
        """Bytes. item: of the compute precision. quantize: as the option."""
        if quantize == "as-stored":
            return self.total * item
        if quantize == "fp8-storage":  # casts whole layers
            return self.plain * item + self.matrices + self.biases
        kept = self.odd * (item - 1) if quantize == "fp8" else 0
        return (self.plain + self.biases) * item + self.matrices + kept + SCALES[quantize] * self.rows


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What the size of a model's activations depends on.

    Attributes:
        width: of the transformer. latent_channels, encoder, decoder: of the VAE (base widths).
        text, vision: hidden + feed-forward width of the language model and of its eyes.
        grid: pixels a token, each way.
    """

    width: int
    latent_channels: int
    encoder: int
    decoder: int
    text: int
    vision: int
    grid: int = 32


@dataclass(frozen=True, kw_only=True)
class Shape(Widths):
    """What the counts need to know of a model.

    Attributes:
        ffn, layers: of the transformer. head: width of an attention head of it. patch: latent pixels a token, each way.
        queries: for a picture, a video, a reference. bounds: on what the language model sees.
        units: parameters of each unit that is moved. pieces: of what is on the device at once when it comes piece by
            piece.
    """

    ffn: int
    layers: int
    queries: tuple[int, int, int]
    units: dict[str, Counts]
    pieces: dict[str, Counts]
    head: int = 128
    patch: int = 2
    bounds: PixelBounds = field(default_factory=PixelBounds)

    @property
    def rotary_bytes(self) -> int:
        """Of the transformer's rotary tables, cosines and sines in fp32."""
        return 2 * 4 * ROTARY_POSITIONS * self.head


_BLOCK = Counts(163_656_704 - 163_577_856 - 41_984, 163_577_856, 41_984, 41_984)
_OTHERS = Counts(4_978_947_264 - 30 * 163_656_704)  # of the transformer, with the two embedders
_LAYER = Counts(4096, 77_070_336, 2560, 28_672)  # of the language model
_EYES_LAYER = Counts(2560, 19_686_400, 13_240, 13_240, 3 * 1280 * 3420)  # of its vision tower
_EMBEDDINGS = Counts(3_789_238_272 - 36 * _LAYER.total - 32 * _EYES_LAYER.total)  # and all else of the language model

RELEASED_5B = Shape(
    width=3072,
    ffn=14336,
    layers=30,
    latent_channels=48,
    encoder=160,
    decoder=256,
    text=2048 + 11008,
    vision=1280 + 3420,
    queries=(256, 512, 768),
    # Counted from the released checkpoint's keys and shapes.
    units={
        "mllm": sum([_LAYER] * 36 + [_EYES_LAYER] * 32, _EMBEDDINGS),
        "vae_encoder": Counts(149_637_088),
        "transformer": sum((_BLOCK for _ in range(30)), _OTHERS),
        "vae_decoder": Counts(555_051_580),
    },
    pieces={"mllm": _EMBEDDINGS + _LAYER + _LAYER, "transformer": _OTHERS + _BLOCK + _BLOCK},
)


def read_shape(folder: Path) -> Shape:
    """The shape of a checkpoint or a saved pipeline, from its configs and its files' headers.

    Raises:
        CheckpointError: a part is missing or broken.
    """
    dit = weights.read_json(folder / "transformer" / "config.json")
    vae = weights.read_json(folder / "vae" / "config.json")
    mllm = weights.read_json(folder / "mllm_encoder" / "config.json")
    saved = weights.is_saved(folder)
    qwen = mllm.get("qwen_config", {}) if saved else weights.read_json(folder / "processor" / "qwen_config.json")
    text, vision = qwen.get("text_config", qwen), qwen.get("vision_config", {})
    units, pieces = _units(folder)
    return Shape(
        width=dit["num_attention_heads"] * dit["attention_head_dim"],
        ffn=dit["ffn_dim"],
        layers=dit["num_layers"],
        latent_channels=vae.get("z_dim", 48),
        encoder=vae.get("dim", vae.get("base_dim", 160)),
        decoder=vae.get("dec_dim", vae.get("decoder_base_dim")) or 256,
        text=text.get("hidden_size", 2048) + text.get("intermediate_size", 11008),
        vision=vision.get("hidden_size", 1280) + vision.get("intermediate_size", 3420),
        queries=(mllm["num_image_queries"], mllm["num_video_queries"], mllm["num_ref_queries"]),
        units=units,
        pieces=pieces,
        head=dit["attention_head_dim"],
        patch=dit.get("patch_size", (1, 2, 2))[1],
        grid=size_multiple(folder),
        bounds=PixelBounds(**{ours: mllm[theirs] for ours, theirs in _BOUNDS.items() if theirs in mllm}),
    )


def _units(folder: Path) -> tuple[dict[str, Counts], dict[str, Counts]]:
    """Parameters of each unit that is moved, whole and piece by piece, from the headers."""
    units: defaultdict[str, Counts] = defaultdict(Counts)
    layers: defaultdict[tuple[str, str], Counts] = defaultdict(Counts)  # by unit and the layer's own prefix
    others: defaultdict[str, Counts] = defaultdict(Counts)  # outside the repeated layers
    for (part, _), files in weights.open_all(folder).items():
        infos = {key: info for key, info in files.infos.items() if not key.startswith(UNUSED_DIT)}
        matrices = {key.rpartition(".")[0] for key, info in infos.items() if _is_matrix(part, key, info)}
        for key, info in infos.items():
            owner, _, kind = key.rpartition(".")
            counts = Counts(info.elements)
            if owner in matrices:
                counts = _matrix(info) if kind == "weight" else Counts(biases=info.elements)
            unit = _unit_of(part, key)
            units[unit] += counts
            layer = _REPEATED.search(key)
            if layer:
                layers[unit, key[: layer.end()]] += counts
            else:
                others[unit] += counts
    pieces = {}
    for unit in ("mllm", "transformer"):
        own = (counts for (of, _), counts in layers.items() if of == unit)
        largest = max(own, key=lambda layer: layer.total, default=Counts())
        pieces[unit] = others[unit] + largest + largest
    return dict(units), pieces


def _matrix(info: Any) -> Counts:
    odd = any(side % 16 for side in info.shape)
    return Counts(0, info.elements, 0, info.shape[0], info.elements if odd else 0)


def _unit_of(part: str, key: str) -> str:
    """The unit that a part's tensor is moved with."""
    if part == "vae":
        decoding = key.startswith(("decoder.", "conv2.", "post_quant_conv."))
        return "vae_decoder" if decoding else "vae_encoder"
    return "mllm" if part == "mllm_encoder" else "transformer"


def _is_matrix(part: str, key: str, info: Any) -> bool:
    """Whether quantize.py puts a tensor into 8 bits: a matrix of the repeated blocks."""
    repeated = part in ("transformer", "mllm_encoder") and _REPEATED.search(key)
    return bool(repeated) and key.endswith(".weight") and len(info.shape) == 2
