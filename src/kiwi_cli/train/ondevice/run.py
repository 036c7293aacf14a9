"""The embedded model from a checkpoint to exported parts in a given number of minutes.

    0        the generators start, the checkpoint is read
    vae      the autoencoder, on the recipe's clips; what is drawn meanwhile waits in the device's memory
    model    everything else but the vision tower, all kinds and forms at once
    end      held-out figures; the parts

State and parts are written every minute, so that a run that is cut short leaves something to go on from and to look at.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from kiwi_cli.errors import EXIT_INTERRUPTED
from kiwi_cli.train.muon import is_hidden_matrix
from kiwi_cli.train.ondevice import autoencoder, figures
from kiwi_cli.train.ondevice.bank import Bank, upload
from kiwi_cli.train.ondevice.bf16 import Bf16
from kiwi_cli.train.ondevice.generators import Chunk, Generators
from kiwi_cli.train.ondevice.guide import Guide
from kiwi_cli.train.ondevice.learner import Judge, Learner, cosine
from kiwi_cli.train.ondevice.objective import Form, Objective
from kiwi_cli.train.ondevice.recipe import HELD_OUT_SEED, Ask
from kiwi_cli.train.ondevice.record import Record
from kiwi_cli.train.ondevice.saving import export, read_state, restore, write_state
from kiwi_cli.train.ondevice.session import (
    DONE,
    MODEL,
    VAE,
    OnDeviceRun,
    Settings,
    check_device,
    open_run,
    tools_of,
)
from kiwi_cli.train.ondevice.visible import Visible
from kiwi_cli.train.sampler import Interleaving

SAID = 10.0
"""Seconds between two judgements and lines of the metrics."""
FIRST_SCENES = 24
"""Of each bank before the first step: a few scenes alone would be learnt by heart, and unlearnt after."""


def train(settings: Settings) -> int:
    """Carry out a run, or go on with it where its state says; its exit code.

    Raises:
        KiwiError: no such device, a checkpoint that cannot be read, the state of another run, generators that fail.
    """
    began = time.monotonic()
    check_device(settings.device)
    progress, loaded = read_state(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    settings.state.mkdir(parents=True, exist_ok=True)
    if progress.stage == DONE:
        settings.say(f"'{settings.state}' is of a run that is done: give another --state to begin anew")
        return 0
    tools = tools_of(settings.start, settings.photographs)
    chosen = settings.recipe.scaled(settings.scale)
    specs = {spec.name: spec for spec in chosen.specs}
    generators = Generators(tools, specs, settings.workers, dict(chosen.for_the_vae), progress.seed)
    spent = progress.seconds
    with generators, _stops() as stopped:
        for name, count in chosen.held_out.items():
            for number in range(count):
                generators.first(name, HELD_OUT_SEED + number * specs[name].scenes)
        run = open_run(settings, chosen, generators, progress, loaded, lambda: spent + time.monotonic() - began)
        run.stopped = stopped
        shown = {key: value for key, value in vars(settings).items() if key != "recipe"}
        run.log(stage="open", **{key: str(value) for key, value in shown.items()})
        with _own_stream(run.device):
            if progress.stage == VAE:
                _train_vae(run)
            if progress.stage == MODEL and not run.stopped:
                _train_model(run)
    return EXIT_INTERRUPTED if run.stopped and progress.stage != DONE else 0


def _own_stream(device: torch.device) -> Any:
    """All work on one stream that is not the default one, which cannot be recorded."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


@contextmanager
def _stops() -> Iterator[list[int]]:
    """A list that a SIGINT or SIGTERM is put into: the step is finished, the state saved. A second one ends at once."""
    seen: list[int] = []

    def stop(number: int, _: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the autoencoder ------------------------------------------------------------------------------------------------


def _train_vae(run: OnDeviceRun) -> None:
    settings, progress = run.settings, run.progress
    clips = autoencoder.Clips(settings.scale, room=int(24e9 * settings.scale))

    def take(chunk: Chunk) -> None:
        clips.add(chunk.spec.name, upload(chunk, run.device))

    def ready() -> bool:
        return len(clips.chunks) >= 3

    if settings.vae_share > 0:
        _begin(run, settings.vae_share)
        learner = autoencoder.learner(run.vae, settings.vae_lr)
        restore(learner, run)
        _loop(
            run,
            learner,
            take,
            lambda _: autoencoder.loss(run.vae, clips.batch(learner.steps, run.random), run.random),
            ready,
            warm_up=0.1,
        )
        while not (ready() or run.stopped):  # a run that goes on when this stage is over
            _take(run, take, wait=1.0)
        if run.stopped:
            write_state(run, learner)
            return
        with torch.no_grad():
            for value in run.vae.parameters():  # what is exported is what is used from here on
                value.copy_(value.to(torch.bfloat16))
        autoencoder.measure_latents(run.vae, clips)
        run.coder.settle()
    for name, arrays in clips.chunks:
        run.banks[name].add(arrays, run.coder)
    progress.stage, progress.began = MODEL, None
    run.loaded = {}


# -- the model ------------------------------------------------------------------------------------------------------


def _train_model(run: OnDeviceRun) -> None:
    settings = run.settings
    run.generators.blend(run.recipe.for_the_model)
    _begin(run, 1.0)
    trained = {
        name: value for name, value in run.model.named_parameters() if not name.startswith("mllm_encoder.qwen.visual.")
    }
    guide = _guide(run)
    if guide is not None:
        trained |= {f"guide.{name}": value for name, value in guide[0].named_parameters()}
    on_cuda = run.device.type == "cuda"
    compiled = settings.compiled and not on_cuda
    learner = Learner(trained, settings.lr, decay=settings.ema, is_hidden=_hidden, grouped=on_cuda or compiled)
    restore(learner, run)
    in_bf16 = Bf16(run.model, run.device) if on_cuda or compiled else None
    share = run.recipe.visible
    visible = (Visible.of(run.vae, run.device), share) if share else None
    dtype = torch.float32 if in_bf16 is None else torch.bfloat16
    objective = Objective(run.model, run.device, dtype, guide, visible, run.recipe.even)
    forms = [_form(run, ask, run.banks[ask.spec]) for ask in run.recipe.asked]
    order = Interleaving([ask.weight for ask in run.recipe.asked])

    def loss(number: int) -> torch.Tensor:
        if in_bf16 is None:
            return objective.loss(forms[number], run.random)
        return in_bf16.call(lambda: objective.loss(forms[number], run.random))

    if settings.record and on_cuda:
        learner.record = Record(run.random, lambda why: _unrecorded(run, learner, why))

    def take(chunk: Chunk) -> None:
        run.banks[chunk.spec.name].add(upload(chunk, run.device), run.coder)

    _loop(
        run,
        learner,
        take,
        loss,
        lambda: all(bank.scenes >= min(FIRST_SCENES, bank.capacity) for bank in run.banks.values()),
        warm_up=0.03,
        form=lambda: order[learner.steps][0],
    )
    if not run.stopped:
        run.log(banks=[figures.banked(bank) for bank in run.banks.values()])
        export(run, learner)
    while not (run.stopped or _held_out_is_here(run)):  # of a run that goes on when its steps are done, none is yet
        _take(run, take, wait=1.0)
    if run.stopped:
        write_state(run, learner)
        return
    with torch.compiler.set_stance("force_eager"):  # shapes of a few edits are not worth a compiler's minute each
        _figures(run, learner, objective if on_cuda else Objective(run.model, run.device, torch.float32))
    run.progress.stage = DONE
    write_state(run, learner)


def _held_out_is_here(run: OnDeviceRun) -> bool:
    return all(len(run.held_clips.get(name, ())) >= count for name, count in run.recipe.held_out.items())


def _unrecorded(run: OnDeviceRun, learner: Learner, why: str) -> None:
    """Go on without recorded steps: with gradients that were computed, and a generator that is not recorded."""
    learner.optimiser.zero_grad()
    run.random = torch.Generator(run.device).manual_seed(run.settings.seed + 1)
    run.log(not_recorded=why)


def _guide(run: OnDeviceRun) -> tuple[Guide, float] | None:
    """What contexts are asked, if the recipe has it so; the same at each start."""
    if run.recipe.guide <= 0:
        return None
    mllm = run.model.mllm_encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.settings.seed)
        guide = Guide(min(mllm.query_counts.values()), mllm.config.dit_dim, run.vae.config.z_dim)
    return guide.to(run.device), run.recipe.guide


def _hidden(name: str, parameter: torch.Tensor) -> bool:
    """Muon's: the language model's matrices too, which cost nothing in groups."""
    return not name.startswith("guide.") and is_hidden_matrix(name.replace("qwen.language_model.", ""), parameter)


def _form(run: OnDeviceRun, ask: Ask, bank: Bank, draws: int | None = None) -> Form:
    settings, spec, prompts = run.settings, bank.spec, run.prompts[ask]
    tools = bank.tools
    frames = 1 if ask.still else 1 + (spec.frames - 1) // tools.frames_per_latent
    places = spec.height // tools.reduction * (spec.width // tools.reduction)
    draws = draws or settings.draws
    each = draws * places * (frames + int(ask.reference)) + prompts.length
    batch = max(2, settings.positions // each)
    return Form(bank, prompts, frames, ask.reference, batch, draws, settings.strength)


def _figures(run: OnDeviceRun, learner: Learner, objective: Objective) -> None:
    """Held-out edits by the averaged weights, into figures.json."""
    found: dict[str, Any] = {}
    with learner.averaged():
        for ask in run.recipe.asked:
            bank = run.held_out.get(ask.spec)
            if bank is None or ask.spec not in run.held_clips:
                continue
            bank.settle(run.coder)
            clips = torch.cat(run.held_clips[ask.spec])
            if not ask.still and not ask.reference:
                found[f"autoencoder {ask.spec}"] = figures.reconstruction(run.vae, clips[:, :2].flatten(0, 1))
            name = " ".join([ask.spec, "picture" if ask.still else "clip"])
            form = _form(run, ask, bank, draws=1)
            kinds = np.concatenate(run.held_kinds[ask.spec])
            found.setdefault(name, {}).update(figures.held_out(objective, run.vae, form, clips, kinds, run.random))
    (run.settings.out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    run.log(held_out=found)


# -- both -----------------------------------------------------------------------------------------------------------


def _begin(run: OnDeviceRun, share: float) -> None:
    """Give the stage its share of what is left, unless it goes on."""
    progress, total = run.progress, run.settings.minutes * 60
    if progress.began is None:
        progress.began = run.clock()
        progress.until = progress.began + share * max(0.0, total - min(20.0, 0.15 * total) - progress.began)


def _loop(
    run: OnDeviceRun,
    learner: Learner,
    take: Callable[[Chunk], None],
    loss: Callable[[Any], torch.Tensor],
    ready: Callable[[], bool],
    warm_up: float,
    form: Callable[[], Any] = lambda: None,
) -> None:
    """Steps until the stage's time or steps are over, chunks taken in between.

    Each ten seconds, before each state and at the end the steps since are judged, and what they did is kept or taken
    back: no weights are saved or handed on that were not.
    """
    settings, progress = run.settings, run.progress
    assert progress.began is not None
    said = saved = run.clock()
    limit, judge = settings.steps or math.inf, Judge(learner)
    while run.left() > 0 and learner.steps < limit and not run.stopped:
        _take(run, take, wait=0.0 if ready() else 1.0)
        if not ready():
            continue
        timed = 1 - run.left() / max(1e-9, progress.until - progress.began)
        asked = form()
        factor = cosine(max(timed, learner.steps / limit), warm_up, 0.02)
        learner.step(lambda asked=asked: loss(asked), factor, asked)  # type: ignore[misc]
        now = run.clock()
        if now - said <= min(SAID, settings.every):
            continue
        rate = judge.unjudged / (now - said)
        run.log(stage=progress.stage, step=learner.steps, loss=judge(), steps_a_second=round(rate, 2))
        said = run.clock()
        if said - saved > settings.every:
            write_state(run, learner)
            if progress.stage == MODEL:
                export(run, learner)
            saved = run.clock()
    run.log(stage=progress.stage, step=learner.steps, loss=judge(), ended=True)


def _take(run: OnDeviceRun, take: Callable[[Chunk], None], wait: float) -> None:
    """Hand over a chunk, if one is ready. A held-out one is kept for the end, when the autoencoder is trained."""
    chunk = run.generators.take(wait)
    if chunk is None:
        return
    if not chunk.held_out:
        take(chunk)
        return
    name = chunk.spec.name
    run.held_kinds.setdefault(name, []).append(chunk.arrays["kind"].copy())
    arrays = upload(chunk, run.device)
    run.held_clips.setdefault(name, []).append(arrays["clips"])
    run.held_out[name].pending.append(arrays)
