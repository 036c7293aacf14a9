"""Sections on compilation, a whole edit, caps of memory and fp8."""

from __future__ import annotations

import hashlib
import time
import traceback

import torch

from gpu_sections.bench import INSTRUCTION, Bench, Figures, drain
from kiwi_cli import KiwiPipeline
from kiwi_cli.engine.compilation import compile_model, use_eager_blocks
from kiwi_cli.model import vae_layers


def compile_blocks(bench: Bench) -> Figures:
    """Compiled blocks: what compiling takes, five steps, then the released number of them."""
    pipe = compiled(bench)
    noise, context, source, _ = bench.conditions()
    begin = time.perf_counter()
    pipe.denoise(noise, context, source, None, 1)
    bench.clock.synchronise()
    figures: Figures = {"compile": time.perf_counter() - begin}
    figures |= bench.step_figures(bench.step_times(5))
    begin = time.perf_counter()
    pipe.denoise(noise, context, source, None, bench.steps)
    bench.clock.synchronise()
    figures |= {"denoise": time.perf_counter() - begin, "steps": bench.steps}
    figures["peak"] = bench.peak(lambda: pipe.denoise(noise, context, source, None, 1))
    return figures | {"kernels": bench.kernels(lambda: pipe.denoise(noise, context, source, None, 1))}


def compiled(bench: Bench) -> KiwiPipeline:
    """The pipeline with compiled blocks and decoder; nothing happens until they are called."""
    pipe = bench.ready()
    if "model" not in bench.compiled:
        compile_model(pipe, "inductor" if bench.device.type == "cuda" else "eager")
        bench.compiled.add("model")
    return pipe


def compile_decoder(bench: Bench) -> Figures:
    """The compiled decoder: what compiling takes, and the whole clip."""
    pipe = compiled(bench)
    noise = bench.conditions()[0].to(bench.device)
    begin = time.perf_counter()
    drain(pipe.decode(noise[:, :, :3]))
    figures: Figures = {"compile": time.perf_counter() - begin}
    figures["decode"] = bench.timed(lambda: drain(pipe.decode(noise, bench.frames)), 2, 0)
    return figures | {"peak": bench.peak(lambda: drain(pipe.decode(noise[:, :, :4])))}


def edit(bench: Bench) -> Figures:
    """A whole warm edit from frames to frames with everything on the device, by stage; compiled if that was done."""
    pipe, clip = bench.ready(), bench.clip
    pipe.edit(clip, INSTRUCTION, steps=2)
    marks: dict[str, float] = {}
    bench.clock.synchronise()
    begin = time.perf_counter()

    def progress(stage: str, done: int, total: int) -> None:
        if done == total:
            bench.clock.synchronise()
            marks[stage] = time.perf_counter() - begin

    peak = bench.peak(lambda: pipe.edit(clip, INSTRUCTION, steps=bench.steps, progress=progress))
    figures: Figures = {"edit": time.perf_counter() - begin, "until": marks, "steps": bench.steps, "peak": peak}
    return figures | {"compiled": sorted(bench.compiled)}


def caps(bench: Bench) -> Figures:
    """The same edit of two steps without a limit and under caps of the process's memory: plans, peaks, equal bits."""
    pipe = bench.ready()
    bench.manage("resident")
    use_eager_blocks(pipe.transformer)
    pipe.decode_steady = vae_layers.run
    bench.compiled.clear()
    sizes = [80e9, 24e9, 16e9, 12e9, 8e9]
    if bench.rehearse:  # of the tiny model: refused on a processor; on a GPU, as the workspaces leave room for it
        sizes = [80e9, 0.62e9 if bench.device.type == "cuda" else 0.606e9]
    figures: Figures = {"caps": []}
    for cap in sizes:
        limited = cap < 80e9
        row: Figures = {"cap": cap}
        figures["caps"].append(row)
        if bench.device.type == "cuda":
            total = torch.cuda.get_device_properties(bench.device).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total) if limited else 1.0, bench.device)
        try:
            if limited:
                pipe.manage(bench.device, "auto", int(cap))
            one_edit(bench, pipe, row)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
            traceback.clear_frames(error.__traceback__)
        finally:
            if bench.device.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
        first = figures["caps"][0]
        if "latents" in row and "latents" in first:
            row["equal"] = row["latents"] == first["latents"] and row["frames"] == first["frames"]
    bench.manage("resident")
    return figures


def one_edit(bench: Bench, pipe: KiwiPipeline, row: Figures) -> None:
    """Two steps of an edit of the whole clip: hashes of latents and frames, peak, seconds, the plan."""
    told: list[str] = []
    ticks: list[float] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "denoise":
            bench.clock.synchronise()
            ticks.append(time.perf_counter())

    def work() -> None:
        begin = time.perf_counter()
        latents = pipe.edit(bench.clip, INSTRUCTION, steps=3, output="latents", progress=progress, notify=told.append)
        row["latents"] = hashlib.sha256(latents.cpu().numpy()).hexdigest()[:16]
        row["until_latents"] = time.perf_counter() - begin
        row["frames"] = drain(pipe.decode(latents, bench.frames))[:16]
        row["edit"] = time.perf_counter() - begin

    row["peak"] = bench.peak(work)
    row["step"] = ticks[-1] - ticks[-2]
    row["plan"] = told or [pipe.residency.placement.describe() if pipe.residency else ""]


def fp8(bench: Bench) -> Figures:
    """Weights in fp8: what putting them there takes, and a compiled step. NOT exact."""
    from kiwi_cli.engine.quantize import quantize

    pipe = bench.ready()
    bench.clock.synchronise()
    begin = time.perf_counter()
    figures: Figures = {"what": quantize(pipe, "fp8")}
    figures["quantize"] = time.perf_counter() - begin
    bench.manage("resident")
    compiled(bench)
    bench.step_times(1)
    figures |= bench.step_figures(bench.step_times(3))
    bench.drop()
    return figures
