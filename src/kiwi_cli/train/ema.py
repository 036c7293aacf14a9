"""An exponential moving average of the trained parameters, kept beside them in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from kiwi_cli.errors import CheckpointError
from kiwi_cli.train.sharding import like


class Ema:
    """The average: after each optimiser step `shadow += (1 - d) * (weights - shadow)`.

    The decay grows to its value, d = min(decay, (1 + n) / (10 + n)) in update n, so that the first weights are soon
    forgotten (the same rule as in the library's EMA).

    Args:
        parameters: name -> trained parameter, fp32. They are read, and written only by `swapped`.
        decay: above 0, below 1. About 1 / (1 - decay) steps are averaged.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {decay}")
        narrow = [name for name, value in parameters.items() if value.dtype != torch.float32]
        if narrow:
            raise ValueError(f"trained parameters must be fp32 to be exchanged without loss: {narrow[0]} is not")
        self.parameters = dict(parameters)
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in self.parameters.items()}

    @property
    def share(self) -> float:
        """How much of the weights the next update takes in, 1 - d."""
        return 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self, share: torch.Tensor | None = None) -> None:
        """Take in the weights as they are now: once for each optimiser step.

        Args:
            share: the property's value as it is on the device by then, () fp32: what a recorded step reads.
        """
        shadow, weights = list(self.shadow.values()), [value.detach() for value in self.parameters.values()]
        if share is None:
            torch._foreach_lerp_(shadow, weights, self.share)
        else:  # lerp takes no weight on the device
            way = torch._foreach_sub(weights, shadow)
            torch._foreach_mul_(way, share)
            torch._foreach_add_(shadow, way)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The average in the model's place, for validation, previews and exports; the weights come back to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self.parameters.items():
            held = value.detach().clone()  # one at a time: no second copy of the model
            value.copy_(self.shadow[name])
            self.shadow[name].copy_(held)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> average, fp32: what a state saves, with `updates`."""
        return dict(self.shadow)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Go on from a saved average.

        Raises:
            CheckpointError: not of these parameters.
        """
        for name, shadow in self.shadow.items():
            found = tensors.get(name)
            if found is None or found.shape != shadow.shape:
                shape = "missing" if found is None else f"{tuple(found.shape)}"
                raise CheckpointError(
                    f"the saved average of '{name}' is {shape}, not {tuple(shadow.shape)}",
                    "resume with the settings the run began with",
                )
            shadow.copy_(like(found, shadow))
        self.updates = updates
