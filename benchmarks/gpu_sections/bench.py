"""What the sections measure with: the shape, the device, a pipeline that is drawn once and kept, and ways to time."""

from __future__ import annotations

import functools
import gc
import hashlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch

from kiwi_cli import KiwiPipeline
from kiwi_cli.bench.speed.clock import Clock, matrix_rate, peak_memory
from kiwi_cli.bench.speed.operations import coder_operations, step_operations
from kiwi_cli.engine.attention import choose_attention, set_attention
from kiwi_cli.engine.demand import demand_of
from kiwi_cli.engine.random_model import moving_picture, random_pipeline
from kiwi_cli.model import vae_layers

INSTRUCTION = "make it snowy, with snow on the ground and on the roofs"


TINY = {"model": "small", "width": 64, "height": 64, "frames": 9, "steps": 3}


FULL = {"model": "5b", "width": 1280, "height": 704, "frames": 81, "steps": 50}


Figures = dict[str, Any]


def computes(device: torch.device) -> bool:
    """Whether a device's sums are sums: a stand-in for one, which takes every call, computes nothing."""
    return float(torch.ones(8, device=device).sum()) == 8


@contextmanager
def values_on_trust() -> Iterator[None]:
    """A context in which every value counts as finite: for a rehearsal on a device that computes none."""
    with patch("torch.isfinite", lambda values: torch.ones((), dtype=torch.bool)):
        yield


class Bench:
    """The shape, the device and a pipeline that is drawn when it is first needed and kept.

    Attributes:
        on_trust: a rehearsal on a device that computes nothing: calls, memory and launches are tried, not values.
    """

    def __init__(self, rehearse: bool) -> None:
        self.rehearse = rehearse
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        shape = TINY if rehearse else FULL
        self.model, self.width, self.height = str(shape["model"]), int(shape["width"]), int(shape["height"])
        self.frames, self.steps = int(shape["frames"]), int(shape["steps"])
        self.dtype = torch.bfloat16
        self.on_trust = rehearse and not computes(self.device)
        self.clock = Clock(self.device)
        self.pipe: KiwiPipeline | None = None
        self.compiled: set[str] = set()

    def ready(self) -> KiwiPipeline:
        """The pipeline with all parts on the device, drawn at the first call."""
        if self.pipe is None:
            self.pipe = random_pipeline(self.model, self.device, self.dtype, host=torch.device("cpu"))
            set_attention(self.pipe.transformer, choose_attention("auto", self.device))
            self.manage("resident")
        return self.pipe

    def manage(self, memory: str, limit: int | None = None) -> None:
        """Place the pipeline's parts as `memory` says, planned for this clip."""
        assert self.pipe is not None
        self.pipe.manage(self.device, memory, limit)
        assert self.pipe.residency is not None
        self.pipe.residency.choose(demand_of(self.pipe, self.clip, 0, self.pipe.inputs(self.clip, INSTRUCTION)))

    def drop(self) -> None:
        """Forget the pipeline and give the device's memory back."""
        self.pipe = None
        self.compiled.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @functools.cached_property
    def clip(self) -> np.ndarray:
        return moving_picture(self.frames, self.height, self.width)

    @functools.cached_property
    def rate(self) -> float:
        """Operations a second of a matrix product here."""
        return matrix_rate(self.device, self.dtype)

    def conditions(self, references: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Random (noise, context, source, references) of the clip's shape, as `KiwiPipeline.denoise` takes them."""
        pipe = self.ready()
        scale, channels = pipe.vae.config.scale_factor_spatial, pipe.vae.config.z_dim
        area = (self.height // scale, self.width // scale)
        shape = (1, channels, 1 + (self.frames - 1) // pipe.frames_per_latent, *area)
        count = pipe.mllm_encoder.query_counts["reference" if references else "video"]
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(1))
        context = draw(1, count, pipe.mllm_encoder.config.dit_dim).to(self.device, self.dtype)
        source = draw(shape).to(self.device)
        pictures = draw((1, channels, references, *area)).to(self.device) if references else None
        return pipe.make_noise(shape, 0), context, source, pictures

    def timed(self, work: Callable[[], Any], repeats: int = 1, warmups: int = 1) -> float:
        """Median seconds of work between two synchronisations."""
        times = []
        for turn in range(warmups + repeats):
            self.clock.synchronise()
            begin = time.perf_counter()
            work()
            self.clock.synchronise()
            if turn >= warmups:
                times.append(time.perf_counter() - begin)
        return statistics.median(times)

    def step_times(self, steps: int, references: int = 0) -> list[float]:
        """Seconds of each denoising step but the first, which also embeds the conditions."""
        noise, context, source, pictures = self.conditions(references)
        ticks: list[float] = []

        def on_step(stage: str, done: int, total: int) -> None:
            self.clock.synchronise()
            ticks.append(time.perf_counter())

        self.ready().denoise(noise, context, source, pictures, steps + 1, progress=on_step)
        return [later - earlier for earlier, later in pairwise(ticks)]

    def step_figures(self, seconds: list[float], references: int = 0) -> Figures:
        """Median, spread, rate and share of the floor of steps."""
        pipe = self.ready()
        noise, context, _, _ = self.conditions(references)
        patch = pipe.transformer.config.patch_size
        tokens = (noise.shape[2] + references) * (noise.shape[3] // patch[1]) * (noise.shape[4] // patch[2])
        tflop = step_operations(pipe.transformer.config, tokens, context.shape[1]) / 1e12
        median = statistics.median(seconds)
        share = 1e12 * tflop / self.rate / median
        return {
            "step": median,
            "least": min(seconds),
            "most": max(seconds),
            "tokens": tokens,
            "tflop": tflop,
            "tflops": tflop / median,
            "matrix_tflops": self.rate / 1e12,
            "share": share,
        }

    def kernels(self, work: Callable[[], Any], most: int = 14) -> list[tuple[str, float, int]]:
        """The kernels that take longest in `work`: name, seconds in all, calls. Empty on a CPU."""
        if self.device.type != "cuda":
            work()
            return []
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            self.clock.synchronise()
        rows = sorted(profile.key_averages(), key=lambda row: row.self_device_time_total, reverse=True)
        return [(row.key[:90], row.self_device_time_total / 1e6, row.count) for row in rows[:most]]

    def peak(self, work: Callable[[], Any]) -> int:
        """Most bytes of the device's allocator while `work` runs; 0 on a CPU."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.clock.synchronise()
        return peak_memory(self.device).get("allocated", 0)


def waits(bench: Bench, work: Callable[[], Any]) -> dict[str, int]:
    """Where `work` waits for the device, by line of code; torch's own list of calls, which misses events."""
    if bench.device.type != "cuda":
        return {}
    found: dict[str, int] = {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            where = f"{Path(warning.filename).parent.name}/{Path(warning.filename).name}:{warning.lineno}"
            found[where] = found.get(where, 0) + 1
    return found


def drain(chunks: Any) -> str:
    """sha256 of all frames of a stream of chunks."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(np.ascontiguousarray(chunk))
    return digest.hexdigest()


LAYOUTS = {
    "contiguous": (torch.contiguous_format, False),
    "channels last": (torch.channels_last_3d, False),
    "channels last, searched": (torch.channels_last_3d, True),
}
"""Orders in memory of a coder's activations and weights, and whether cuDNN searches for its fastest algorithm."""


@contextmanager
def coder_layout(
    bench: Bench, half: Literal["encode", "decode"], layout: torch.memory_format, search: bool
) -> Iterator[None]:
    """A coder's convolutions with activations and weights in an order in memory; as before afterwards."""
    pipe, kind = bench.ready(), bench.device.type
    before = vae_layers.LAYOUTS.get(kind, torch.contiguous_format), torch.backends.cudnn.benchmark
    coder = pipe.vae.decoder if half == "decode" else pipe.vae.encoder
    with pipe.residency.stage(half):  # type: ignore[union-attr]
        vae_layers.LAYOUTS[kind], torch.backends.cudnn.benchmark = layout, search
        order_weights(coder)
        try:
            yield
        finally:
            vae_layers.LAYOUTS[kind], torch.backends.cudnn.benchmark = before
            order_weights(coder)


def order_weights(coder: torch.nn.Module) -> None:
    """A coder's weights in the order that the table of layouts says, in place."""
    for parameter in coder.parameters():
        parameter.data = vae_layers.ordered(parameter.data, parameter.device)


def coder_tflop(bench: Bench) -> tuple[float, float]:
    """Operations of encoding and decoding the clip, counted, in units of 10**12."""
    pipe = bench.ready()
    latent_frames = 1 + (bench.frames - 1) // pipe.frames_per_latent
    both = coder_operations(pipe.vae.config, latent_frames, bench.height, bench.width, 0)
    return both[0] / 1e12, both[1] / 1e12
