"""Muon for the hidden matrices, AdamW for the rest, as one optimiser.

Muon (Keller Jordan, 2024) replaces the momentum of a weight matrix by the nearest matrix whose singular values are
all about one, found by five Newton-Schulz steps, so that every direction of a layer learns at the same rate. The
released recipe is AdamW; the embedded model is trained with this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz step; they trade the last digits of the singular values for speed."""

_LIKE_ADAM = 0.2
"""Root mean square of an AdamW step, so that one learning rate suits both (Moonshot AI, 2025, section 2.2)."""


def orthogonalised(update: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest matrices with singular values near one (0.7 to 1.2), in bfloat16.

    Args:
        update: (rows, columns), or (n, rows, columns) for n matrices at once.
    """
    matrix, many = update.to(torch.bfloat16), update.ndim == 3
    tall = matrix.shape[-2] > matrix.shape[-1]
    if tall:
        matrix = matrix.mT
    matrix = matrix / (torch.linalg.matrix_norm(matrix, keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = matrix @ matrix.mT
        if many:  # the sums are the products' own: fewer launches, and rounded once
            matrix = torch.baddbmm(matrix, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), matrix, beta=a)
        else:
            matrix = a * matrix + (b * gram + c * (gram @ gram)) @ matrix
    return matrix.mT if tall else matrix


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon is for this parameter: a matrix or convolution between hidden features.

    Embeddings, tables, queries and the first and last layers map to or from something that is no feature, and are
    AdamW's. So is the language model, for time: its matrices would take as long as the transformer's.
    """
    ends = (
        "language_model",
        "embed_tokens",
        "queries",
        "patch_embedding",
        "proj_out",
        "conv_in",
        "conv_out",
        "scale_shift_table",
    )
    return parameter.ndim >= 2 and not any(end in name for end in ends)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the hidden matrices, AdamW for all other parameters.

    Args:
        parameters: name -> parameter; a convolution's kernel is taken as a matrix of (out, the rest).
        is_hidden: which parameters are Muon's.
        grouped: matrices of one shape take a step together and AdamW's part is fused: the same arithmetic in a tenth of
            the launches, no value read by the host; `lr` of a group may be a tensor then. None: on CUDA. Runs on
            a processor stay what they were to the bit; one with AMX takes 0.4 of the time in groups.
        lr: of both. momentum: of Muon (Nesterov). betas, eps: of AdamW. weight_decay: of both, decoupled.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter] | Iterable[tuple[str, torch.nn.Parameter]],
        lr: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        is_hidden: Callable[[str, torch.Tensor], bool] = is_hidden_matrix,
        grouped: bool | None = None,
    ) -> None:
        self.grouped = grouped
        named = dict(parameters)
        hidden = [value for name, value in named.items() if is_hidden(name, value)]
        others = [value for name, value in named.items() if not is_hidden(name, value)]
        common: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        groups = [
            {"params": hidden, "muon": True, "momentum": momentum, "betas": betas, "eps": eps, **common},
            {"params": others, "muon": False, "momentum": momentum, "betas": betas, "eps": eps, **common},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def prepare(self) -> None:
        """Make now what is kept of each parameter, all zeros; what there is stays. Later steps make nothing.

        Without it, a parameter's first step with a gradient does so: 2 to 3 launches more for each on a device.
        """
        for group in self.param_groups:
            self._make_state(group["params"], group)

    def _in_groups(self, parameter: torch.Tensor) -> bool:
        return parameter.device.type == "cuda" if self.grouped is None else self.grouped

    def _make_state(self, parameters: Iterable[torch.Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if group["muon"]:
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                continue
            # One by one, the host reads the count; in groups the device does.
            place = parameter.device if self._in_groups(parameter) else torch.device("cpu")
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=place)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            elif state["step"].device != place:  # from a saved state
                state["step"] = state["step"].to(place)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step over all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            there = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not there:
                continue
            self._make_state(there, group)
            if self._in_groups(there[0]):
                (self._muon_together if group["muon"] else self._adamw_fused)(there, group)
                continue
            update = self._muon if group["muon"] else self._adamw
            for parameter in there:
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                update(parameter, group)

    def _muon(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        assert parameter.grad is not None
        momentum = state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
        update = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
        direction = orthogonalised(update).to(parameter.dtype).view_as(parameter)
        parameter.add_(direction, alpha=-group["lr"] * _LIKE_ADAM * math.sqrt(max(update.shape)))

    def _muon_together(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        directions = together([update.flatten(1) for update in updates])
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        scaled = [direction.view_as(parameter) for direction, parameter in zip(directions, parameters, strict=True)]
        torch._foreach_mul_(scaled, group["lr"])
        torch._foreach_sub_(parameters, scaled)

    def _adamw(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        first, second = group["betas"]
        state["step"] += 1
        count = int(state["step"])
        mean = state["exp_avg"].lerp_(parameter.grad, 1.0 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1.0 - second)
        scale = (square / (1.0 - second**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, scale, value=-group["lr"] / (1.0 - first**count))

    def _adamw_fused(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        fields = {
            key: [self.state[parameter][key] for parameter in parameters] for key in ("exp_avg", "exp_avg_sq", "step")
        }
        torch._foreach_add_(fields["step"], 1)
        first, second = group["betas"]
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            fields["exp_avg"],
            fields["exp_avg_sq"],
            [],
            fields["step"],
            lr=group["lr"],
            beta1=first,
            beta2=second,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def together(updates: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The steps of matrices for a rate of one, in fp32, those of one shape computed in one product.

    Args:
        updates: (rows, columns) each. A tall one shares the products of its transpose's shape.
    """
    shapes: dict[tuple[int, int], list[int]] = {}
    for number, update in enumerate(updates):
        shapes.setdefault((min(update.shape), max(update.shape)), []).append(number)
    steps: dict[int, torch.Tensor] = {}
    for (_, longer), numbers in shapes.items():
        tall = [updates[number].shape[0] > updates[number].shape[1] for number in numbers]
        wide = [updates[number].mT if turned else updates[number] for number, turned in zip(numbers, tall, strict=True)]
        directions = orthogonalised(torch.stack(wide)).float() * (_LIKE_ADAM * math.sqrt(longer))
        for number, turned, direction in zip(numbers, tall, directions, strict=True):
            steps[number] = direction.mT.contiguous() if turned else direction
    return [steps[number] for number in range(len(updates))]
