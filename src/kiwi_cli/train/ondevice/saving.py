"""What a run leaves behind: its state, to go on from, and the checkpoint in parts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kiwi_cli.errors import CheckpointError
from kiwi_cli.synth.wordings import seen_wordings
from kiwi_cli.train.exports import write_checkpoint
from kiwi_cli.train.ondevice import parts
from kiwi_cli.train.ondevice.learner import Learner
from kiwi_cli.train.ondevice.session import OnDeviceRun, Progress, Settings
from kiwi_cli.weights import read_json
from kiwi_cli.weights.settings import UNDERSTANDS
from kiwi_cli.weights.tensorfile import write_json

STATE = "state.safetensors"


def export(run: OnDeviceRun, learner: Learner) -> None:
    """The checkpoint as it is now, with the averaged weights, in parts."""
    settings, model = run.settings, run.model
    index = read_json(settings.start / "model_index.json")
    working = dict(index.get("working", {}))
    if settings.vae_share > 0:
        working["frames"] = run.recipe.frames
    with learner.averaged(), tempfile.TemporaryDirectory(dir=settings.state) as temporary:
        folder = Path(temporary) / "folder"
        write_checkpoint(
            folder,
            transformer=model.transformer,
            vae=run.vae,
            mllm_encoder=model.mllm_encoder,
            source_embedder=model.source_embedder,
            ref_embedder=model.ref_embedder,
            tokenizer=model.tokenizer,
            qwen_config=read_json(settings.start / "processor/qwen_config.json"),
            extra={"working": working, "offers": []} | {key: index[key] for key in ("detail",) if key in index},
            shift=model.shift,
        )
        write_json(folder / UNDERSTANDS, seen_wordings())
        parts.pack(folder, settings.out)


def write_state(run: OnDeviceRun, learner: Learner) -> None:
    """Everything but the data, which is drawn anew: the scenes after those that were drawn before."""
    progress = run.progress
    progress.seconds, progress.seed = run.clock(), run.generators.seed
    tensors = {f"learner/{name}": value for name, value in learner.tensors().items()}
    tensors |= {f"vae/{name}": value for name, value in run.vae.state_dict().items()}
    for key in ("latents_mean", "latents_std"):
        tensors[key] = torch.tensor(getattr(run.vae.config, key), dtype=torch.float64)
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    partial = run.settings.state / f"{STATE}.part"
    save_file(whole, partial, metadata={"progress": json.dumps(asdict(progress))})
    partial.replace(run.settings.state / STATE)


def read_state(settings: Settings) -> tuple[Progress, dict[str, torch.Tensor]]:
    """How far a run got, and its tensors; the beginning where there is no state."""
    file = settings.state / STATE
    if not file.exists():
        return Progress(), {}
    with safe_open(file, "pt") as opened:
        progress = Progress(**json.loads(opened.metadata()["progress"]))
        return progress, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def restore(learner: Learner, run: OnDeviceRun) -> None:
    """Go on with the stage's own state, if the run was read from one."""
    found = {name.removeprefix("learner/"): value for name, value in run.loaded.items() if name.startswith("learner/")}
    if found:
        if {name for name in found if name.startswith("weight/")} != {f"weight/{name}" for name in learner.parameters}:
            raise CheckpointError(
                f"'{run.settings.state}' is of a run with other parameters",
                "give another --state, or the --recipe that it began with",
            )
        learner.load(found)
        run.loaded = {}
