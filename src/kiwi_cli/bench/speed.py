"""How fast an edit is, stage by stage: what `kiwi bench speed` measures.

Every stage is timed between two synchronisations of the device, after warm-up runs of the whole. Operations are
counted (operations.py), so that a time can be read as a rate and compared with what the device's matrix
multiplication reaches on its own: at that rate, the counted operations are the floor of a stage's time.
"""

from __future__ import annotations

import hashlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from kiwi_cli import machine
from kiwi_cli.attention import APPROXIMATE, choose_attention, set_attention
from kiwi_cli.bench.against import time_library
from kiwi_cli.bench.clock import Clock, device_name, matrix_rate, peak_memory
from kiwi_cli.bench.operations import coder_operations, counted, step_operations
from kiwi_cli.bench.random_model import random_pipeline
from kiwi_cli.caches import StepCache
from kiwi_cli.compilation import compile_model
from kiwi_cli.devices import choose_device, choose_dtype
from kiwi_cli.memory import parse_bytes
from kiwi_cli.pictures import as_picture
from kiwi_cli.pipeline import KiwiPipeline
from kiwi_cli.quantize import quantize
from kiwi_cli.residency import count_work
from kiwi_cli.video import Size, open_writer, probe, read_frames, select

PACKAGES = ("kiwi-cli", "torch", "diffusers", "transformers", "av")
INSTRUCTION = "make it snowy, with snow on the ground and on the roofs"
FLOORED = ("instruction", "encode", "step", "denoise", "decode")
"""Stages whose operations are counted."""


@dataclass(frozen=True)
class SpeedRequest:
    """What to measure.

    Attributes:
        model: '5b', 'mid' or 'small': random weights of that size.
        width, height, frames, steps: of the edit; multiples of 32, and 4k + 1 frames.
        reference: with one reference picture.
        memory, max_memory: as `KiwiPipeline.manage`; on CUDA the process is capped at `max_memory` for real.
        attention, compile: kernel, and whether the transformer's blocks are compiled.
        quantize, solver, cache, cache_threshold: approximate modes, as of an edit.
        against_library: also time the plain library path on the same weights.
        warmups, repeats: runs of every stage before and while it is timed.
        save: folder that the final latents and frames are written to, to compare runs with; None keeps nothing.
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
    quantize: str = "as-stored"
    solver: str = "euler"
    cache: str = "off"
    cache_threshold: float | None = None
    against_library: bool = False
    warmups: int = 1
    repeats: int = 3
    save: str | None = None


@dataclass
class SpeedResult:
    """Seconds of each stage (median of the repeats), rates and memory.

    Attributes:
        stages: seconds; 'load' builds the weights, 'compile' is what a first step and decode took longer, 'step' one
            computed denoising step, 'step_p90' its 90th percentile, 'denoise' all of them, 'write' the frames alone
            into a file, 'edit' everything between clip and frames in memory, 'first' the first such edit, with
            compilation and the move to the device, 'file' an edit from file to file.
        library: seconds of the same stages by the plain library path.
        tflop: operations counted, of each of `FLOORED`; 'denoise' without the steps a cache skipped.
        matrix_tflops: what a large matrix product reaches on this device in this precision, TFLOP/s.
        memory: bytes, as `peak_memory`.
        plan: the memory plan, in words. latents, pixels: sha256 of the final latents and frames, to compare with.
        approximations: why the result is not the exact one; empty when it is. skipped: steps, by a cache.
        driver: of the GPU; empty on other devices. date: when, UTC.
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
    approximations: list[str] = field(default_factory=list)
    skipped: int = 0
    attention: str = ""
    plan: str = ""
    latents: str = ""
    pixels: str = ""
    driver: str = ""
    date: str = ""

    @property
    def rates(self) -> dict[str, float]:
        """Of each counted stage, TFLOP/s."""
        return {name: self.tflop[name] / self.stages[name] for name in FLOORED}

    @property
    def floors(self) -> dict[str, float]:
        """Of each counted stage, and of the edit: seconds its operations would take at the matrix rate."""
        floors = {name: self.tflop[name] / self.matrix_tflops for name in FLOORED}
        return floors | {"edit": sum(seconds for name, seconds in floors.items() if name != "step")}

    def as_json(self) -> dict[str, Any]:
        """One object for `--json`; keys as the attributes', shares from 0 to 1."""
        shares = {name: seconds / self.stages[name] for name, seconds in self.floors.items()}
        derived = {"tflops": self.rates, "floor": self.floors, "floor_share": shares}
        return asdict(self) | derived | {"step_tflops": self.rates["step"], "step_share": shares["step"]}


def measure(request: SpeedRequest, progress: Callable[[str, int, int], None] | None = None) -> SpeedResult:
    """Build the model, run every stage, and time it.

    Raises:
        DeviceError, UsageError: a device, precision, kernel or format that cannot be used.
    """
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    attention = choose_attention(request.attention, device)
    cache = StepCache.of(request.cache, request.cache_threshold)
    report = progress or (lambda stage, done, total: None)
    clock = Clock(device)
    cap = parse_bytes(request.max_memory) if request.max_memory else None
    if cap and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total), device)
    matrix_tflops = matrix_rate(device, dtype) / 1e12  # first: later, what is left under a cap may be too little
    with clock("load"):
        pipe = random_pipeline(request.model, device, dtype, host=torch.device("cpu"))
    pipe.manage(device, request.memory, cap)
    if request.quantize != "as-stored":
        quantize(pipe, request.quantize)
    set_attention(pipe.transformer, attention)
    if attention in APPROXIMATE:
        pipe.alterations.append(f"attention {attention}: NOT exact, computed in 8 bits")
    if request.compile:
        compile_model(pipe)
    report("load", 1, 1)
    clip = moving_picture(request.frames, request.height, request.width)
    pictures = [as_picture(clip[0])] if request.reference else []
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)

    rounds = request.warmups + request.repeats
    for turn in range(rounds):
        clock.keep = turn >= request.warmups
        begin = time.perf_counter()
        edited = _one_round(pipe, request, cache, clip, pictures, clock, compiling=request.compile and turn == 0)
        if turn == 0:
            clock.times["first"] = [time.perf_counter() - begin]
        report("rounds", turn + 1, rounds)
    clock.keep = True
    memory = peak_memory(device)
    approximations = pipe.approximations
    skipped = len(pipe.cache_run.skipped) if pipe.cache_run else 0
    plan = pipe.residency.plan.describe() if pipe.residency else ""
    _files(pipe, request, cache, clip, pictures, edited.frames, clock)

    result = SpeedResult(request, device_name(device), str(dtype).removeprefix("torch."), edited.tokens, edited.context)
    result.stages = {name: statistics.median(times) for name, times in clock.times.items()}
    result.stages["step_p90"] = float(np.percentile(clock.times["step"], 90))
    if request.compile:
        work = result.stages["step"] + result.stages["decode"]
        result.stages["compile"] = max(0.0, result.stages["compile"] - work)
    result.tflop = _operations(pipe, request, edited, clip, pictures, request.steps - skipped)
    result.memory, result.attention, result.matrix_tflops, result.plan = memory, attention, matrix_tflops, plan
    result.approximations, result.skipped = approximations, skipped
    latents = edited.latents.cpu().numpy()
    result.latents = hashlib.sha256(latents.tobytes()).hexdigest()
    result.pixels = hashlib.sha256(edited.frames.tobytes()).hexdigest()
    if request.save is not None:
        np.save(Path(request.save) / "latents.npy", latents)
        np.save(Path(request.save) / "frames.npy", edited.frames)
    if request.against_library:
        result.library = time_library(pipe, clip, edited.context, clock, request.repeats)
    result.versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    if device.type == "cuda":
        result.versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        result.driver = next((card.driver for card in machine.gpus()), "")
    result.date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return result


@dataclass(frozen=True)
class Edited:
    """What a round leaves: (1, C, T, h, w) fp32 latents, (F, H, W, 3) uint8 frames, and how many tokens there were."""

    context: int
    tokens: int
    latents: torch.Tensor
    frames: np.ndarray


def _one_round(
    pipe: KiwiPipeline,
    request: SpeedRequest,
    cache: StepCache | None,
    clip: np.ndarray,
    pictures: list[Any],
    clock: Clock,
    compiling: bool,
) -> Edited:
    """One edit in separate stages. compiling: take a step and decode apart before the others, to compile in."""
    assert pipe.residency is not None
    pipe.residency.choose(count_work(pipe, clip, len(pictures), pipe.inputs(clip, INSTRUCTION, pictures)))
    with clock("edit"):
        with clock("instruction"):
            context = pipe.encode_instruction(clip, INSTRUCTION, pictures)
        with clock("encode"):
            source = pipe.encode_source(clip)
            reference = pipe.encode_references(pictures, request.width, request.height) if pictures else None
        noise = pipe.make_noise(source.shape, 0)
        if compiling:
            with pipe.residency.stage("denoise"):  # the move to the device is not compilation
                pass
            with clock("compile", always=True):
                for _ in pipe.decode(pipe.denoise(noise, context, source, reference, 1), request.frames):
                    pass
        ticks = [time.perf_counter()]

        def on_step(stage: str, done: int, total: int) -> None:
            clock.synchronise()
            ticks.append(time.perf_counter())

        with clock("denoise"):
            latents = pipe.denoise(
                noise, context, source, reference, request.steps, progress=on_step, solver=request.solver, cache=cache
            )
        if clock.keep:
            # The first step also embeds the conditions: it counts in 'denoise' only, when there are others.
            skipped = pipe.cache_run.skipped if pipe.cache_run else []
            steps = [seconds for step, seconds in enumerate(np.diff(ticks)) if step not in skipped]
            clock.times.setdefault("step", []).extend(steps[1:] if len(steps) > 1 else steps)
        with clock("decode"):
            chunks = list(pipe.decode(latents, request.frames))
    patch = pipe.transformer.config.patch_size
    latent_frames = source.shape[2] + (0 if reference is None else reference.shape[2])
    tokens = latent_frames * (source.shape[3] // patch[1]) * (source.shape[4] // patch[2])
    return Edited(context.shape[1], tokens, latents, np.concatenate(chunks))


def _operations(
    pipe: KiwiPipeline, request: SpeedRequest, edited: Edited, clip: np.ndarray, pictures: list[Any], computed: int
) -> dict[str, float]:
    """TFLOP of each of `FLOORED`. computed: steps that no cache skipped."""
    config, latent_frames = pipe.vae.config, edited.latents.shape[2]
    encode, decode = coder_operations(config, latent_frames, request.height, request.width, len(pictures))
    step = step_operations(pipe.transformer.config, edited.tokens, edited.context)
    instruction = counted(lambda: pipe.encode_instruction(clip, INSTRUCTION, pictures))
    counts = (instruction, encode, step, computed * step, decode)
    return {name: operations / 1e12 for name, operations in zip(FLOORED, counts, strict=True)}


def _files(
    pipe: KiwiPipeline,
    request: SpeedRequest,
    cache: StepCache | None,
    clip: np.ndarray,
    pictures: list[Any],
    frames: np.ndarray,
    clock: Clock,
) -> None:
    """An edit as the command line makes it: a clip is read, edited by the loaded model, and written; then writing
    alone. frames: that an edit gave."""
    size = Size(request.width, request.height)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, clip)
        source = probe(path)
        span = select(source, frames=request.frames)
        call: dict[str, Any] = {"steps": request.steps, "solver": request.solver, "cache": cache}
        with clock("file"):
            read = np.stack([frame.rgb for frame in read_frames(source, span, size=size)])
            with open_writer(Path(folder) / "out.mp4", source, span, size=size) as writer:
                for chunk in pipe(read, INSTRUCTION, pictures, output="stream", **call):
                    writer.write(chunk)
        with clock("write"), open_writer(Path(folder) / "again.mp4", source, span, size=size) as writer:
            writer.write(frames)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """(F, H, W, 3) uint8 as an H.264 file, 24 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def moving_picture(frames: int, height: int, width: int) -> np.ndarray:
    """A clip to work on, (F, H, W, 3) uint8: a drifting colour pattern."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / 24.0
    clip = np.empty((frames, height, width, 3), dtype=np.uint8)
    for frame in range(frames):
        for channel in range(3):
            clip[frame, ..., channel] = 127.5 + 120 * np.sin(x * (1 + channel / 3) + y + 0.2 * frame)
    return clip
