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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kiwi_cli.base import hardware
from kiwi_cli.base.version import __version__
from kiwi_cli.bench.speed.clock import Clock, device_name, matrix_rate, peak_memory
from kiwi_cli.bench.speed.diffusers_path import Compared, compare
from kiwi_cli.bench.speed.fit import check_room
from kiwi_cli.bench.speed.operations import coder_operations, counted, step_operations
from kiwi_cli.bench.speed.request import SpeedRequest
from kiwi_cli.engine.attention import APPROXIMATE, choose_attention, set_attention
from kiwi_cli.engine.compilation import compile_model
from kiwi_cli.engine.demand import demand_of
from kiwi_cli.engine.devices import choose_device, choose_dtype
from kiwi_cli.engine.memory import parse_bytes
from kiwi_cli.engine.pipeline import KiwiPipeline
from kiwi_cli.engine.quantize import quantize
from kiwi_cli.engine.random_model import moving_picture, random_pipeline
from kiwi_cli.engine.step_cache import StepCache
from kiwi_cli.model.pictures import as_picture

PACKAGES = ("torch", "diffusers", "transformers", "av")
INSTRUCTION = "make it snowy, with snow on the ground and on the roofs"
FLOORED = ("instruction", "encode", "step", "denoise", "decode")
"""Stages whose operations are counted."""


@dataclass
class SpeedResult:
    """Seconds of each stage (median of the repeats), rates and memory.

    Attributes:
        stages: seconds; 'load' builds the weights, 'compile' is what a first step and decode took longer, 'step' one
            computed denoising step, 'step_p90' its 90th percentile, 'denoise' all of them, 'write' the frames alone
            into a file, 'edit' everything between clip and frames in memory, 'first' the first such edit, with
            compilation and the move to the device, 'file' an edit from file to file.
        library: the same stages beside the plain library path's, in turn.
        tflop: operations counted, of each of `FLOORED`; 'denoise' without the steps a cache skipped.
        matrix_tflops: what large products reach at best on this device in this precision, TFLOP/s.
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
    library: dict[str, Compared] = field(default_factory=dict)
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
        DeviceError, UsageError: a device, precision, kernel or format that cannot be used, or too little memory.
    """
    device = choose_device(request.device)
    dtype = choose_dtype(request.dtype, device)
    attention = choose_attention(request.attention, device)
    cache = StepCache.of(request.cache, request.cache_threshold)
    check_room(request, device, dtype)
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
    _change(pipe, request, attention)
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
    assert pipe.residency is not None
    plan, streamed = pipe.residency.placement.describe(), pipe.residency.placement.level.streamed
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
    _keep(result, edited)
    if request.against_library and not streamed:  # the library cannot
        result.library = compare(pipe, clip, len(pictures), edited.context, attention, clock)
    _sign(result, device)
    return result


def _change(pipe: KiwiPipeline, request: SpeedRequest, attention: str) -> None:
    """What a request wants done to the model: weights, kernel, graphs."""
    if request.quantize != "as-stored":
        quantize(pipe, request.quantize)
    set_attention(pipe.transformer, attention)
    if attention in APPROXIMATE:
        pipe.alterations.append(f"attention {attention}: NOT exact, computed in 8 bits")
    if request.compile:
        compile_model(pipe)


def _keep(result: SpeedResult, edited: Edited) -> None:
    """Write down what came out, as sha256 and, where that is asked for, as files."""
    latents = edited.latents.cpu().numpy()
    result.latents = hashlib.sha256(latents.tobytes()).hexdigest()
    result.pixels = hashlib.sha256(edited.frames.tobytes()).hexdigest()
    if result.request.save is not None:
        np.save(Path(result.request.save) / "latents.npy", latents)
        np.save(Path(result.request.save) / "frames.npy", edited.frames)


def _sign(result: SpeedResult, device: torch.device) -> None:
    """Write down with which versions and driver, and when."""
    result.versions = {"kiwi-cli": __version__, "python": platform.python_version()}
    result.versions |= {name: hardware.version_of(name) or "not installed" for name in PACKAGES}
    if device.type == "cuda":
        result.versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        result.driver = next((card.driver for card in hardware.gpus()), "")
    result.date = datetime.now(timezone.utc).isoformat(timespec="seconds")


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
    pipe.residency.choose(demand_of(pipe, clip, len(pictures), pipe.inputs(clip, INSTRUCTION, pictures)))
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
    # only here: PyAV is not everywhere
    from kiwi_cli.video import Size, Walked, open_writer, probe, read_frames, select

    size = Size(request.width, request.height)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, clip)
        source = probe(path)
        span = select(source, frames=request.frames)
        call: dict[str, Any] = {"steps": request.steps, "solver": request.solver, "cache": cache}
        with clock("file"):
            walked = Walked()
            read = np.stack([frame.rgb for frame in read_frames(source, span, size=size, walked=walked)])
            with open_writer(Path(folder) / "out.mp4", source, span, size=size, walked=walked) as writer:
                for chunk in pipe.edit(read, INSTRUCTION, pictures, output="stream", **call):
                    writer.write(chunk)
        with clock("write"), open_writer(Path(folder) / "again.mp4", source, span, size=size, walked=walked) as writer:
            writer.write(frames)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """(F, H, W, 3) uint8 as an H.264 file, 24 frames a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
