"""From a run in memory to its state on disk and back: which state to go on from, and what of a run belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from kiwi_cli.base.events import Events
from kiwi_cli.errors import CheckpointError, KiwiError, UsageError
from kiwi_cli.train.config import TrainConfig
from kiwi_cli.train.ema import Ema
from kiwi_cli.train.launch import all_agree
from kiwi_cli.train.sharding import gather, like
from kiwi_cli.train.state import (
    State,
    changed_settings,
    check_fit,
    clear_partial,
    find_latest,
    optimiser_tensors,
    read_state,
    restore_optimiser,
    save_state,
)

Parameters = Mapping[str, torch.nn.Parameter]


def find_state(
    config: TrainConfig, parameters: Parameters, resume: bool, accelerator: Accelerator, events: Events
) -> State | None:
    """The state a run goes on from, checked against the model; None begins anew.

    Raises:
        UsageError: the folder holds a run already and `resume` was not asked for.
        CheckpointError: a state that is damaged, of another stage or of a model of another width.
    """
    out = Path(config.out)
    latest = find_latest(out)
    if not resume:
        if latest is not None:
            raise UsageError(
                f"'{out}' holds a run that is at step {int(latest.name.removeprefix('step-'))}",
                "go on with --resume, or choose another --out",
            )
        return None
    left = clear_partial(out) if accelerator.is_main_process else []
    if latest is None:
        events.note(f"no state in '{out}': beginning at step 0")
        return None
    for name in left:
        events.warn(f"the save of '{name}' was cut off; going on from '{latest.name}', the last whole state")
    state = read_state(latest)
    check_fit(state, config.stage, parameters)
    kept = state.config.get("optimiser", {}).get("name")
    if kept != config.optimiser.name:
        raise CheckpointError(
            f"the state is of the optimiser '{kept}', not '{config.optimiser.name}'",
            f"pass --set optimiser.name={kept}, or start anew with another --out",
        )
    events.note(f"going on from '{latest}'")
    changes = [line for line in changed_settings(state, config.as_dict()) if not line.startswith("out ")]
    if changes:
        events.warn(f"settings differ from the saved run's: {'; '.join(changes)}")
    return state


@torch.no_grad()
def restore(state: State, parameters: Parameters, optimiser: Any, accelerator: Accelerator) -> None:
    """Put a state's weights, moments and this process's random numbers in place."""
    for name, value in parameters.items():
        value.copy_(like(state.weights[name], value))
    restore_optimiser(inner(optimiser), parameters, state.optimiser)
    rank = accelerator.process_index
    if f"{rank}.cpu" in state.random:
        torch.set_rng_state(state.random[f"{rank}.cpu"])
    if f"{rank}.cuda" in state.random and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(state.random[f"{rank}.cuda"])


def save(
    config: TrainConfig, step: int, parameters: Parameters, optimiser: Any, ema: Ema | None, accelerator: Accelerator
) -> Path | None:
    """Save the whole state, in the first process; all must call this, and a failure there ends all of them.

    Returns:
        The state's folder, in the first process.

    Raises:
        KiwiError: as `save_state`.
    """
    random = _random_state(accelerator)
    first = accelerator.is_main_process
    weights = gather({name: value.detach() for name, value in parameters.items()}, first)
    moments = gather(optimiser_tensors(inner(optimiser), parameters), first)
    average = gather(ema.tensors() if ema is not None else {}, first)
    failure: KiwiError | None = None
    folder = None
    if first:
        state = State(
            step=step,
            stage=config.stage,
            weights=weights,
            optimiser=moments,
            ema=average,
            ema_updates=ema.updates if ema is not None else 0,
            random=random,
            config=config.as_dict(),
        )
        try:
            folder = save_state(Path(config.out), state, config.save.keep)
        except KiwiError as error:
            failure = error
    if not all_agree(accelerator, failure is None):
        raise failure or KiwiError("the first process could not save the state", "see what it says")
    return folder


def _random_state(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Every process's generators, known to all."""
    mine = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state()
    found: dict[str, torch.Tensor] = {}
    for kind, value in mine.items():
        rows: Any = value[None]
        if accelerator.num_processes > 1:
            rows = accelerator.gather(rows.to(accelerator.device)).cpu()
        found |= {f"{rank}.{kind}": row.clone() for rank, row in enumerate(rows)}
    return found


def inner(optimiser: Any) -> torch.optim.Optimizer:
    """The torch optimiser inside accelerate's."""
    return getattr(optimiser, "optimizer", optimiser)
