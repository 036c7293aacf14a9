"""What a run leaves behind: its state, to go on from, and the checkpoint in parts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
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
_ANOTHER = "give another --state"


def export(run: OnDeviceRun, learner: Learner) -> None:
    """The checkpoint as it is now, with the averaged weights, in parts."""
    settings, model = run.settings, run.model
    index = read_json(settings.start / "model_index.json")
    working = dict(index.get("working", {}))
    if settings.vae_share > 0:
        working |= {"frames": run.recipe.frames, "least": min(spec.frames for spec in run.recipe.specs)}
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
    metadata = {"progress": json.dumps(asdict(progress)), "run": json.dumps(_of_which_run(run.settings))}
    try:
        save_file(whole, partial, metadata=metadata)
    except SafetensorError as error:  # the library's own word for a disk that is full
        raise OSError(str(error)) from error
    partial.replace(run.settings.state / STATE)


def read_state(settings: Settings) -> tuple[Progress, dict[str, torch.Tensor]]:
    """How far a run got, and its tensors; the beginning where there is no state.

    Raises:
        CheckpointError: it cannot be read, or is of another run.
    """
    file = settings.state / STATE
    if not file.exists():
        return Progress(), {}
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            progress = Progress(**json.loads(metadata["progress"]))
            before = json.loads(metadata.get("run", "{}"))  # older states do not say it
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"'{file}' cannot be read: {error}", f"{_ANOTHER}, or delete it to begin anew") from error
    _check_run(settings, before)
    return progress, tensors


def _of_which_run(settings: Settings) -> dict[str, Any]:
    """What a state's run began with. No `--from` where the checkpoint is the state's own: that folder may be moved."""
    own = settings.start.resolve().is_relative_to(settings.state.resolve())
    return {"from": None if own else str(settings.start), "recipe": settings.recipe.name, "seed": settings.seed}


def _check_run(settings: Settings, before: dict[str, Any]) -> None:
    def shown(value: Any) -> str:
        return "nothing" if value is None else f"'{value}'"

    for option, now in _of_which_run(settings).items():
        was = before.get(option, now)
        if was == now or (option == "from" and was and now and Path(was).resolve() == Path(now).resolve()):
            continue
        raise CheckpointError(
            f"'{settings.state}' is the state of another run: --{option} {shown(was)}, not {shown(now)}",
            f"{_ANOTHER}, or delete that folder to begin anew",
        )


def restore(learner: Learner, run: OnDeviceRun) -> None:
    """Go on with the stage's own state, if the run was read from one."""
    found = {name.removeprefix("learner/"): value for name, value in run.loaded.items() if name.startswith("learner/")}
    if found:
        if {name for name in found if name.startswith("weight/")} != {f"weight/{name}" for name in learner.parameters}:
            raise CheckpointError(
                f"'{run.settings.state}' is of a run with other parameters",
                f"{_ANOTHER}, or the --recipe that it began with",
            )
        learner.load(found)
        run.loaded = {}
