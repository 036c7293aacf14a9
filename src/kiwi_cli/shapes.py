"""What counting an edit needs to know of a model: widths, and parameters by what becomes of them in 8 bits. From
configs and headers alone; no torch."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiwi_cli import weights
from kiwi_cli.sight import PixelBounds
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
    """Parameters of a part, by what becomes of them in 8 bits.

    Attributes:
        plain: those that stay as they are. matrices: of the repeated blocks, which are put into 8 bits.
        biases, rows: of the layers that those matrices belong to.
    """

    plain: int = 0
    matrices: int = 0
    biases: int = 0
    rows: int = 0

    @property
    def total(self) -> int:
        return self.plain + self.matrices + self.biases

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.plain + other.plain,
            self.matrices + other.matrices,
            self.biases + other.biases,
            self.rows + other.rows,
        )

    def stored(self, item: int, quantize: str = "as-stored") -> int:
        """Bytes. item: of the compute precision. quantize: as the option."""
        if quantize == "as-stored":
            return self.total * item
        if quantize == "fp8-storage":  # casts whole layers
            return self.plain * item + self.matrices + self.biases
        return (self.plain + self.biases) * item + self.matrices + SCALES[quantize] * self.rows


@dataclass(frozen=True)
class Shape:
    """What the counts need to know of a model.

    Attributes:
        width, ffn, layers: of the transformer. latent_channels, encoder, decoder: of the VAE (base widths).
        text, vision: hidden + feed-forward width of the language model and of its eyes.
        queries: for a picture, a video, a reference.
        units: parameters of each unit that is moved. pieces: of what is on the device at once when it comes piece by
            piece: the largest of these.
        head: width of an attention head of the transformer.
        grid: pixels a token, each way. bounds: on what the language model sees.
    """

    width: int
    ffn: int
    layers: int
    latent_channels: int
    encoder: int
    decoder: int
    text: int
    vision: int
    queries: tuple[int, int, int]
    units: dict[str, Counts]
    pieces: dict[str, tuple[Counts, ...]]
    head: int = 128
    grid: int = 32
    bounds: PixelBounds = field(default_factory=PixelBounds)

    @property
    def rotary_bytes(self) -> int:
        """Of the transformer's rotary tables, cosines and sines in fp32."""
        return 2 * 4 * ROTARY_POSITIONS * self.head


_BLOCK = Counts(163_656_704 - 163_577_856 - 41_984, 163_577_856, 41_984, 41_984)
_OTHERS = Counts(4_978_947_264 - 30 * 163_656_704)  # of the transformer, with the two embedders
_LEAVES = (Counts(311_164_928), Counts(matrices=2048 * 11008, rows=11008))  # the embedding; the largest matrix

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
        "mllm": Counts(3_789_238_272 - 3_404_496_896 - 515_840, 3_404_496_896, 515_840, 1_455_872),
        "vae_encoder": Counts(149_637_088),
        "transformer": sum((_BLOCK for _ in range(30)), _OTHERS),
        "vae_decoder": Counts(555_051_580),
    },
    pieces={"mllm": tuple(leaf + leaf for leaf in _LEAVES), "transformer": (_OTHERS + _BLOCK + _BLOCK,)},
)


def read_shape(folder: Path) -> Shape:
    """The shape of a checkpoint in the released layout, from its configs and its files' headers.

    Raises:
        CheckpointError: a part is missing or broken.
    """
    dit = weights.read_json(folder / "transformer" / "config.json")
    vae = weights.read_json(folder / "vae" / "config.json")
    mllm = weights.read_json(folder / "mllm_encoder" / "config.json")
    qwen = weights.read_json(folder / "processor" / "qwen_config.json")
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
        grid=size_multiple(folder),
        bounds=PixelBounds(**{ours: mllm[theirs] for ours, theirs in _BOUNDS.items() if theirs in mllm}),
    )


def _units(folder: Path) -> tuple[dict[str, Counts], dict[str, tuple[Counts, ...]]]:
    """Parameters of each unit that is moved, whole and piece by piece, from the headers."""
    units: defaultdict[str, Counts] = defaultdict(Counts)
    blocks: defaultdict[str, Counts] = defaultdict(Counts)
    leaves: defaultdict[str, Counts] = defaultdict(Counts)
    others = Counts()  # of the transformer, outside its blocks
    for (part, _), files in weights.open_all(folder).items():
        infos = {key: info for key, info in files.infos.items() if not key.startswith(UNUSED_DIT)}
        layers = {key.rpartition(".")[0] for key, info in infos.items() if _is_matrix(part, key, info)}
        for key, info in infos.items():
            layer, _, kind = key.rpartition(".")
            counts = Counts(info.elements)
            if layer in layers:
                matrix = kind == "weight"
                counts = Counts(0, info.elements, 0, info.shape[0]) if matrix else Counts(biases=info.elements)
            unit = "transformer"
            if part == "mllm_encoder":
                unit = "mllm"
                leaves[layer] += counts
            elif part == "vae":
                decoding = key.startswith(("decoder.", "conv2.", "post_quant_conv."))
                unit = "vae_decoder" if decoding else "vae_encoder"
            elif key.startswith("blocks."):
                blocks[key.split(".")[1]] += counts
            else:
                others += counts
            units[unit] += counts
    largest = max(blocks.values(), key=lambda block: block.total, default=Counts())
    pieces = {"transformer": (others + largest + largest,), "mllm": tuple(leaf + leaf for leaf in leaves.values())}
    return dict(units), pieces


def _is_matrix(part: str, key: str, info: Any) -> bool:
    """Whether quantize.py puts a tensor into 8 bits: a matrix of the repeated blocks."""
    repeated = part in ("transformer", "mllm_encoder") and _REPEATED.search(key)
    return bool(repeated) and key.endswith(".weight") and len(info.shape) == 2
