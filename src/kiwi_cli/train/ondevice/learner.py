"""Optimiser, clipping and average of a run whose host never waits: rates and counts are tensors on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from kiwi_cli.train.ema import Ema
from kiwi_cli.train.muon import MuonAdamW, is_hidden_matrix
from kiwi_cli.train.ondevice.record import Record
from kiwi_cli.train.state import optimiser_tensors, restore_optimiser

AHEAD = 16
"""Steps between two marks. The host is at most two marks ahead of the device, so its clock is the device's too."""
JUMP, JUDGED = 3.0, 5
"""A loss that is that many times the least one so far is as bad as none, both as means of so many steps at least:
forms of batches differ."""


class Learner:
    """Trained parameters and everything that changes them.

    Args:
        parameters: name -> parameter, fp32, on the device.
        decay: of the average; 0 keeps none.
        clip: largest norm of the gradient.
        grouped: as `MuonAdamW` has it.

    Attributes:
        steps: done. record: what recorded steps are replayed from; None: none is recorded.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        lr: float,
        *,
        decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float = 1.0,
        is_hidden: Callable[[str, torch.Tensor], bool] = is_hidden_matrix,
        grouped: bool | None = None,
    ) -> None:
        self.parameters, self.lr, self.clip = dict(parameters), lr, clip
        for value in self.parameters.values():
            value.requires_grad_(True)
        self.device = next(iter(self.parameters.values())).device
        self.optimiser = MuonAdamW(self.parameters, lr, betas=betas, is_hidden=is_hidden, grouped=grouped)
        self.optimiser.prepare()
        self._rate = torch.zeros((), device=self.device)
        self._share = torch.zeros((), device=self.device)
        self.ema = Ema(self.parameters, decay) if decay else None
        self._sum = torch.zeros((), device=self.device)
        self.steps, self._summed = 0, 0
        self._marks: list[torch.cuda.Event] = []
        self._kept: list[torch.Tensor] = []
        self.record: Record | None = None

    def step(self, loss: Callable[[], torch.Tensor], factor: float, form: Any = None) -> None:
        """One step down a loss, at `factor` of the rate.

        Args:
            loss: computes it; nothing in it may wait for the device, or depend on what has changed on the host, if
                there is a `form`.
            form: which of several losses it is. Steps of one form are recorded once and replayed from then on, where
                `record` is set; None is never recorded.
        """
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            self._rate.fill_(self.lr * factor)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate if on_cuda else self.lr * factor
        if self.ema is not None:
            self.ema.updates = self.steps
            self._share.fill_(self.ema.share)
        if self.record is None or form is None:
            self._whole_step(loss)
        else:
            self.record.run(form, lambda: self._whole_step(loss))
        self.steps += 1
        self._summed += 1
        self._pace()

    def _whole_step(self, loss: Callable[[], torch.Tensor]) -> None:
        value = loss()
        value.backward()
        with torch.no_grad():
            self._sum += value.detach()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema is not None:
            self.ema.update(self._share)

    def _pace(self) -> None:
        if self.device.type != "cuda" or self.steps % AHEAD:
            return
        self._marks.append(torch.cuda.Event())
        self._marks[-1].record()
        if len(self._marks) > 1:
            self._marks.pop(0).synchronize()  # of AHEAD steps ago

    def window(self) -> float:
        """The mean loss since the last call; waits for the device. NaN where there was no step."""
        mean = float(self._sum) / self._summed if self._summed else math.nan
        self._sum.zero_()
        self._summed = 0
        return mean

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the weights as they are, for `back`."""
        self._kept = [value.detach().clone() for value in self._all()]

    @torch.no_grad()
    def back(self) -> None:
        """The weights that were kept last, and half the rate: what is left to do about a loss that is no number."""
        for value, kept in zip(self._all(), self._kept, strict=True):
            value.copy_(kept)
        for fields in self.optimiser.state.values():
            for field in fields.values():  # AdamW's count too, by which it scales moments that begin at zero
                field.zero_()
        self.lr /= 2

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all weights are numbers; waits for the device."""
        return bool(torch.stack(torch._foreach_norm(self._all())).isfinite().all())

    def _all(self) -> list[torch.Tensor]:
        return [*self.parameters.values(), *self._shadow().values()]

    def _shadow(self) -> dict[str, torch.Tensor]:
        return {} if self.ema is None else self.ema.tensors()

    def averaged(self) -> AbstractContextManager[None]:
        """A context with the average, if there is one, in the parameters' place."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is needed to go on."""
        found = {f"weight/{name}": value.detach() for name, value in self.parameters.items()}
        found |= {f"average/{name}": value for name, value in self._shadow().items()}
        optimiser = optimiser_tensors(self.optimiser, self.parameters)
        found |= {f"optimiser/{name}": value for name, value in optimiser.items()}
        return found | {"progress": torch.tensor([self.steps, self.lr], dtype=torch.float64)}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from `tensors`."""
        parts: dict[str, dict[str, Any]] = {"weight": {}, "average": {}, "optimiser": {}}
        for key, value in tensors.items():
            if key != "progress":
                part, name = key.split("/", 1)
                parts[part][name] = value
        for name, parameter in self.parameters.items():
            parameter.copy_(parts["weight"][name])
        restore_optimiser(self.optimiser, self.parameters, parts["optimiser"])
        self.optimiser.prepare()  # what is in no older state, and counts, to the device
        steps, self.lr = tensors["progress"].tolist()
        self.steps = int(steps)
        if self.ema is not None:
            self.ema.load(parts["average"], self.steps)


class Judge:
    """Whether the steps since the last call did harm, by their mean loss; if so, they are taken back."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._best, self._judged = math.inf, learner.steps
        learner.keep()

    @property
    def unjudged(self) -> int:
        """Steps since the last call."""
        return self._learner.steps - self._judged

    def __call__(self) -> float:
        """The mean loss of these steps; NaN where there were none."""
        learner, done = self._learner, self.unjudged
        mean, self._judged = learner.window(), learner.steps
        if done == 0:
            return mean
        # The last step is in no loss yet: its weights are looked at.
        if math.isfinite(mean) and learner.is_finite() and (mean < JUMP * self._best or done < JUDGED):
            self._best = min(self._best, mean) if done >= JUDGED else self._best
            learner.keep()
            return mean
        learner.back()
        if learner.record is not None and learner.record.works:
            learner.record.give_up(f"the loss went from {self._best} to {mean}")
        return mean


def cosine(progress: float, warm_up: float, final: float) -> float:
    """Factor of the rate at a fraction 0..1 of the time: a rise, then a cosine down to `final`."""
    down = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (progress + 1e-3) / warm_up) * down
