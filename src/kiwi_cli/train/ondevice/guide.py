"""What a context is asked while a small model learns to read: which kind of edit it is, and where the latents go.

The loss of denoising alone teaches a language model that begins from nothing to tell kinds of edit apart, and slowly
where there are many. A linear layer on the context, thrown away after training, says it at once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from kiwi_cli.synth.wordings import EVERY_KIND


class Guide(nn.Module):
    """A linear reading of the queries' part of a context.

    Args:
        queries, dim: of a context. channels: of latents.
    """

    def __init__(self, queries: int, dim: int, channels: int) -> None:
        super().__init__()
        self.queries, self.dim, self.channels = queries, dim, channels
        self.read = nn.Linear(queries * dim, len(EVERY_KIND) + 2 * channels)

    def forward(self, context: torch.Tensor, kind: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy of the kind, plus the mean squared error of the target's statistics.

        Args:
            context: (B, N, D), the queries last. kind: (B,) numbers in `EVERY_KIND`. target: (B, C, T, h, w) latents,
                of whose channels the means and standard deviations are asked.
        """
        tokens = functional.layer_norm(context[:, -self.queries :].float(), (self.dim,))
        kinds, statistics = self.read(tokens.flatten(1)).split([len(EVERY_KIND), 2 * self.channels], dim=1)
        flat = target.flatten(2)
        wanted = torch.cat([flat.mean(2), flat.std(2)], dim=1)
        return functional.cross_entropy(kinds, kind.long()) + functional.mse_loss(statistics, wanted)
