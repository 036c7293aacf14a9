"""What a run would be, without loading a weight: what is trained, how much memory it takes, how long it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kiwi_cli.base.processes import team_size
from kiwi_cli.base.text import aligned, count, format_bytes
from kiwi_cli.errors import CheckpointError
from kiwi_cli.model import checkpoint
from kiwi_cli.model.mllm import KiwiInstructionEncoder
from kiwi_cli.model.transformer import ConditionEmbedder, KiwiTransformer3DModel
from kiwi_cli.train.batch import Bucket
from kiwi_cli.train.config import TrainConfig, accumulation
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.muon import is_hidden_matrix
from kiwi_cli.train.run import open_data, prepare_model
from kiwi_cli.train.sampler import shares_of
from kiwi_cli.weights import check_layout, read_json
from kiwi_cli.weights.hub import locate

FP32 = 4
"""Bytes of a trained weight, of its gradient and of each moment of the optimiser: AdamW has two, Muon one."""

KEPT = {"fp32": (96, 8), "bf16": (76, 4)}
"""Bytes that a trained block keeps for the backward pass: for each value of its width, and for each of its feed-forward
layer's. Measured on blocks of the transformer of width 384 and 512 on the CPU; under autocast norms stay fp32."""


@dataclass(frozen=True)
class Part:
    """Parameters of one part of the model."""

    name: str
    trained: int
    frozen: int


@dataclass(frozen=True)
class RunPlan:
    """A run, worked out.

    Attributes:
        parts: of the model, with the VAE left out: it is not part of training.
        memory: bytes of one process by what they are for; 'activations' is an estimate.
        processes: of this run. accumulation: micro-batches of one of them a step.
        rows: data set -> rows to train on and held out; None where the cache is not there.
        epochs: data set -> how often the run goes through it.
        notes: what the person should know.
    """

    config: TrainConfig
    parts: tuple[Part, ...]
    memory: dict[str, int]
    processes: int
    accumulation: int
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return sum(part.trained for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        config = self.config
        return {
            "stage": config.stage,
            "model": config.model,
            "out": config.out,
            "parameters": {part.name: {"trained": part.trained, "frozen": part.frozen} for part in self.parts},
            "memory": {**self.memory, "total": sum(self.memory.values())},
            "steps": config.steps,
            "samples": config.steps * config.global_batch,
            "processes": self.processes,
            "accumulation": self.accumulation,
            "rows": {name: {"train": train, "held_out": held} for name, (train, held) in self.rows.items()},
            "epochs": self.epochs,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """For the terminal."""
        config = self.config
        samples = config.steps * config.global_batch
        known = "activations" in self.memory
        estimated = "the activations are an estimate" if known else "activations come on top"
        team = "one process" if self.processes == 1 else f"each of {self.processes} processes"
        draws = f"{count(config.draws, 'draw')} of timestep and noise each"
        rows: list[tuple[str, Any]] = [
            ("stage", f"{config.stage}, from '{config.model}' to '{config.out}'"),
            *(
                (part.name, f"{_millions(part.trained)} trained, {_millions(part.frozen)} frozen")
                for part in self.parts
            ),
            *((name, format_bytes(size)) for name, size in self.memory.items()),
            ("memory in all", f"{format_bytes(sum(self.memory.values()))} a process; {estimated}"),
            ("steps", f"{config.steps} of {count(config.global_batch, 'sample')}: {samples} samples, {draws}"),
            ("a step", f"{self.accumulation} x {count(config.micro_batch, 'sample')} in {team}"),
            *(
                (f"data '{name}'", f"{train} rows, {held} held out, {self.epochs.get(name, 0):.3g} epochs")
                for name, (train, held) in self.rows.items()
            ),
            *(("note", note) for note in self.notes),
        ]
        return aligned(rows, 2 + max(len(name) for name, _ in rows))


def _millions(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M" if number else "none"


def skeleton(folder: Path) -> KiwiTrainModel:
    """A checkpoint's trained parts on `meta`, from its configs alone.

    Raises:
        CheckpointError: configs that are missing or describe no model.
    """
    check_layout(folder)
    tokenizer, colour = checkpoint.load_processor(folder / "processor")
    source = folder / "mllm_encoder/config.json"
    mllm = {key: value for key, value in read_json(source).items() if key != "mllm_model_path"}
    mllm["qwen_config"] = read_json(folder / "processor/qwen_config.json")
    transformer = folder / "transformer/config.json"
    return KiwiTrainModel(
        checkpoint.build(KiwiTransformer3DModel, read_json(transformer), transformer),
        checkpoint.build(KiwiInstructionEncoder, mllm, source),
        _embedder(folder / "source_embedder"),
        _embedder(folder / "ref_embedder"),
        tokenizer,
        colour,
    )


def _embedder(folder: Path) -> ConditionEmbedder:
    return checkpoint.build(ConditionEmbedder, read_json(folder / "config.json"), folder / "config.json")


def plan_run(config: TrainConfig) -> RunPlan:
    """Work a run out. Nothing is loaded but configs, the tokenizer and the caches' indexes.

    Raises:
        UsageError, CheckpointError: what the run itself would refuse.
    """
    processes = team_size()
    micro_batches = accumulation(config, processes)
    model = skeleton(locate(config.model))
    with torch.device("meta"):
        prepare_model(config, model)
    rows: dict[str, tuple[int, int]] = {}
    epochs: dict[str, float] = {}
    lengths: dict[Bucket, int] = {}
    notes: list[str] = []
    try:
        data = open_data(config, model.inputs)
    except CheckpointError as error:
        notes.append(f"{error.message}: no rows counted, no activations estimated")
    else:
        buckets = {name: found.buckets for name, found in data.train.items()}
        shares = shares_of(buckets, data.ratios) if buckets else {}
        for name, share in shares.items():
            rows[name] = (len(data.train[name]), len(data.held_out[name]))
            epochs[name] = config.steps * config.global_batch * share / len(data.train[name])
            for row, bucket in enumerate(buckets[name]):
                if bucket not in lengths:  # one prompt of each bucket: the others differ by their words alone
                    lengths[bucket] = len(data.train[name][row].prompt.input_ids)
    if not config.data:
        notes.append("no data is named")
    return RunPlan(
        config,
        tuple(_parts(model)),
        _memory(config, model, lengths, processes),
        processes,
        micro_batches,
        rows,
        epochs,
        tuple(notes),
    )


def _parts(model: KiwiTrainModel) -> list[Part]:
    """Counts by part; the language model, its LoRA and what is around it apart."""
    names = {
        "transformer": "transformer.",
        "language model": "mllm_encoder.qwen.language_model.",
        "vision tower": "mllm_encoder.qwen.visual.",
        "queries and connectors": "mllm_encoder.",
        "source embedder": "source_embedder.",
        "reference embedder": "ref_embedder.",
    }
    counts = {name: [0, 0] for name in names}
    for key, value in model.named_parameters():
        part = next(name for name, beginning in names.items() if key.startswith(beginning))
        counts[part][0 if value.requires_grad else 1] += value.numel()
    return [Part(name, trained, frozen) for name, (trained, frozen) in counts.items()]


def _memory(
    config: TrainConfig, model: KiwiTrainModel, lengths: Mapping[Bucket, int], processes: int
) -> dict[str, int]:
    """Bytes of one process by purpose. FSDP divides all but the activations among the processes."""
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in model.parameters() if not value.requires_grad)
    moments = sum(
        value.numel() * (1 if config.optimiser.name == "muon" and is_hidden_matrix(name, value) else 2)
        for name, value in model.named_parameters()
        if value.requires_grad
    )
    width = 2 if config.precision == "bf16" else FP32
    share = processes if config.strategy == "fsdp" else 1
    memory = {
        "weights": (trained * FP32 + frozen * width) // share,
        "gradients": trained * FP32 // share,
        "optimiser": moments * FP32 // share,
    }
    if config.precision == "bf16":
        memory["bf16 copies"] = trained * 2  # autocast keeps them for the length of a micro-batch
    if config.ema:
        memory["average"] = trained * FP32 // share
    if lengths:
        memory["activations"] = max(activations(config, model, *item) for item in lengths.items())
    return memory


def activations(config: TrainConfig, model: KiwiTrainModel, bucket: Bucket, prompt: int) -> int:
    """An estimate of what a micro-batch of a bucket keeps for the backward pass, in bytes.

    Counted: the blocks of the transformer (for every draw) and of the language model, each token by `KEPT`. With
    checkpointing each block keeps its input in fp32, and one block all of it.

    Args:
        prompt: tokens of the language model's input.
    """
    transformer, text = model.transformer.config, model.mllm_encoder.qwen.config.text_config
    _, high, wide = transformer.patch_size
    tokens = (bucket.frames + bucket.references) * (bucket.height // high) * (bucket.width // wide)
    inner = transformer.num_attention_heads * transformer.attention_head_dim
    for_width, for_feed = KEPT[config.precision]
    total = 0
    for length, samples, dim, feed, layers in (
        (tokens, config.micro_batch * config.draws, inner, transformer.ffn_dim, transformer.num_layers),
        (prompt, config.micro_batch, text.hidden_size, text.intermediate_size, text.num_hidden_layers),
    ):
        block = length * samples * (for_width * dim + for_feed * feed)
        total += length * samples * dim * FP32 * layers + block if config.checkpointing else block * layers
    return total
