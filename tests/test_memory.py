"""The memory plan is what is counted; every exact level gives the resident result, and keeps to its word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kiwi_cli import KiwiPipeline
from kiwi_cli import memory as mem
from kiwi_cli.bench.live_memory import count_peak
from kiwi_cli.bench.random_model import SIZES, random_pipeline
from kiwi_cli.errors import DeviceError, UsageError
from kiwi_cli.pictures import as_picture
from kiwi_cli.residency import Residency, count_work, weigh
from kiwi_cli.vae import decode_stream, decode_tiled, encode_stream

from .conftest import CHECKPOINT, random_frames, relative_error

GB = 1e9
FULL = (81, 704, 1280, 3)
FRAMES = random_frames(9)


@pytest.fixture(scope="module")
def full() -> Any:
    """The released 5B in bf16 on `meta`: shapes and precisions, no data."""
    return random_pipeline("5b", torch.device("meta"), torch.bfloat16)


@pytest.fixture(scope="module")
def weights(full: Any) -> mem.Weights:
    return weigh(full.units)


def work_of(pipe: Any, shape: tuple[int, ...] = FULL, references: int = 1) -> mem.Work:
    """An edit's demand, with the prompt of a full clip."""
    frames = np.broadcast_to(np.zeros(1, np.uint8), shape)
    inputs = pipe.inputs(np.zeros((16, *shape[1:]), np.uint8), "make it snowy")
    return count_work(pipe, frames, references, inputs)


# -- counted ------------------------------------------------------------------------------------------------


def peak_of(pipe: Any, stage: mem.Stage, shape: tuple[int, ...], strips: int) -> int:
    """Peak of the tensors of a stage at full size, counted on `meta` over three latent frames of the coders."""
    _, height, width, _ = shape
    meta = {"device": "meta", "dtype": torch.float32}
    latents = torch.empty(1, 48, 3, height // 16, width // 16, **meta)
    if stage == "decode":
        return count_peak(lambda: [None for _ in decode_stream(pipe.vae, latents, strips)], pipe.vae)
    if stage == "encode":
        chunks = (torch.empty(1, 3, 1 if index == 0 else 4, height, width, **meta) for index in range(3))
        return count_peak(lambda: [None for _ in encode_stream(pipe.vae, chunks, strips)], pipe.vae)
    video = torch.empty(1, 48, 1 + (shape[0] - 1) // 4, height // 16, width // 16, **meta)
    reference = torch.empty(1, 48, 1, height // 16, width // 16, **meta)
    context = torch.empty(1, 1200, 3072, device="meta", dtype=torch.bfloat16)
    parts = (pipe.transformer, pipe.source_embedder, pipe.ref_embedder)
    return count_peak(lambda: pipe.denoise(video, context, video, reference, steps=2), *parts)


@pytest.mark.parametrize("shape", [FULL, (81, 480, 832, 3)], ids=["720p", "480p"])
@pytest.mark.parametrize(
    ("stage", "strips"), [("denoise", 1), *[(s, n) for s in ("encode", "decode") for n in mem.STRIPS]]
)
def test_the_plan_is_within_15_percent_of_the_count(
    full: Any, stage: mem.Stage, strips: int, shape: tuple[int, ...]
) -> None:
    counted = peak_of(full, stage, shape, strips)
    work = work_of(full, shape)
    assert work.activations(stage, strips) == pytest.approx(counted, rel=0.15)
    if shape == FULL and stage == "decode":
        assert counted <= {1: 6.2e9, 2: 5.8e9, 4: 5.4e9}[strips]


def test_tiles_are_within_15_percent_of_the_count(full: Any) -> None:
    """Of a short clip; at 81 frames of 1280x704, counted once, it is 2.2 GB."""
    count, height, width, _ = shape = (9, 480, 832, 3)
    latents = torch.empty(1, 48, 1 + (count - 1) // 4, height // 16, width // 16, device="meta")
    counted = count_peak(lambda: decode_tiled(full.vae, latents), full.vae)
    assert work_of(full, shape).activations("decode", 1, tiled=True) == pytest.approx(counted, rel=0.15)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def released_widths(request: pytest.FixtureRequest) -> Any:
    """The released widths of the language model and its eyes, two layers of each: real tensors that can be counted."""
    released = SIZES["5b"]
    layers = {"text": {**released["text"], "layers": 2, "vocab": 2000}, "vision": {**released["vision"], "depth": 2}}
    layers["vision"]["full"] = [1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "thin", {**SIZES["mid"], **layers})
        return random_pipeline("thin", torch.device("cpu"), getattr(torch, request.param))


@pytest.mark.parametrize("references", [0, 1])
def test_the_prompts_estimate_holds_what_is_counted(released_widths: Any, references: int) -> None:
    frames = random_frames(4, 224, 416)
    inputs = released_widths.inputs(frames, "make it snowy", [as_picture(frames[0])] * references)
    counted = count_peak(lambda: released_widths.encode_inputs(inputs), released_widths.mllm_encoder)
    work = count_work(released_widths, frames, references, inputs)
    assert work.prompt == pytest.approx(counted, rel=0.15)


def test_weights_are_what_the_checkpoint_holds(weights: mem.Weights) -> None:
    """Bytes in bf16: 5.0 B of the transformer, 3.8 B of the language model; the VAE's encoder in fp32."""
    assert weights.whole["transformer"] == pytest.approx(10.0 * GB, rel=0.01)
    assert weights.whole["mllm"] == pytest.approx(7.6 * GB, rel=0.01)
    assert weights.whole["vae_encoder"] + weights.whole["vae_decoder"] == pytest.approx(1.7 * GB, rel=0.02)
    assert weights.streamed["transformer"] < 0.9 * GB and weights.streamed["mllm"] < 1.3 * GB


# -- chosen -------------------------------------------------------------------------------------------------

CARDS = {  # GB free: (level, decode strips)
    80: ("resident", 1),
    40: ("resident", 1),
    26.1: ("resident", 1),
    23.5: ("release", 1),
    18.5: ("release", 1),
    15.6: ("swap", 1),
    12.6: ("swap", 1),
    8.0: ("stream", 1),
    7.3: ("stream", 4),
}


@pytest.mark.parametrize("free", CARDS)
def test_auto_picks_the_level_for_a_card(full: Any, weights: mem.Weights, free: float) -> None:
    chosen = mem.plan(weights, work_of(full), int(free * GB))
    assert (chosen.level, chosen.decode_strips) == CARDS[free]
    assert chosen.exact and chosen.peak + mem.RESERVE <= free * GB


def test_below_what_works_it_is_refused_with_what_would_fit(full: Any, weights: mem.Weights) -> None:
    with pytest.raises(DeviceError) as error:
        mem.plan(weights, work_of(full), int(5 * GB))
    assert "needs" in error.value.message and "5.0 GB may be used" in error.value.message
    size = error.value.hint.rsplit(" ", 1)[1]
    width, height = map(int, size.split("x"))
    smaller = work_of(full, (81, height, width, 3))
    assert mem.plan(weights, smaller, int(5 * GB)).exact  # the advice is true
    assert width < 1280 and not width % 32 and not height % 32
    with pytest.raises(DeviceError, match=r"0\.5 GB may be used"):
        mem.plan(weights, work_of(full), int(0.5 * GB))


def test_tiled_is_never_chosen_by_itself_and_says_what_it_is(full: Any, weights: mem.Weights) -> None:
    work = work_of(full)
    tiled = mem.plan(weights, work, int(5 * GB), "tiled")
    assert not tiled.exact and "NOT exact" in tiled.describe()
    assert mem.plan(weights, work, int(4.6 * GB), "tiled").encode_strips == 4  # the encoder has no tiles, but strips
    assert all(mem.plan(weights, work, int(free * GB)).exact for free in (8, 10, 20, 50))


def test_a_level_asked_for_is_kept(full: Any, weights: mem.Weights) -> None:
    assert mem.plan(weights, work_of(full), int(80 * GB), "swap").level == "swap"
    with pytest.raises(DeviceError, match="--memory resident"):
        mem.plan(weights, work_of(full), int(16 * GB), "resident")
    with pytest.raises(UsageError, match="'huge'"):
        mem.plan(weights, work_of(full), None, "huge")


@pytest.mark.parametrize(
    ("text", "count"), [("12GB", 12e9), ("12 GiB", 12 * 2**30), ("800MB", 8e8), ("12", 12e9), ("1.5g", 1.5e9)]
)
def test_amounts_of_memory(text: str, count: float) -> None:
    assert mem.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-3GB", "0", "12 apples", "nan"])
def test_not_amounts_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount of memory"):
        mem.parse_bytes(text)


# -- carried out --------------------------------------------------------------------------------------------


class Watched(Residency):
    """A residency whose device is a second copy in the same memory: on a CPU, moving is seen this way."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()


@pytest.fixture
def managed() -> Any:
    """A pipeline, and a function that puts it under a level."""
    pipe = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")

    def under(plan: mem.Plan) -> Any:
        pipe.residency = Watched(pipe.units, torch.device("cpu"), plan.level)
        pipe.residency.choose = lambda work, say: pipe.residency.adopt(plan)
        return pipe

    return under


@pytest.mark.parametrize("strips", [1, 3])
@pytest.mark.parametrize("level", mem.EXACT)
def test_every_exact_level_is_the_resident_result(managed: Any, level: mem.Level, strips: int) -> None:
    """To the bit, but for the strips' own rounding (a kernel's order of sums depends on the width).

    The library's streaming leaves the weights where they are mapped, and a kernel's order of sums depends on their
    alignment too: there, the pipeline that nobody moved is the measure.
    """
    picture = FRAMES[0]
    resident = managed(mem.Plan("resident"))
    if level == "stream":
        resident.to("cpu")
    expected = resident(FRAMES, "make it snowy", [picture], steps=2, output="latents")
    whole = np.concatenate(list(resident.decode(expected, 9)))
    resident.to("cpu")
    moved = managed(mem.Plan(level, strips, strips))
    latents = moved(FRAMES, "make it snowy", [picture], steps=2, output="latents")
    assert relative_error(latents, expected) <= (0 if strips == 1 else 1e-6)
    frames = np.concatenate(list(moved.decode(expected, 9)))
    assert np.abs(frames.astype(int) - whole).max() <= (0 if strips == 1 else 1)


@pytest.mark.parametrize("level", ["resident", "release", "swap"])
def test_a_stage_holds_what_its_level_says(managed: Any, level: mem.Level) -> None:
    pipe = managed(mem.Plan(level))
    host = {name: tensor.data_ptr() for name, tensor in pipe.transformer.named_parameters()}
    seen: dict[str, set[str]] = {}
    pipe(
        FRAMES,
        "make it snowy",
        steps=1,
        progress=lambda stage, *_: seen.setdefault(stage, set(pipe.residency.on_device)),
    )
    everything = set(mem.UNITS)
    assert (
        seen
        == {
            "resident": dict.fromkeys(mem.STAGES, everything),
            "release": {
                "instruction": {"mllm"},
                "encode": {"vae_encoder"},
                "denoise": {"vae_encoder", "transformer"},
                "decode": everything - {"mllm"},
            },
            "swap": {stage: {unit} for stage, unit in mem.NEEDED.items()},
        }[level]
    )
    pipe.to("cpu")  # gives the parts back as they were
    assert {name: tensor.data_ptr() for name, tensor in pipe.transformer.named_parameters()} == host


def test_tiled_is_another_result_and_a_whole_clip(pipe: Any, managed: Any) -> None:
    frames = random_frames(5, 320, 320)
    latents = pipe.encode_source(frames)
    tiled = np.concatenate(list(managed(mem.Plan("tiled")).decode(latents, 5)))
    whole = np.concatenate(list(pipe.decode(latents, 5)))
    assert tiled.shape == whole.shape and not np.array_equal(tiled, whole)


def test_out_of_memory_steps_down_once_and_says_so(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, full: Any, weights: mem.Weights
) -> None:
    from kiwi_cli import pipeline as module

    expected = pipe(FRAMES, "make it snowy", steps=2)
    other = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")
    decode = module.wan_vae.decode_stream
    tries: list[int] = []

    def fails_at_the_third_chunk(vae: Any, latents: torch.Tensor, strips: int, steady: Any) -> Any:
        tries.append(strips)
        for index, pixels in enumerate(decode(vae, latents, strips, steady)):
            if index == 2 and len(tries) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            yield pixels

    monkeypatch.setattr(module.wan_vae, "decode_stream", fails_at_the_third_chunk)
    said: list[str] = []
    got = other(FRAMES, "make it snowy", steps=2, notify=said.append)
    assert len(tries) == 2 and tries[1] >= tries[0]
    assert np.abs(got.astype(int) - expected).max() <= 1  # strips round in their own order
    assert len(said) == 1 and "out of memory" in said[0] and "going on with less" in said[0]

    monkeypatch.setattr(module.wan_vae, "decode_stream", _always_out_of_memory)
    with pytest.raises(DeviceError, match="out of memory") as error:
        other(FRAMES, "make it snowy", steps=1)
    assert error.value.hint


def _always_out_of_memory(vae: Any, latents: torch.Tensor, strips: int, steady: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")
    yield


def test_the_librarys_own_offload_still_works(pipe: Any) -> None:
    other = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")
    other.enable_model_cpu_offload(device="cpu")
    call = {"steps": 2, "output": "latents"}
    assert relative_error(other(FRAMES, "make it snowy", **call), pipe(FRAMES, "make it snowy", **call)) < 1e-6
