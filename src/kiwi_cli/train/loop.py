"""The trainer: optimiser steps over global batches, on one process or several.

`train` is the whole run of a model whose trained parameters are those that require gradients. Everything that is drawn
follows from the seed and the sample's position in the run, so a run is the same however it is cut: into micro-batches,
among processes, or by an interruption.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator

from kiwi_cli.base.events import SILENT, Events
from kiwi_cli.errors import KiwiError, UsageError
from kiwi_cli.train.config import TrainConfig
from kiwi_cli.train.curves import Metrics, draw_curves
from kiwi_cli.train.ema import Ema
from kiwi_cli.train.feed import Feed, FeedPlan, Rows
from kiwi_cli.train.heldout import SEED, HeldOut
from kiwi_cli.train.launch import all_agree, make_accelerator
from kiwi_cli.train.muon import MuonAdamW
from kiwi_cli.train.resume import find_state, restore, save
from kiwi_cli.train.sharding import forget_whole
from kiwi_cli.train.state import find_latest

if TYPE_CHECKING:
    from kiwi_cli.train.model import KiwiTrainModel

Collate = Callable[..., Any]
"""(samples, positions, seed, draws) -> batch, which has `to(device)`."""


class Stop:
    """Set from outside, as by a signal handler: the run ends after the step it is in and saves its state.

    Attributes:
        requested: whether to end. running: whether there are steps going on that can be ended so.
    """

    def __init__(self) -> None:
        self.requested = self.running = False

    def request(self) -> None:
        """End the run."""
        self.requested = True


@dataclass
class Result:
    """How a run ended.

    Attributes:
        step: optimiser steps done, those before a resume included.
        loss: mean training loss of the last `log_every` steps.
        held_out: (step, data set -> loss) of each evaluation of this call.
        state: folder of the last saved state. interrupted: whether it was stopped before its last step.
        ema: the average of the weights, or None. The model holds the weights themselves.
    """

    step: int
    loss: float
    held_out: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    state: Path | None = None
    interrupted: bool = False
    ema: Ema | None = None


def train(
    config: TrainConfig,
    model: torch.nn.Module,
    datasets: Mapping[str, Rows],
    *,
    ratios: Mapping[str, float] | None = None,
    held_out: Mapping[str, Rows] | None = None,
    collate: Collate | None = None,
    events: Events = SILENT,
    resume: bool = False,
    stop: Stop | None = None,
    device: str = "auto",
    preview: Callable[[torch.nn.Module, int], None] | None = None,
    accelerator: Accelerator | None = None,
) -> Result:
    """Train the parameters of `model` that require gradients, `config.steps` optimiser steps of a global batch each.

    Args:
        model: batch -> losses (B,) fp32, one for each sample; changed in place.
        datasets: name -> rows to train on. ratios: name -> its share of the samples; None for equal shares.
        held_out: name -> rows for the held-out loss.
        collate: None is `batch.collate` with the settings' timesteps and the model's shift.
        resume: go on from the run's last state; begin anew when there is none.
        device: 'auto' or 'cpu'.
        preview: called with (model with averaged weights, step) every `validate.preview_every` steps, in the first
            process.
        accelerator: None makes one from the settings.

    Raises:
        UsageError: settings that cannot be carried out here; a folder that holds another run.
        CheckpointError: a state of another stage or of a model of another width.
        KiwiError: the loss is no longer finite, or a state could not be saved.
    """
    run = _Run(
        config,
        model,
        datasets,
        ratios,
        held_out or {},
        collate,
        events,
        accelerator or make_accelerator(config, device),
    )
    run.begin(resume)
    return run.go(stop or Stop(), preview)


def make_optimiser(config: TrainConfig, parameters: Mapping[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the settings over named parameters."""
    chosen = config.optimiser
    if chosen.name == "muon":
        return MuonAdamW(parameters, chosen.lr, chosen.weight_decay, chosen.betas, chosen.eps)
    return torch.optim.AdamW(
        parameters.values(), lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, weight_decay=chosen.weight_decay
    )


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        model: torch.nn.Module,
        datasets: Mapping[str, Rows],
        ratios: Mapping[str, float] | None,
        held_out: Mapping[str, Rows],
        collate: Collate | None,
        events: Events,
        accelerator: Accelerator,
    ) -> None:
        if collate is None:
            from kiwi_cli.train.batch import collate as usual

            collate = partial(usual, timesteps=config.timesteps, shift=cast("KiwiTrainModel", model).shift)
        self.config, self.model, self.datasets, self.ratios, self.events = config, model, datasets, ratios, events
        self.collate, self.accelerator = collate, accelerator
        self.out = Path(config.out)
        self.held = HeldOut(held_out, config.validate.rows, config.micro_batch) if config.validate.every else None
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if not self.parameters:
            raise UsageError("no parameter is trained", "name groups with 'train', or freeze less")

    # -- before the first step ----------------------------------------------------------------------------------

    def begin(self, resume: bool) -> None:
        """Put the model on its device, make the optimiser, and load the state there is."""
        config, accelerator = self.config, self.accelerator
        self.plan = FeedPlan(
            config, self.datasets, self.ratios, accelerator.process_index, accelerator.num_processes
        )  # before anything is moved: settings that do not come out even end here
        state = find_state(config, self.parameters, resume, accelerator, self.events)
        for value in self.parameters.values():
            value.data = value.data.to(torch.float32)
        optimiser = make_optimiser(config, self.parameters)
        self.model.train()
        self.wrapped, self.optimiser = accelerator.prepare(self.model, optimiser)
        # Sharded ones are other objects than before, under the same names.
        named = accelerator.unwrap_model(self.wrapped).named_parameters()
        self.parameters = {name: value for name, value in named if value.requires_grad}
        self.step = 0
        if state is not None:
            self.step = state.step
            restore(state, self.parameters, self.optimiser, accelerator)
        self.ema = Ema(self.parameters, config.ema) if config.ema else None
        if self.ema is not None and state is not None and state.ema:
            self.ema.load(state.ema, state.ema_updates)
        self.metrics = Metrics(self.out, self.step) if accelerator.is_main_process else None
        if config.trackers:
            accelerator.init_trackers(f"kiwi-{config.stage}")

    # -- the steps ----------------------------------------------------------------------------------------------

    def go(self, stop: Stop, preview: Callable[[torch.nn.Module, int], None] | None) -> Result:
        """From the step the run is at to the last."""
        config, accelerator = self.config, self.accelerator
        self.result = Result(self.step, math.nan, ema=self.ema, state=find_latest(self.out))
        self._window()
        if self.held is not None and self.step == 0:
            self._validate()
        start = self.step
        first = accelerator.is_main_process
        with ExitStack() as stack:
            labels = {"train": "train"}
            progress = stack.enter_context(self.events.stages(labels)) if first else None
            batches = stack.enter_context(Feed(self.plan, self.datasets, start, self._make))
            stop.running = True
            while self.step < config.steps:
                self._optimiser_step(batches)
                self.step += 1
                ends = self.step == config.steps
                self.result.interrupted = not ends and not all_agree(accelerator, not stop.requested)
                if self.step % config.log_every == 0 or ends or self.result.interrupted:
                    self._log()
                    labels["train"] = f"train, loss {self.result.loss:.4f}"
                if progress is not None:
                    progress("train", self.step - start, config.steps - start)
                if self._due(config.validate.every) and self.held is not None:
                    self._validate()
                if self._due(config.save.every) or ends or self.result.interrupted:
                    self._save()
                if preview is not None and self._due(config.validate.preview_every) and first:
                    with self._averaged():
                        preview(accelerator.unwrap_model(self.wrapped), self.step)
                if self.result.interrupted:
                    break
        stop.running = False
        self.result.step = self.step
        if first:
            draw_curves(self.out)
        if config.trackers:
            accelerator.end_training()
        # accelerate replaced `forward` by one that casts; the caller gets the model as it was.
        accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        return self.result

    def _due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and at the last, is due."""
        return bool(every) and (self.step % every == 0 or self.step == self.config.steps)

    def _optimiser_step(self, batches: Any) -> None:
        config, accelerator = self.config, self.accelerator
        self._rate = config.optimiser.lr * config.schedule.factor(self.step, config.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate
        for _ in range(self.plan.accumulation):
            batch = next(batches).to(accelerator.device)
            with accelerator.accumulate(self.wrapped):
                with accelerator.autocast():
                    loss = self.wrapped(batch).mean()
                accelerator.backward(loss)  # divided by the number of micro-batches there
                self._sum += loss.detach()
                if accelerator.sync_gradients:
                    # Without a limit too, because the norm is logged: gradients are multiplied by 1 then.
                    norm = accelerator.clip_grad_norm_(self.parameters.values(), config.clip or math.inf)
                    self._norms.append(norm)
                self.optimiser.step()
                self.optimiser.zero_grad()
        self._count += self.plan.accumulation
        if self.ema is not None:
            self.ema.update()

    def _make(self, samples: list[Any], positions: list[int]) -> Any:
        return self.collate(samples, positions, self.config.seed, self.config.draws)

    # -- figures --------------------------------------------------------------------------------------------------

    def _window(self) -> None:
        """Begin a new line of the metrics."""
        self._sum = torch.zeros((), dtype=torch.float32, device=self.accelerator.device)
        self._count, self._since = 0, time.perf_counter()
        self._norms: list[torch.Tensor] = []

    def _log(self) -> None:
        config, accelerator = self.config, self.accelerator
        mean = self._sum / max(self._count, 1)
        if accelerator.num_processes > 1:
            mean = accelerator.reduce(mean, "mean")
        loss = float(mean)
        norms = [float(norm) for norm in self._norms if norm is not None]
        steps = self._count // self.plan.accumulation
        seconds = time.perf_counter() - self._since
        figures = {
            "loss": loss,
            "lr": self._rate,
            "grad_norm": sum(norms) / len(norms) if norms else None,
            "samples_per_second": steps * config.global_batch / seconds,
        }
        if accelerator.device.type == "cuda":
            figures["peak_bytes"] = torch.cuda.max_memory_allocated(accelerator.device)
        if self.metrics is not None:
            self.metrics.add(self.step, **figures)
        if config.trackers:
            accelerator.log({key: value for key, value in figures.items() if value is not None}, step=self.step)
        if not math.isfinite(loss):
            last = find_latest(self.out)
            raise KiwiError(
                f"the loss is {loss} at step {self.step}",
                "lower optimiser.lr or set clip=1"
                + (f"; the last state, '{last.name}', is from before: go on with --resume" if last else ""),
            )
        self.result.loss = loss
        self._window()

    def _averaged(self) -> Any:
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def _validate(self) -> None:
        assert self.held is not None
        if not self.held.batches:
            return
        began = time.perf_counter()
        model = self.accelerator.unwrap_model(self.wrapped)
        with self._averaged():
            losses = self.held.losses(
                model, self.accelerator, lambda samples, rows: self.collate(samples, rows, SEED, self.config.draws)
            )
        forget_whole(model)
        self.result.held_out.append((self.step, losses))
        if self.metrics is not None:
            self.metrics.add(self.step, held_out=losses)
            draw_curves(self.out)
        if self.config.trackers:
            self.accelerator.log({f"held_out/{name}": loss for name, loss in losses.items()}, step=self.step)
        shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        self.events.note(f"step {self.step}: held-out loss {shown}")
        self._since += time.perf_counter() - began  # not the training's time

    def _save(self) -> None:
        if self._count:
            self._log()  # a state whose loss is not finite is none to go on from
        began = time.perf_counter()
        self.result.state = save(
            self.config, self.step, self.parameters, self.optimiser, self.ema, self.accelerator
        ) or find_latest(self.out)
        self._since += time.perf_counter() - began
