"""Weights in 8 bits: smaller for the plan and for real, near to the exact result, and themselves wherever they go."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import memory as mem
from kiwi_cli.engine import quantize
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.engine.residency import Residency, stored_bytes, weigh
from kiwi_cli.engine.streaming import plain_parts, tensors_of
from kiwi_cli.errors import UsageError

from .conftest import CHECKPOINT, DATA, Case, random_frames, read_cases, relative_error

CPU = torch.device("cpu")
needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs the extra 'quantize'")
MODES = [
    pytest.param("int8", marks=needs_torchao),
    pytest.param("fp8", marks=needs_torchao),
    "fp8-storage",
]

# Relative error allowed and (measured, worst of the five recorded cases, fp32): context, final latents.
LIMITS = {
    "int8": (3e-2, 8e-3),  # 2.1e-2, 5.0e-3
    "fp8": (1e-1, 2.5e-2),  # 7.1e-2, 1.8e-2
    "fp8-storage": (1.1e-1, 4e-2),  # 7.6e-2, 2.8e-2
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """A tiny model: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(dtype: str = "float32") -> Any:
    return KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype=dtype)


@pytest.fixture(scope="module", params=MODES)
def quantized(request: pytest.FixtureRequest) -> Any:
    pipe = small()
    quantize.quantize(pipe, request.param)
    return request.param, pipe


@pytest.mark.parametrize("mode", MODES)
def test_bytes_really_drop(mode: str) -> None:
    """On 100 million parameters in bf16: the blocks' matrices to half, nothing else, and the plan sees it."""
    pipe = random_pipeline("mid", CPU, torch.bfloat16)
    pipe.manage(CPU)
    before = weigh(pipe.units)
    matrices = sum(stored_bytes(layer.weight) for _, layer in quantize.large_layers(pipe))
    kept = {
        f"{part}.{name}": (tensor.dtype, stored_bytes(tensor))
        for part, module in pipe.components.items()
        if isinstance(module, torch.nn.Module)
        for name, tensor in module.named_parameters()
    }
    line = quantize.quantize(pipe, mode)
    after = weigh(pipe.units)
    assert pipe.residency.weights == after
    saved = sum(before.whole.values()) - sum(after.whole.values())
    assert saved == pytest.approx(matrices / 2, rel=0.02)
    assert after.whole["transformer"] < 0.56 * before.whole["transformer"]
    assert after.streamed["transformer"] < 0.75 * before.streamed["transformer"]
    assert after.whole["vae_encoder"] == before.whole["vae_encoder"]
    assert after.whole["vae_decoder"] == before.whole["vae_decoder"]
    assert "NOT exact" in line and pipe.approximations == [line]
    assert f"{(before.whole['mllm'] + before.whole['transformer']) / 1e9:.2f} -> " in line

    large = {f"{name}.weight" for name, _ in quantize.large_layers(pipe)}
    biases = {name.removesuffix("weight") + "bias" for name in large}
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            for name, tensor in module.named_parameters():
                if f"{part}.{name}" not in large | biases:
                    assert (tensor.dtype, stored_bytes(tensor)) == kept[f"{part}.{name}"], name
    for name in ("proj_out", "patch_embedding", "condition_embedder.time_proj"):
        assert pipe.transformer.get_submodule(name).weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [call["name"] for call in read_cases()])
def test_recorded_cases_within_the_stated_error(quantized: Any, name: str) -> None:
    mode, pipe = quantized
    call = next(call for call in read_cases() if call["name"] == name)
    case = Case(name, call, load_file(DATA / "golden" / f"{name}.safetensors"))
    pipe.register_to_config(references_first=bool(call.get("ref_pad_first")))
    context = pipe.encode_instruction(case.frames, call["prompt"], case.references)
    options = {"steps": call["steps"], "seed": call["seed"], "output": "latents"}
    latents = pipe.edit(case.frames, call["prompt"], case.references, **options)
    for ours, recorded, limit in zip(
        (context, latents), (case.tensors["context"], case.tensors["latents_final"]), LIMITS[mode], strict=True
    ):
        assert 1e-4 < relative_error(ours, recorded) < limit


@pytest.mark.parametrize("mode", MODES)
def test_in_bfloat16_too(mode: str) -> None:
    exact, pipe = small("bfloat16"), small("bfloat16")
    quantize.quantize(pipe, mode)
    frames = random_frames(5)
    expected, got = (p.edit(frames, "make it snowy", [frames[0]], steps=4, output="latents") for p in (exact, pipe))
    assert got.isfinite().all() and relative_error(got, expected) < LIMITS[mode][1]


class Watched(Residency):
    """A residency whose device is a second copy in the same memory: on a CPU, moving is seen this way."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


@pytest.mark.parametrize("mode", MODES)
def test_they_are_rounded_on_the_device_one_at_a_time(mode: str) -> None:
    """Each is done before the next one is lent to it; with the host's result."""

    class Lent(Residency):
        """A residency whose device is a second copy in the same memory, and that counts."""

        done: ClassVar[list[int]] = []

        def copy(self, tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim == 2:
                weights = [layer.weight for _, layer in quantize.large_layers(pipe)]
                self.done.append(sum(stored_bytes(weight) < 2 * weight.numel() for weight in weights))
            return tensor.clone()

    host, pipe = small(), small()
    host.to("cpu")
    pipe.residency = Lent(pipe.units, CPU)
    for each in (host, pipe):
        quantize.quantize(each, mode)
    layers = [dict(quantize.large_layers(each)) for each in (host, pipe)]
    assert Lent.done == list(range(len(layers[0])))
    for name, layer in layers[0].items():
        for ours, theirs in zip(plain_parts(layer.weight), plain_parts(layers[1][name].weight), strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours.float(), theirs.float())


def identities(pipe: Any) -> list[int]:
    return [id(tensor) for modules in pipe.units.values() for module in modules for _, tensor in tensors_of(module)]


@pytest.mark.parametrize("level", ["resident", "release", "swap", "stream"])
def test_every_level_moves_them_whole(quantized: Any, level: str) -> None:
    mode, _ = quantized
    pipe = small()
    quantize.quantize(pipe, mode)
    pipe.to("cpu")
    frames = random_frames(5)
    call = {"references": [frames[0]], "steps": 2, "output": "latents"}
    expected = pipe.edit(frames, "make it snowy", **call)
    host = identities(pipe)
    pipe.residency = Watched(pipe.units, CPU, level)
    placement = mem.Placement(mem.LEVELS[level])
    pipe.residency.choose = lambda work, say: pipe.residency.adopt(placement)
    seen: list[bool] = []

    def moved(stage: str, done: int, total: int) -> None:
        if stage == "denoise":
            seen.append(stored_bytes(pipe.transformer.blocks[0].ffn.net[2].weight) < 1.5 * 48 * 96)

    latents = pipe.edit(frames, "make it snowy", **call, progress=moved)
    # Copies lie at other addresses, and a kernel's order of sums depends on the alignment.
    assert relative_error(latents, expected) < 1e-6
    assert seen == [True, True]
    pipe.to("cpu")
    assert identities(pipe) == host


def test_a_second_time_is_refused(quantized: Any) -> None:
    _, pipe = quantized
    before = list(pipe.alterations)
    with pytest.raises(UsageError, match="already"):
        quantize.quantize(pipe, "fp8-storage")
    assert pipe.alterations == before and quantize.is_quantized(pipe)
    assert not quantize.is_quantized(small())


@pytest.mark.parametrize("mode", MODES)
def test_after_a_streamed_edit_too(mode: str) -> None:
    """What is streamed is what is there: the weights of before are nowhere kept."""
    frames = random_frames(5)
    first, pipe = small(), small()
    quantize.quantize(first, mode)
    pipe.manage(CPU, "stream")
    pipe.edit(frames, "make it snowy", steps=1)
    quantize.quantize(pipe, mode)
    expected, got = (p.edit(frames, "make it snowy", steps=2, output="latents") for p in (first, pipe))
    assert relative_error(got, expected) < 1e-6


def test_unknown_formats_and_missing_packages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="'int4'") as error:
        quantize.choose("int4", CPU, torch.float32)
    assert "fp8-storage" in error.value.hint
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    for mode in ("int8", "fp8"):
        with pytest.raises(UsageError, match="torchao") as error:
            quantize.choose(mode, CPU, torch.float32)
        assert "kiwi-cli[quantize]" in error.value.hint and "fp8-storage" in error.value.hint
    assert quantize.choose("fp8-storage", CPU, torch.float32)[0] is None


@needs_torchao
@pytest.mark.parametrize(
    ("capability", "dtype", "dynamic"),
    [
        ((9, 0), torch.bfloat16, True),
        ((8, 9), torch.bfloat16, True),
        ((8, 6), torch.bfloat16, False),
        ((9, 0), torch.float32, False),
    ],
)
def test_fp8_computes_in_fp8_where_the_gpu_can(
    capability: Any, dtype: torch.dtype, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    config, how = quantize.choose("fp8", torch.device("cuda"), dtype)
    assert ("DynamicActivation" in type(config).__name__) == dynamic == ("computed in fp8" in how)
    config, how = quantize.choose("fp8", CPU, torch.bfloat16)
    assert "DynamicActivation" not in type(config).__name__ and "computed in bfloat16" in how


def test_it_works_with_caches_and_says_both(quantized: Any) -> None:
    from kiwi_cli.engine.step_cache import StepCache

    mode, pipe = quantized
    pipe.register_to_config(references_first=False)
    said: list[str] = []
    frames = pipe.edit(
        random_frames(1), "make it snowy", steps=20, cache=StepCache.of("easy", 1.0), notify=said.append, solver="unipc"
    )
    assert frames.dtype == np.uint8
    assert len(pipe.approximations) == 3 and all("NOT exact" in line for line in pipe.approximations)
    assert pipe.approximations[0].startswith(mode) and said == pipe.approximations[1:]
