"""How fast an edit is, stage by stage: what `kiwi bench speed` measures.

Every stage is timed between two synchronisations of the device, after warm-up runs of the whole. Operations are
counted from the shapes, so that a time can be read as a rate and compared with what the device's matrix
multiplication reaches on its own.
"""

from __future__ import annotations

import hashlib
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from kiwi_cli.attention import choose_attention, set_attention
from kiwi_cli.bench.against import time_library
from kiwi_cli.bench.random_model import random_pipeline
from kiwi_cli.compilation import compile_model
from kiwi_cli.devices import choose_device, choose_dtype
from kiwi_cli.memory import parse_bytes
from kiwi_cli.pictures import as_picture
from kiwi_cli.pipeline import KiwiPipeline
from kiwi_cli.residency import count_work
from kiwi_cli.video import Size, open_writer, probe, read_frames, select

PACKAGES = ("torch", "diffusers", "transformers", "av")
INSTRUCTION = "make it snowy, with snow on the ground and on the roofs"


@dataclass(frozen=True)
class SpeedRequest:
    """What to measure.

    Attributes:
        model: '5b', 'mid' or 'small': random weights of that size.
        width, height, frames, steps: of the edit; multiples of 32, and 4k + 1 frames.
        reference: with one reference picture.
        memory, max_memory: as `KiwiPipeline.manage`; on CUDA the process is capped at `max_memory` for real.
        attention, compile: kernel, and whether the transformer's blocks are compiled.
        against_library: also time the plain library path on the same weights.
        warmups, repeats: runs of every stage before and while it is timed.
    """

    model: str = "mid"
    width: int = 416
    height: int = 224
    frames: int = 17
    steps: int = 4
    reference: bool = False
    device: str = "auto"
    dtype: str = "auto"
    memory: str = "auto"
    max_memory: str | None = None
    attention: str = "auto"
    compile: bool = False
    against_library: bool = False
    warmups: int = 1
    repeats: int = 3


@dataclass
class SpeedResult:
    """Seconds of each stage (median of the repeats), rates and memory.

    Attributes:
        stages: seconds; 'step' is one denoising step, 'step_p90' its 90th percentile, 'denoise' all of them, 'first'
            the first edit of all, with compilation and the move to the device, 'file' an edit from file to file.
        library: seconds of the same stages by the plain library path.
        plan: the memory plan, in words. latents: sha256 of the final latents, to compare plans with.
        tflop: operations counted, of one step ('step').
        matrix_tflops: what a large matrix product reaches on this device in this precision, TFLOP/s.
        memory: bytes: 'allocated' and 'reserved' are the device allocator's peaks, 'resident' the process's.
    """

    request: SpeedRequest
    device: str
    dtype: str
    tokens: int
    context_tokens: int
    stages: dict[str, float] = field(default_factory=dict)
    tflop: dict[str, float] = field(default_factory=dict)
    matrix_tflops: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    library: dict[str, float] = field(default_factory=dict)
    attention: str = ""
    plan: str = ""
    latents: str = ""

    @property
    def step_tflops(self) -> float:
        """Rate of a denoising step, TFLOP/s."""
        return self.tflop["step"] / self.stages["step"]

    def as_json(self) -> dict[str, Any]:
        """One object for `--json`; keys as the attributes'."""
        return {**asdict(self), "step_tflops": self.step_tflops, "step_share": self.step_tflops / self.matrix_tflops}


def step_operations(config: Any, tokens: int, context_tokens: int) -> float:
    """Floating-point operations of one forward of the transformer's blocks, counted from the shapes.

    Args:
        config: the transformer's (`num_layers`, `num_attention_heads`, `attention_head_dim`, `ffn_dim`).
        tokens: video and reference tokens. context_tokens: of the instruction encoder.
    """
    width = config.num_attention_heads * config.attention_head_dim
    linear = 12 * tokens * width**2 + 4 * context_tokens * width**2 + 4 * tokens * width * config.ffn_dim
    attention = 4 * tokens**2 * width + 4 * tokens * context_tokens * width
    return float(config.num_layers * (linear + attention))


def measure(request: SpeedRequest, progress: Callable[[str, int, int], None] | None = None) -> SpeedResult:
    """Build the model, run every stage, and time it.

    Raises:
        DeviceError, UsageError: a device or precision that cannot be used.
    """
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    attention = choose_attention(request.attention, device)
    report = progress or (lambda stage, done, total: None)
    clock = Clock(device)
    cap = parse_bytes(request.max_memory) if request.max_memory else None
    if cap and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), device)
    with clock("load"):
        pipe = random_pipeline(request.model, device, dtype, host=torch.device("cpu"))
    pipe.manage(device, request.memory, cap)
    set_attention(pipe.transformer, attention)
    if request.compile:
        compile_model(pipe.transformer)
    report("load", 1, 1)
    frames = moving_picture(request.frames, request.height, request.width)
    pictures = [as_picture(frames[0])] if request.reference else []
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    rounds = request.warmups + request.repeats
    for turn in range(rounds):
        clock.keep = turn >= request.warmups
        begin = time.perf_counter()
        context, tokens, latents = _one_round(pipe, request, frames, pictures, clock)
        if turn == 0:
            clock.times["first"] = [time.perf_counter() - begin]
        report("rounds", turn + 1, rounds)
    clock.keep = True
    memory = peak_memory(device)
    _file_to_file(pipe, request, frames, pictures, clock)

    result = SpeedResult(request, _device_name(device), str(dtype).removeprefix("torch."), tokens, context)
    result.stages = {name: statistics.median(times) for name, times in clock.times.items()}
    result.stages["step_p90"] = float(np.percentile(clock.times["step"], 90))
    result.tflop["step"] = step_operations(pipe.transformer.config, tokens, context) / 1e12
    result.memory, result.attention = memory, attention
    result.latents = hashlib.sha256(latents.cpu().numpy().tobytes()).hexdigest()
    if pipe.residency is not None:
        result.plan = pipe.residency.plan.describe()
    if request.against_library:
        result.library = time_library(pipe, frames, context, clock, request.repeats)
    result.matrix_tflops = matrix_rate(device, dtype) / 1e12
    result.versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return result


def _one_round(
    pipe: KiwiPipeline, request: SpeedRequest, frames: np.ndarray, pictures: list[Any], clock: Clock
) -> tuple[int, int, torch.Tensor]:
    """One edit in separate stages; (context tokens, tokens of the transformer, final latents)."""
    if pipe.residency is not None:
        inputs = pipe.inputs(frames, INSTRUCTION, pictures)
        pipe.residency.choose(count_work(pipe, frames, len(pictures), inputs))
    with clock("edit"):
        with clock("instruction"):
            context = pipe.encode_instruction(frames, INSTRUCTION, pictures)
        with clock("encode"):
            source = pipe.encode_source(frames)
        reference = pipe.encode_references(pictures, request.width, request.height) if pictures else None
        noise = pipe.make_noise(source.shape, 0)
        ticks = [time.perf_counter()]

        def on_step(stage: str, done: int, total: int) -> None:
            clock.synchronise()
            ticks.append(time.perf_counter())

        with clock("denoise"):
            latents = pipe.denoise(noise, context, source, reference, request.steps, progress=on_step)
        if clock.keep:
            # The first step also embeds the conditions: it counts in 'denoise' only, when there are others.
            steps = np.diff(ticks)
            clock.times.setdefault("step", []).extend(steps[1:] if len(steps) > 1 else steps)
        with clock("decode"):
            for _ in pipe.decode(latents, request.frames):
                pass
    patch = pipe.transformer.config.patch_size
    latent_frames = source.shape[2] + (0 if reference is None else reference.shape[2])
    tokens = latent_frames * (source.shape[3] // patch[1]) * (source.shape[4] // patch[2])
    return context.shape[1], tokens, latents


def _file_to_file(
    pipe: KiwiPipeline, request: SpeedRequest, frames: np.ndarray, pictures: list[Any], clock: Clock
) -> None:
    """An edit as the command line makes it: a clip is read, edited by the loaded model, and written."""
    size = Size(request.width, request.height)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, frames)
        clip = probe(path)
        span = select(clip, frames=request.frames)
        with clock("file"):
            source = np.stack([frame.rgb for frame in read_frames(clip, span, size=size)])
            with open_writer(Path(folder) / "out.mp4", clip, span, size=size) as writer:
                for chunk in pipe(source, INSTRUCTION, pictures, steps=request.steps, output="stream"):
                    writer.write(chunk)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """(F, H, W, 3) uint8 as an H.264 file, 24 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


class Clock:
    """Seconds between synchronisations, by stage; `keep` is off during warm-up (loading is always kept)."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.keep = device, True
        self.times: dict[str, list[float]] = {}

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.synchronise()
        begin = time.perf_counter()
        yield
        self.synchronise()
        if self.keep:
            self.times.setdefault(stage, []).append(time.perf_counter() - begin)


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations a second of a large square matrix product on random data: the device's own ceiling."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    clock = Clock(device)
    for turn in range(repeats + 2):
        clock.keep = turn >= 2
        with clock("product"):
            a @ b
    return 2 * side**3 / statistics.median(clock.times["product"])


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peaks in bytes: of the device's allocator (live and held), and of the process's resident memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peaks["device"] = total - free  # all processes, now: the allocator has kept what it took
        peaks["allocated"] = torch.cuda.max_memory_allocated(device)
        peaks["reserved"] = torch.cuda.max_memory_reserved(device)
    return peaks


def moving_picture(frames: int, height: int, width: int) -> np.ndarray:
    """A clip to work on, (F, H, W, 3) uint8: a drifting colour pattern."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / 24.0
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    for frame in range(frames):
        for channel in range(3):
            clip[frame, ..., channel] = 127.5 + 120 * np.sin(x * (1 + channel / 3) + y + 0.2 * frame)
    return clip


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"
