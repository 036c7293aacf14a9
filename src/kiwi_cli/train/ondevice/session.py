"""What a run in minutes is made of: its settings, how far it is, and its parts on the device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kiwi_cli.errors import DeviceError
from kiwi_cli.model import checkpoint
from kiwi_cli.model.prompt import REFERENCE_SUFFIX
from kiwi_cli.model.vision_sizes import PixelBounds
from kiwi_cli.train.model import KiwiTrainModel
from kiwi_cli.train.ondevice import autoencoder
from kiwi_cli.train.ondevice.bank import Bank, Coder
from kiwi_cli.train.ondevice.drawing import TEXT, Tools
from kiwi_cli.train.ondevice.generators import Generators
from kiwi_cli.train.ondevice.prompts import PromptForm
from kiwi_cli.train.ondevice.recipe import WHOLE, Ask, Recipe
from kiwi_cli.train.ondevice.vision import Tower
from kiwi_cli.train.tiny_vae import ARCHITECTURE
from kiwi_cli.weights import read_json

VAE, MODEL, DONE = "vae", "model", "done"


@dataclass(frozen=True)
class Settings:
    """A run.

    Attributes:
        start: a checkpoint in the released layout, trained or new.
        out: where parts, metrics and figures go. state: where what is needed to go on goes.
        device: 'cuda' or 'cpu'.
        minutes: all of the run's, from its start to its end.
        vae_share: of the time for training, spent on the autoencoder; 0 leaves it as it is.
        lr, vae_lr: highest rates. ema: the average's decay.
        positions: of latents and prompts in a step. draws: timesteps of a row in a step.
        scale: of chunks, banks and the autoencoder's steps; 1 is for a GPU.
        workers: processes that draw scenes. steps: most steps of each stage, None: as time allows.
        record: replay steps as CUDA graphs. every: seconds between two states.
        compiled: on a CPU, layers are compiled and products are in bf16: 4 times as fast where it has AMX, after some
            minutes of a C++ compiler.
        photographs: files that natural scenes are made of too.
        recipe: what is drawn and asked. say: takes the lines of the metrics.
    """

    start: Path
    out: Path
    state: Path
    device: str = "cuda"
    minutes: float = 8.0
    vae_share: float = 0.25
    lr: float = 1.5e-3
    vae_lr: float = 3e-3
    ema: float = 0.998
    strength: float = 5.0
    positions: int = 32768
    draws: int = 2
    scale: float = 1.0
    workers: int = 14
    steps: int | None = None
    record: bool = True
    compiled: bool = False
    seed: int = 0
    every: float = 60.0
    photographs: tuple[str, ...] = ()
    recipe: Recipe = WHOLE
    say: Callable[[str], None] = lambda line: None


@dataclass
class Progress:
    """How far a run is, as its state says it.

    Attributes:
        stage: one of VAE, MODEL, DONE. seed: of the next scene. seconds: spent.
        began, until: of the stage, in seconds of the run.
    """

    stage: str = VAE
    seed: int = 0
    seconds: float = 0.0
    began: float | None = None
    until: float = 0.0


@dataclass
class OnDeviceRun:
    """A run's parts on the device. `train` does all of it."""

    settings: Settings
    recipe: Recipe
    generators: Generators
    progress: Progress
    clock: Callable[[], float]
    device: torch.device
    model: KiwiTrainModel
    vae: Any
    banks: dict[str, Bank]
    held_out: dict[str, Bank]
    coder: Coder
    prompts: dict[Ask, PromptForm]
    random: torch.Generator
    held_clips: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    held_kinds: dict[str, list[np.ndarray]] = field(default_factory=dict)
    loaded: dict[str, torch.Tensor] = field(default_factory=dict)
    stopped: list[int] = field(default_factory=list)

    def left(self) -> float:
        """Seconds until the stage's end."""
        return self.progress.until - self.clock()

    def log(self, **line: Any) -> None:
        line = {"seconds": round(self.clock(), 1), **line}
        with (self.settings.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.settings.say(json.dumps(line))


def check_device(name: str) -> None:
    """Refuse a device that is not here.

    Raises:
        DeviceError: it is not.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("there is no CUDA device here", "use --device cpu, with few --max-steps")


def tools_of(start: Path, photographs: tuple[str, ...] = ()) -> Tools:
    """What the generators need of a checkpoint."""
    config = read_json(start / "mllm_encoder/config.json")
    keys = ("max_frames", "max_pixels_per_frame", "max_object_token", "min_visual_tokens")
    bounds = PixelBounds(*(config[key] for key in keys))
    factors = ARCHITECTURE["scale_factor_spatial"], ARCHITECTURE["scale_factor_temporal"]
    return Tools(str(start / "processor/tokenizer.json"), REFERENCE_SUFFIX, bounds, *factors, photographs)


def open_run(
    settings: Settings,
    recipe: Recipe,
    generators: Generators,
    progress: Progress,
    loaded: dict[str, torch.Tensor],
    clock: Callable[[], float],
) -> OnDeviceRun:
    """Everything on the device. Forms are laid out on the CPU before."""
    model = KiwiTrainModel.from_folder(settings.start, torch.float32)
    vae = checkpoint.load_vae(settings.start / "vae", torch.float32, "cpu")
    for name, value in vae.state_dict().items():
        if f"vae/{name}" in loaded:
            value.copy_(loaded[f"vae/{name}"])
    if "latents_mean" in loaded:
        vae.register_to_config(**{key: loaded[key].tolist() for key in ("latents_mean", "latents_std")})
    tools, inputs, specs = generators.tools, model.inputs, generators.specs
    sizes = {size for spec in specs.values() for size in (tools.seen_size(spec), tools.picture_size(spec))}
    visual = model.mllm_encoder.qwen.visual.requires_grad_(False)
    towers = {(height, width): Tower(visual, inputs.geometry, height, width) for width, height in sizes}
    prompts = {}
    for ask in recipe.asked:
        spec = specs[ask.spec]
        frames = 1 if ask.still else spec.frames
        prompts[ask] = PromptForm.of(inputs, frames, spec.width, spec.height, ask.reference, TEXT)

    if settings.device == "cuda":
        torch.set_float32_matmul_precision("high")
    device = torch.device("cuda", 0) if settings.device == "cuda" else torch.device("cpu")
    model.to(device).train()
    autoencoder.in_layout(vae.to(device))
    return OnDeviceRun(
        settings,
        recipe,
        generators,
        progress,
        clock,
        device,
        model,
        vae,
        {name: Bank(spec, tools, recipe.capacity[name], device) for name, spec in specs.items()},
        {name: Bank(specs[name], tools, count * specs[name].scenes, device) for name, count in recipe.held_out.items()},
        Coder(vae, towers),
        {ask: form.to(device) for ask, form in prompts.items()},
        torch.Generator(device).manual_seed(settings.seed + int(progress.seconds)),
        loaded=loaded,
    )
