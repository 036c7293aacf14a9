"""Sections on what is here: that it works at all, what the device reaches on its own, the recorded cases."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import kiwi_cli
from gpu_sections.bench import INSTRUCTION, Bench, Figures
from kiwi_cli import KiwiPipeline
from kiwi_cli.base import hardware
from kiwi_cli.bench.speed.clock import device_name
from kiwi_cli.engine.attention import choose_attention
from kiwi_cli.engine.devices import exact_fp32
from kiwi_cli.engine.random_model import moving_picture, random_pipeline
from kiwi_cli.model.pictures import as_picture

ROOT = Path(__file__).resolve().parents[2]


def smoke(bench: Bench) -> Figures:
    """An edit by a small random model comes out; where it ran, and with which versions."""
    figures: Figures = {
        "device": device_name(bench.device),
        "date": datetime.now(timezone.utc).isoformat("T", "seconds"),
    }
    packages = ("torch", "triton", "diffusers", "transformers", "torchao", "numpy", "pillow")
    figures["versions"] = {"kiwi-cli": kiwi_cli.__version__, "python": sys.version.split()[0]}
    figures["versions"] |= {name: found for name in packages if (found := hardware.version_of(name))}
    if bench.device.type == "cuda":
        figures["versions"] |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
        figures["driver"] = next((card.driver for card in hardware.gpus()), "")
        figures["capability"] = torch.cuda.get_device_capability(bench.device)
        figures["memory"] = torch.cuda.get_device_properties(bench.device).total_memory
    pipe = random_pipeline("small", bench.device, bench.dtype, host=torch.device("cpu"))
    pipe.manage(bench.device)
    clip = moving_picture(9, 64, 96)
    frames = pipe.edit(clip, INSTRUCTION, steps=2)
    with_picture = pipe.edit(clip, INSTRUCTION, [as_picture(clip[0])], steps=2)
    assert frames.shape == with_picture.shape == clip.shape and (frames.std() > 0 or bench.on_trust)
    return figures | {"attention": choose_attention("auto", bench.device)}


def rates(bench: Bench) -> Figures:
    """What the device reaches on its own: copies, matrix products of the model's shapes, attention kernels."""
    figures = copy_rates(bench)
    figures["matrix_tflops"] = bench.rate / 1e12
    width, tokens = (3072, 18480) if not bench.rehearse else (48, 64)
    for name, (rows, inner, columns) in {
        "square": (tokens, width, width),
        "up": (tokens, width, width * 14 // 3),
        "down": (tokens, width * 14 // 3, width),
        "qkv": (tokens, width, 3 * width),
    }.items():
        x = torch.randn(rows, inner, device=bench.device, dtype=bench.dtype)
        weight = torch.randn(columns, inner, device=bench.device, dtype=bench.dtype)
        bias = torch.randn(columns, device=bench.device, dtype=bench.dtype)
        seconds = bench.timed(functools.partial(F.linear, x, weight, bias), 9, 3)
        figures[f"product_{name}_tflops"] = 2 * rows * inner * columns / seconds / 1e12
    figures["attention"] = attention_rates(bench, tokens)
    return figures


def copy_rates(bench: Bench) -> Figures:
    """GB a second of copies: on the device (bytes read and written), and to it from plain and from pinned memory."""
    size = 2**31 if bench.device.type == "cuda" else 2**26
    a, b = (torch.empty(size, dtype=torch.uint8, device=bench.device) for _ in range(2))
    host = torch.empty(size // 4, dtype=torch.uint8)
    part = a[: len(host)]
    figures: Figures = {
        "copy_gb": 2 * size / bench.timed(lambda: b.copy_(a), 5) / 1e9,
        "to_device_gb": len(host) / bench.timed(lambda: part.copy_(host)) / 1e9,
    }
    if bench.device.type == "cuda":
        pinned = host.pin_memory()
        figures["pinned_to_device_gb"] = len(host) / bench.timed(lambda: part.copy_(pinned)) / 1e9
    return figures


def attention_rates(bench: Bench, tokens: int) -> dict[str, float | str]:
    """TFLOP/s of self-attention by kernel, on the model's strides (heads after tokens) unless it says contiguous."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, head = (24, 128) if not bench.rehearse else (2, 24)
    q, k, v = (
        torch.randn(1, tokens, heads, head, device=bench.device, dtype=bench.dtype).transpose(1, 2) for _ in range(3)
    )
    whole = [tensor.contiguous() for tensor in (q, k, v)]
    kernels: dict[str, tuple[Any, Any]] = {
        "default": (None, (q, k, v)),
        "cudnn": (SDPBackend.CUDNN_ATTENTION, (q, k, v)),
        "cudnn, contiguous": (SDPBackend.CUDNN_ATTENTION, whole),
        "flash": (SDPBackend.FLASH_ATTENTION, (q, k, v)),
    }
    found: dict[str, float | str] = {}
    for name, (kernel, operands) in kernels.items():
        try:
            if kernel is None:
                seconds = bench.timed(lambda given=operands: F.scaled_dot_product_attention(*given), 5, 2)
            else:
                with sdpa_kernel(kernel):
                    seconds = bench.timed(lambda given=operands: F.scaled_dot_product_attention(*given), 5, 2)
        except RuntimeError as error:
            found[name] = str(error).splitlines()[0][:120]
            continue
        found[name] = 4 * tokens**2 * heads * head / seconds / 1e12
    return found


def goldens(bench: Bench) -> Figures:
    """How far the recorded cases of the released implementation are: relative errors in fp32 as torch has it, without
    TF32, and in bf16. 'velocity' and 'decoded' start from what was recorded, so each stage's error is its own."""
    from PIL import Image
    from safetensors.torch import load_file

    folder = ROOT / "tests" / "data" / "golden"
    cases = json.loads((folder / "cases.json").read_text())
    figures: Figures = {}
    for name, dtype, exact in (("fp32", "float32", True), ("tf32", "float32", False), ("bf16", "bfloat16", False)):
        pipe = KiwiPipeline.from_pretrained(str(ROOT / "examples" / "checkpoint"), str(bench.device), dtype)
        worst: dict[str, float] = figures.setdefault(name, {})
        with exact_fp32() if exact else nullcontext():
            for case in cases:
                recorded = load_file(folder / f"{case['name']}.safetensors")
                pipe.register_to_config(references_first=bool(case.get("ref_pad_first")))
                frames, picture = recorded["source_frames"].numpy(), recorded.get("reference_image")
                pictures = [] if picture is None else [Image.fromarray(picture.numpy())]
                for stage, error in golden_errors(pipe, case, frames, pictures, recorded):
                    worst[stage] = max(worst.get(stage, 0.0), error)
            if name == "fp32" and worst["context"] > 1e-5:
                figures["departs"] = departures(pipe, frames, case["prompt"], pictures)
    figures["within_1e-5"] = max(error for stage, error in figures["fp32"].items() if stage != "pixels") <= 1e-5
    return figures


def golden_errors(
    pipe: KiwiPipeline, case: Figures, frames: np.ndarray, pictures: list[Any], recorded: dict[str, torch.Tensor]
) -> Iterator[tuple[str, float]]:
    """(stage, relative error) of one recorded case."""
    inputs = pipe.inputs(frames, case["prompt"], pictures)
    alike = True
    for pixels in ("pixel_values", "pixel_values_videos"):
        if f"{pixels}_first8" in recorded:
            error = relative_error(getattr(inputs, pixels)[:8], recorded[f"{pixels}_first8"])
            alike = alike and error == 0
            yield "pixels", error
    if alike:  # Pillow before 13 resizes some pictures otherwise: docs/fidelity.md
        yield "context", relative_error(pipe.encode_inputs(inputs), recorded["context"])
    yield "source", relative_error(pipe.encode_source(frames), recorded["source_latents"])
    noise, conditions = recorded["noise"], (recorded["context"], recorded["source_latents"])
    given = (*conditions, recorded.get("reference_latents"))
    latents = pipe.denoise(noise, *given, steps=case["steps"])
    yield "latents", relative_error(latents, recorded["latents_final"])
    decoded = torch.cat(list(pipe.decode_pixels(recorded["latents_final"])), dim=2)
    yield "decoded", relative_error(decoded, recorded["decoded"].clamp(-1, 1))
    if alike:
        whole = pipe.edit(frames, case["prompt"], pictures, steps=case["steps"], seed=case["seed"], output="latents")
        yield "edit", relative_error(whole, recorded["latents_final"])


def departures(pipe: KiwiPipeline, frames: np.ndarray, prompt: str, pictures: list[Any]) -> list[str]:
    """The first modules of the instruction encoder, in order, whose output is not the CPU's within 1e-5."""
    outputs: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, given: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(first, torch.Tensor):
                outputs.setdefault(name, []).append(first.detach().double().cpu())

        return hook

    encoder = pipe.mllm_encoder
    hooks = [module.register_forward_hook(keep(name)) for name, module in encoder.named_modules() if name]
    try:
        pipe.encode_instruction(frames, prompt, pictures)
        here, outputs = outputs, {}
        on_cpu = KiwiPipeline.from_pretrained(str(ROOT / "examples" / "checkpoint"), "cpu", "float32")
        for hook in hooks:
            hook.remove()
        hooks = [m.register_forward_hook(keep(name)) for name, m in on_cpu.mllm_encoder.named_modules() if name]
        on_cpu.encode_instruction(frames, prompt, pictures)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, theirs in outputs.items():
        for ours, other in zip(here.get(name, []), theirs, strict=False):
            if ours.shape == other.shape and (error := relative_error(ours, other)) > 1e-5:
                found.append(f"{name} {error:.1e}")
                break
    return found[:12]


def relative_error(ours: torch.Tensor, recorded: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was recorded."""
    ours, recorded = ours.double().cpu(), recorded.double()
    return float((ours - recorded).norm() / recorded.norm())
