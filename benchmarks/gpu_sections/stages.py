"""Sections on the stages of an edit as the defaults have it: a step, the coders, a reference, the library beside it."""

from __future__ import annotations

import statistics
import time

import torch

from gpu_sections.bench import INSTRUCTION, LAYOUTS, Bench, Figures, coder_layout, coder_tflop, drain, waits
from kiwi_cli.engine.devices import exact_fp32
from kiwi_cli.model.pictures import as_picture


def step(bench: Bench) -> Figures:
    """An eager denoising step: time, rate, the kernels it spends it on, and how often it waits for the device."""
    begin = time.perf_counter()
    bench.ready()
    figures: Figures = {"draw": time.perf_counter() - begin}
    noise, context, source, _ = bench.conditions()
    pipe = bench.ready()
    pipe.denoise(noise, context, source, None, 1)
    figures |= bench.step_figures(bench.step_times(3))
    figures["waits"] = waits(bench, lambda: pipe.denoise(noise, context, source, None, 4))
    figures["peak"] = bench.peak(lambda: pipe.denoise(noise, context, source, None, 1))
    return figures | {"kernels": bench.kernels(lambda: pipe.denoise(noise, context, source, None, 1))}


def encode(bench: Bench) -> Figures:
    """The prompt built, read and the clip encoded: seconds, waits for the device, kernels."""
    pipe, clip = bench.ready(), bench.clip
    inputs = pipe.inputs(clip, INSTRUCTION)
    figures: Figures = {
        "prompt_built": bench.timed(lambda: pipe.inputs(clip, INSTRUCTION)),
        "instruction": bench.timed(lambda: pipe.encode_inputs(inputs), 3),
        "encode": bench.timed(lambda: pipe.encode_source(clip), 2),
        "waits_instruction": waits(bench, lambda: pipe.encode_inputs(inputs)),
        "waits_encode": waits(bench, lambda: pipe.encode_source(clip)),
        "peak": bench.peak(lambda: pipe.encode_source(clip)),
    }
    with exact_fp32():
        figures["encode_without_tf32"] = bench.timed(lambda: pipe.encode_source(clip), 1, 0)
    figures["encode_tflop"] = coder_tflop(bench)[0]
    figures["layouts"] = {}
    for name, (layout, search) in LAYOUTS.items():
        with coder_layout(bench, "encode", layout, search):
            seconds = bench.timed(lambda: pipe.encode_source(clip[:13])) - bench.timed(
                lambda: pipe.encode_source(clip[:1])
            )
            peak = bench.peak(lambda: pipe.encode_source(clip[:9]))
            figures["layouts"][name] = {"three_chunks": seconds, "peak": peak}
    figures["kernels_instruction"] = bench.kernels(lambda: pipe.encode_inputs(inputs), 8)
    return figures | {"kernels": bench.kernels(lambda: pipe.encode_source(clip[:9]), 8)}


def decode(bench: Bench) -> Figures:
    """Three chunks by layout, then the whole clip in the best; the seconds of three chunks that follow the first."""
    pipe = bench.ready()
    noise = bench.conditions()[0].to(bench.device)
    figures: Figures = {"layouts": {}, "decode_tflop": coder_tflop(bench)[1]}
    seconds: dict[str, float] = {}
    for name, (layout, search) in LAYOUTS.items():
        with coder_layout(bench, "decode", layout, search):
            few = noise[:, :, :4]
            chunks = bench.timed(lambda given=few: drain(pipe.decode(given)), 1)
            first = bench.timed(lambda given=few[:, :, :1]: drain(pipe.decode(given)), 1)
            seconds[name] = chunks - first
            figures["layouts"][name] = {
                "three_chunks": chunks - first,
                "peak": bench.peak(lambda given=few: drain(pipe.decode(given))),
            }
    best = min(seconds, key=lambda name: seconds[name])
    with coder_layout(bench, "decode", *LAYOUTS[best]):
        whole = bench.timed(lambda: drain(pipe.decode(noise, bench.frames)), 1, 0)
        kernels = bench.kernels(lambda: drain(pipe.decode(noise[:, :, :3])), 10)
    return figures | {"best": best, "decode": whole, "kernels": kernels}


def reference(bench: Bench) -> Figures:
    """A step with one reference picture, and what it takes to read the picture."""
    pipe, clip = bench.ready(), bench.clip
    pictures = [as_picture(clip[0])]
    inputs = pipe.inputs(clip, INSTRUCTION, pictures)
    figures: Figures = {
        "instruction": bench.timed(lambda: pipe.encode_inputs(inputs)),
        "encode_reference": bench.timed(lambda: pipe.encode_references(pictures, bench.width, bench.height)),
    }
    return figures | bench.step_figures(bench.step_times(3, references=1), references=1)


def library(bench: Bench) -> Figures:
    """Our step and the library's own forward in turn, on the same weights: the median of the paired ratios."""
    from diffusers import WanTransformer3DModel

    pipe = bench.ready()
    noise, context, source, _ = bench.conditions()
    transformer, device = pipe.transformer, bench.device
    latents = noise.to(device, bench.dtype)
    sigma = torch.full((1,), 0.75, device=device)
    figures: Figures = {"ours": [], "library": []}
    with torch.no_grad(), pipe.residency.stage("denoise"):  # type: ignore[union-attr]
        embedded = pipe.source_embedder(source)
        transformer.condition_embedder.text_embedder = torch.nn.Identity()  # the library's forward calls it
        try:
            for turn in range(6):
                ours = bench.timed(
                    lambda: transformer(latents, sigma * 1000, context, source_embeds=embedded, sigma=sigma), 1, 0
                )
                theirs = bench.timed(
                    lambda: WanTransformer3DModel.forward(transformer, latents, sigma * 1000, context), 1, 0
                )
                if turn:
                    figures["ours"].append(ours)
                    figures["library"].append(theirs)
        finally:
            transformer.condition_embedder.text_embedder = None
    ratios = sorted(a / b for a, b in zip(figures["ours"], figures["library"], strict=True))
    return figures | {"ratio": statistics.median(ratios), "ratio_least": ratios[0], "ratio_most": ratios[-1]}
