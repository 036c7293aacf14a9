"""The model's velocity of single windows of a long edit, from what lies on the host."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kiwi_cli.engine import finite
from kiwi_cli.engine.layout import Layout
from kiwi_cli.engine.pipeline import KiwiPipeline, Progress
from kiwi_cli.engine.step_cache import CacheRun, EasyCache, StepCache
from kiwi_cli.model import sampling


class WindowModel:
    """A pipeline that is asked for the velocity of one window at a time; the device holds that window alone.

    Args:
        source: latents of all rows, (rows, C, h, w) fp32. references: (1, C, R, h, w) or None.
        contexts: tokens by the number of the shot, or of the window with `window_contexts`.
        sigmas: (steps + 1,) fp32. All of these are on the host.
        cache: its state is kept for each window.
    """

    def __init__(
        self,
        pipe: KiwiPipeline,
        layout: Layout,
        sigmas: torch.Tensor,
        source: torch.Tensor,
        contexts: Mapping[int, torch.Tensor],
        references: torch.Tensor | None,
        window_contexts: bool = False,
        cache: StepCache | None = None,
    ) -> None:
        self.pipe, self.layout, self.sigmas, self.source = pipe, layout, sigmas, source
        self.contexts, self.references, self.window_contexts, self.cache = contexts, references, window_contexts, cache
        self.caches: dict[int, EasyCache] = {}

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def velocity(self, device: torch.device, latents: torch.Tensor, step: int, number: int) -> torch.Tensor:
        """Of one window's latents (1, C, n, h, w), on the host.

        Raises:
            KiwiError: values that are not finite, with the place where that began.
        """
        try:
            found = self._velocity(device, latents, step, number)
            if finite.is_finite(found):
                return found
        except finite.NotFiniteError:
            pass  # said below, with the place where it began

        def again(report: Progress | None = None) -> torch.Tensor:
            if report is not None:  # it counts the steps
                for done in range(step):
                    report("denoise", done + 1, self.steps)
            with self.pipe._stage("denoise") as device:
                return self._velocity(device, latents, step, number)

        return self.pipe._finite(again)

    def _velocity(self, device: torch.device, latents: torch.Tensor, step: int, number: int) -> torch.Tensor:
        pipe, window, dtype = self.pipe, self.layout.windows[number], self.pipe.compute_dtype
        context = self.contexts[number if self.window_contexts else window.shot]
        source = self.source[list(window.rows)].transpose(0, 1).contiguous()[None].to(device)
        references = None if self.references is None else self.references.to(device)
        conditions = pipe.embed_conditions(source, references)
        velocity = sampling.velocity_of(pipe.transformer, dtype, context.to(device, dtype), **conditions)
        moving, sigma = latents.to(device), self.sigmas[step].to(device)
        if self.cache is None or self.cache.threshold == 0:
            return velocity(moving, sigma, step).to(torch.float32).cpu()
        if number not in self.caches:
            record = CacheRun(self.cache, self.steps)
            self.caches[number] = EasyCache(velocity, self.cache.threshold, record)
        kept = self.caches[number]
        kept.velocity = velocity
        kept.move(device)
        found = kept(moving, sigma, step).to(torch.float32).cpu()
        kept.move("cpu")
        return found
