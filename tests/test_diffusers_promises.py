"""What a diffusers pipeline promises, by the library's names: one case for each promise, on the small checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook
from diffusers import (
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    PyramidAttentionBroadcastConfig,
)
from PIL import Image
from safetensors.torch import save_file

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.errors import CheckpointError, UsageError

from .conftest import CHECKPOINT, random_frames

FRAMES = random_frames(2, 32, 64)
PICTURE = Image.fromarray(random_frames(1, 40, 40, seed=2)[0])
PARTS = ("transformer", "vae", "mllm_encoder", "source_embedder", "ref_embedder")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    """Hundreds of calls of a tiny model: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def call(pipe: Any, **changes: Any) -> Any:
    """The frames of two steps, as an array unless asked otherwise."""
    given = {"video": FRAMES, "prompt": "make it snowy", "num_inference_steps": 2, "generator": seeded()}
    return pipe(**{**given, "output_type": "np", **changes}).frames


def load(source: Path | str = CHECKPOINT, **options: Any) -> Any:
    pipe = KiwiPipeline.from_pretrained(str(source), **{"device": "cpu", **options})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours() -> Any:
    """Only called, never changed."""
    return load()


@pytest.fixture
def fresh(ours: Any) -> Any:
    """The same model in a pipeline of its own, to be changed."""
    return load()


@pytest.fixture(scope="module")
def expected(ours: Any) -> np.ndarray:
    return call(ours)


# -- the call -----------------------------------------------------------------------------------------------------


def test_the_call_is_the_edit(ours: Any) -> None:
    pictures = call(ours, image=PICTURE, output_type="pil")
    edited = ours.edit(FRAMES, "make it snowy", [PICTURE], steps=2, seed=0)
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures[0]]), edited)
    latents = call(ours, output_type="latent")
    assert torch.equal(latents, ours.edit(FRAMES, "make it snowy", steps=2, seed=0, output="latents"))


FORMS: dict[str, Callable[[], Any]] = {
    "a list of pictures": lambda: [Image.fromarray(frame) for frame in FRAMES],
    "a list of arrays": lambda: list(FRAMES),
    "a list of tensors": lambda: list(torch.from_numpy(FRAMES).permute(0, 3, 1, 2)),
    "an array of floats": lambda: FRAMES.astype(np.float32) / 255,
    "a tensor of bytes": lambda: torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
    "a tensor of floats": lambda: torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255,
    "a batch of one": lambda: torch.from_numpy(FRAMES).permute(0, 3, 1, 2)[None] / 255,
    "a list of one clip": lambda: [[Image.fromarray(frame) for frame in FRAMES]],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_video_in_any_form(ours: Any, expected: np.ndarray, form: str) -> None:
    assert np.array_equal(call(ours, video=FORMS[form]()), expected)


def test_what_is_no_video(ours: Any) -> None:
    for video, words in (
        ([], "no frames"),
        (FRAMES.astype(np.float32), "from 0 to 1"),
        (FRAMES.astype(np.int64), "uint8 or floats"),
        ([PICTURE, Image.fromarray(FRAMES[0])], "several sizes"),
        (FRAMES[:, :30], "multiple of 32"),
        ("clip.mp4", "not pictures"),
    ):
        with pytest.raises(UsageError, match=words):
            call(ours, video=video)


def test_references_in_any_form(ours: Any) -> None:
    array = np.array(PICTURE)
    one = call(ours, image=PICTURE)
    for form in ([PICTURE], array, array.astype(np.float32) / 255, torch.from_numpy(array).permute(2, 0, 1), [[array]]):
        assert np.array_equal(call(ours, image=form), one)
    two = call(ours, image=[PICTURE, Image.fromarray(FRAMES[0])])
    edited = ours.edit(FRAMES, "make it snowy", [PICTURE, Image.fromarray(FRAMES[0])], steps=2)
    assert np.array_equal((two[0] * 255).round().astype(np.uint8), edited) and not np.array_equal(two, one)


def test_kinds_of_output(ours: Any, expected: np.ndarray) -> None:
    assert expected.shape == (1, *FRAMES.shape) and expected.dtype == np.float32
    assert expected.min() >= 0 and expected.max() <= 1
    tensor = call(ours, output_type="pt")
    assert tensor.shape == (1, 2, 3, 32, 64)
    assert np.array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), expected)
    pictures = call(ours, output_type="pil")
    assert len(pictures) == 1 and len(pictures[0]) == 2 and pictures[0][0].size == (64, 32)
    assert np.abs(np.asarray(pictures[0][0]) - expected[0, 0] * 255).max() <= 0.5 + 1e-3
    with pytest.raises(UsageError, match="output_type"):
        call(ours, output_type="mp4")


def test_dict_and_tuple(ours: Any, expected: np.ndarray) -> None:
    given = {"video": FRAMES, "prompt": "make it snowy", "num_inference_steps": 2, "output_type": "np"}
    output = ours(**given, generator=seeded())
    assert np.array_equal(output.frames, expected) and np.array_equal(output[0], expected)
    as_tuple = ours(**given, generator=seeded(), return_dict=False)
    assert isinstance(as_tuple, tuple) and np.array_equal(as_tuple[0], expected)


def test_several_prompts_for_one_clip(ours: Any) -> None:
    prompts = ["make it snowy", "in watercolour, with a very long description " * 5, "night"]
    batch = call(ours, prompt=prompts, generator=[seeded(number) for number in range(3)])
    assert batch.shape == (3, *FRAMES.shape)
    for number, prompt in enumerate(prompts):
        alone = call(ours, prompt=prompt, generator=seeded(number))
        assert np.abs(batch[number] - alone[0]).max() < 1e-4


def test_clips_and_references_of_their_own(ours: Any) -> None:
    other, second = FRAMES[::-1].copy(), Image.fromarray(np.asarray(PICTURE)[::-1].copy())
    batch = call(ours, video=[FRAMES, other], prompt=["x", "y"], image=[[PICTURE], [second]], generator=[seeded(1)] * 2)
    noise = seeded(1)
    for number, (video, prompt, image) in enumerate(((FRAMES, "x", PICTURE), (other, "y", second))):
        alone = call(ours, video=video, prompt=prompt, image=image, generator=noise)
        assert np.abs(batch[number] - alone[0]).max() < 1e-4


def test_batches_that_do_not_fit(ours: Any) -> None:
    for changes, words in (
        ({"video": [FRAMES, FRAMES], "prompt": ["a", "b", "c"]}, "2 clips for 3 prompts"),
        ({"video": [FRAMES, FRAMES[:1]], "prompt": ["a", "b"]}, "differ in size or length"),
        ({"image": [[PICTURE], []], "prompt": ["a", "b"]}, "different numbers of images"),
        ({"generator": [seeded()], "prompt": ["a", "b"]}, "1 generators for 2"),
        ({"prompt": []}, "not a text"),
        ({"latents": torch.zeros(1, 2, 3)}, "latents must be"),
    ):
        with pytest.raises(UsageError, match=words):
            call(ours, **changes)


def test_latents_are_the_noise_to_start_with(ours: Any, expected: np.ndarray) -> None:
    shape = ours.encode_source(FRAMES).shape
    assert np.array_equal(call(ours, latents=torch.randn(shape, generator=seeded()), generator=None), expected)
    assert not np.array_equal(call(ours, generator=seeded(1)), expected)
    assert not np.array_equal(call(ours, generator=None), call(ours, generator=None))


def test_a_callback_sees_and_changes_each_step(ours: Any) -> None:
    seen: list[tuple[int, float, set[str]]] = []

    def look(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, float(timestep), set(tensors)))
        return tensors

    def blank(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        last = step == pipe.num_timesteps - 1
        return {"latents": torch.zeros_like(tensors["latents"])} if last else tensors

    names = ours._callback_tensor_inputs
    call(ours, callback_on_step_end=look)
    call(ours, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert [step for step, _, _ in seen] == [0, 1, 0, 1] and seen[0][1] == 1000.0 > seen[1][1]
    assert seen[0][2] == {"latents"} and seen[2][2] == set(names) == {"latents", "prompt_embeds"}
    assert not call(ours, callback_on_step_end=blank, output_type="latent").any()
    with pytest.raises(UsageError, match="no tensor 'image'"):
        call(ours, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["image"])


def test_a_callback_changes_the_prompt(ours: Any) -> None:
    other = ours.encode_instruction(FRAMES, "night")

    def night(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": other}

    changed = call(ours, callback_on_step_end=night, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert not np.array_equal(changed, call(ours)) and not np.array_equal(changed, call(ours, prompt="night"))


def test_interruption_skips_the_steps_that_are_left(ours: Any) -> None:
    steps: list[torch.Tensor] = []

    def stop(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(tensors["latents"])
        pipe._interrupt = step == 1
        return tensors

    latents = call(ours, num_inference_steps=4, callback_on_step_end=stop, output_type="latent")
    assert len(steps) == 2 and torch.equal(latents, steps[-1]) and ours.interrupt
    call(ours)
    assert not ours.interrupt  # of that call alone


def test_the_progress_bar_can_be_set(fresh: Any, capsys: pytest.CaptureFixture[str]) -> None:
    call(fresh)
    assert "2/2" not in capsys.readouterr().err
    fresh.set_progress_bar_config(disable=False)
    call(fresh)
    assert "2/2" in capsys.readouterr().err


def test_attention_slicing_changes_nothing(fresh: Any, expected: np.ndarray) -> None:
    fresh.enable_attention_slicing(1)
    assert np.abs(call(fresh) - expected).max() < 1e-5


def test_a_managed_call_plans_for_its_batch(fresh: Any, expected: np.ndarray) -> None:
    fresh.manage(torch.device("cpu"), "stream", "8GB")
    single, double = (call(fresh, prompt=["make it snowy"] * count, generator=[seeded()] * count) for count in (1, 2))
    assert np.abs(single - expected).max() < 1e-5 and double.shape[0] == 2 and fresh.residency.placement.level.streamed


# -- the scheduler ------------------------------------------------------------------------------------------------


def test_the_scheduler_is_a_part_that_matters(fresh: Any, expected: np.ndarray) -> None:
    assert isinstance(fresh.scheduler, FlowMatchEulerDiscreteScheduler) and fresh.scheduler.config.shift == 5.0
    before = fresh.edit(FRAMES, "x", steps=2, output="latents")
    fresh.scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    assert fresh.config.shift == 2.0
    assert not np.array_equal(call(fresh), expected)
    assert not torch.equal(fresh.edit(FRAMES, "x", steps=2, output="latents"), before)
    fresh.register_to_config(shift=5.0)
    assert np.array_equal(call(fresh), expected)
    assert torch.equal(fresh.edit(FRAMES, "x", steps=2, output="latents"), before)


def test_schedulers_that_would_not_be_followed(fresh: Any) -> None:
    for scheduler, words in (
        (EulerDiscreteScheduler(), "EulerDiscreteScheduler"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "use_dynamic_shifting"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling"),
    ):
        with pytest.raises(UsageError, match=words):
            fresh.scheduler = scheduler
        with pytest.raises(UsageError, match=words):
            load(scheduler=scheduler)


# -- parts, precision, places -------------------------------------------------------------------------------------


def test_components_make_the_same_pipeline(ours: Any, expected: np.ndarray) -> None:
    assert set(ours.components) == {*PARTS, "tokenizer", "scheduler"}
    again = KiwiPipeline(**ours.components)
    again.set_progress_bar_config(disable=True)
    assert set(again.components) == set(ours.components) and np.array_equal(call(again), expected)
    made = random_pipeline("small", torch.device("cpu"), torch.float32)
    assert set(KiwiPipeline(**made.components).components) == set(ours.components)


def test_a_pipeline_from_a_pipeline(fresh: Any, expected: np.ndarray) -> None:
    other = KiwiPipeline.from_pipe(fresh, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))
    other.set_progress_bar_config(disable=True)
    assert other.transformer is fresh.transformer and other.config.shift == 2.0
    assert not np.array_equal(call(other), expected) and np.array_equal(call(fresh), expected)


def test_to_another_precision(fresh: Any) -> None:
    assert {getattr(fresh, part).dtype for part in PARTS} == {torch.float32}
    fresh.to(dtype=torch.bfloat16)
    assert {getattr(fresh, part).dtype for part in PARTS} == {torch.bfloat16}
    assert np.isfinite(call(fresh)).all()


def test_precision_by_part(tmp_path: Path, ours: Any) -> None:
    ours.save_pretrained(tmp_path)
    wanted = {"transformer": torch.bfloat16, "default": torch.float16}
    for source in (CHECKPOINT, tmp_path):
        for name in ("dtype", "torch_dtype"):
            pipe = load(source, **{name: wanted})
            found = {part: getattr(pipe, part).dtype for part in PARTS}
            assert found == {part: wanted.get(part, torch.float16) for part in PARTS}
            assert pipe.vae.encoder.conv_in.weight.dtype == torch.float32  # the source steers every step
            assert pipe.transformer.scale_shift_table.dtype == torch.float32
    with pytest.raises(UsageError, match="two names"):
        load(dtype="float16", torch_dtype=torch.float32)


def test_half_precision_is_close(expected: np.ndarray) -> None:
    half = call(load(dtype=torch.bfloat16))
    assert 0 < np.abs(half - expected).mean() < 0.02


@pytest.mark.parametrize("managed", [False, True])
def test_model_offload_twice(fresh: Any, expected: np.ndarray, managed: bool) -> None:
    if managed:
        fresh.manage(torch.device("cpu"), "swap")
        call(fresh)
    for _ in range(2):
        fresh.enable_model_cpu_offload(device="cpu")
        # Weights that were mapped from a file are copied, and some processors' sums hang on where a matrix begins.
        assert np.abs(call(fresh) - expected).max() < 1e-5
        assert {type(getattr(fresh, part)._hf_hook) for part in PARTS} == {CpuOffload}


def test_sequential_offload_twice(fresh: Any, expected: np.ndarray) -> None:
    """As `enable_sequential_cpu_offload` does it, which without an accelerator cannot put weights back."""
    fresh.to("cpu")
    for part in PARTS:
        module = getattr(fresh, part)
        cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
    for _ in range(2):
        assert np.abs(call(fresh) - expected).max() < 1e-5
        assert {getattr(fresh, part).device.type for part in PARTS} == {"meta"}
    hooks = [getattr(fresh, part)._hf_hook for part in PARTS]
    assert all(isinstance(hook, AlignDevicesHook | SequentialHook) for hook in hooks)
    edited = fresh.edit(FRAMES, "make it snowy", steps=2)
    assert np.abs(edited - (expected[0] * 255)).max() <= 0.5 + 1e-2


@pytest.mark.parametrize(
    "kind", [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}]
)
def test_group_offload(fresh: Any, expected: np.ndarray, kind: dict[str, Any]) -> None:
    fresh.enable_group_offload(torch.device("cpu"), **kind)
    assert fresh.residency is None
    assert np.abs(call(fresh) - expected).max() < 1e-5


def test_fp8_storage_layer_by_layer(fresh: Any, expected: np.ndarray) -> None:
    fresh.vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    fresh.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert 0 < np.abs(call(fresh) - expected).mean() < 0.1


def test_the_caches_of_the_library(fresh: Any) -> None:
    exact = call(fresh, num_inference_steps=4)
    attention = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: fresh.current_timestep,
    )
    for cache in (FirstBlockCacheConfig(threshold=10.0), attention):
        fresh.transformer.enable_cache(cache)
        cached = [call(fresh, num_inference_steps=4) for _ in range(2)]
        fresh.transformer.disable_cache()
        assert np.array_equal(*cached) and np.abs(cached[0] - exact).max() > 0  # nothing is left from call to call
    assert np.array_equal(call(fresh, num_inference_steps=4), exact) and fresh.current_timestep is None


# -- saving and opening -------------------------------------------------------------------------------------------


def test_saved_and_opened(tmp_path: Path, ours: Any, expected: np.ndarray) -> None:
    ours.save_pretrained(tmp_path, max_shard_size="100KB")
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "KiwiPipeline" and index["scheduler"][1] == "FlowMatchEulerDiscreteScheduler"
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
    assert list(tmp_path.rglob("*-00002-of-*.safetensors")) and not list(tmp_path.rglob("*.bin"))
    again = load(tmp_path)
    assert np.array_equal(call(again), expected)
    assert np.array_equal(call(again, image=PICTURE), call(ours, image=PICTURE))
    assert np.array_equal(call(load(tmp_path, memory="stream", max_memory="8GB")), expected)


def test_all_that_was_set_is_saved(tmp_path: Path, fresh: Any) -> None:
    colour = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    made = KiwiPipeline(**fresh.components, colour=colour, references_first=True)
    made.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made.register_to_config(shift=4.0)
    made.set_progress_bar_config(disable=True)
    made.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.scheduler.config.shift == again.config.shift == 4.0 and again.config.references_first
    assert again.inputs.geometry.mean == (0.1, 0.2, 0.3)
    assert np.array_equal(call(again, image=PICTURE), call(made, image=PICTURE))
    assert load(tmp_path, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0)).config.shift == 2.0


def test_no_pickles(tmp_path: Path, ours: Any, caplog: pytest.LogCaptureFixture) -> None:
    """`safe_serialization=False` is taken, says so, and is read back."""
    ours.save_pretrained(tmp_path, safe_serialization=False)
    files = [path.suffix for path in tmp_path.rglob("diffusion_pytorch_model*")]
    assert files and set(files) == {".safetensors"}
    assert load(tmp_path).components.keys() == ours.components.keys()
    with pytest.raises(UsageError, match="no pickles"):
        load(tmp_path, use_safetensors=False)


def test_variants(tmp_path: Path, ours: Any) -> None:
    ours.save_pretrained(tmp_path / "half", variant="fp16")
    for part in PARTS:
        assert [path.name.split(".")[1] for path in (tmp_path / "half" / part).glob("*.safetensors")] == ["fp16"]
    again = load(tmp_path / "half", variant="fp16")
    for part in PARTS:
        loaded = dict(getattr(again, part).named_parameters())
        assert all(torch.equal(loaded[name], value) for name, value in getattr(ours, part).named_parameters())
    ours.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
        load(tmp_path / "plain", variant="fp16")
    with pytest.raises(UsageError, match="no variant 'fp16'"):
        load(variant="fp16")


def test_a_device_map(tmp_path: Path, ours: Any, expected: np.ndarray) -> None:
    ours.save_pretrained(tmp_path)
    mapped = load(tmp_path, device_map="cpu")
    assert mapped.residency is None and np.array_equal(call(mapped), expected)


def test_an_index_that_names_foreign_classes(tmp_path: Path, ours: Any) -> None:
    ours.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformer": ["antigravity", "Anything"]}))
    with pytest.raises(CheckpointError, match="'transformer' from 'antigravity'"):
        load(tmp_path)


def test_parts_of_ones_own(ours: Any) -> None:
    assert load(transformer=ours.transformer).transformer is ours.transformer
    with pytest.raises(UsageError, match="takes no 'safety_checker'"):
        load(safety_checker=None)


# -- LoRA ---------------------------------------------------------------------------------------------------------

STYLES = {
    "diffusers": ("transformer.blocks.{}.attn1.to_q.lora_A.weight", "transformer.blocks.{}.attn1.to_q.lora_B.weight"),
    "kiwi's training": ("pipe.dit.blocks.{}.self_attn.q.lora_A.default.weight",) * 2,
    "ComfyUI": ("diffusion_model.blocks.{}.self_attn.q.lora_down.weight",) * 2,
    "kohya": ("lora_unet_blocks_{}_self_attn_q.lora_down.weight",) * 2,
}


def lora(style: str = "diffusers", seed: int = 0, alpha: float | None = None) -> dict[str, torch.Tensor]:
    down_key, up_key = STYLES[style]
    up_key = up_key.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
    state: dict[str, torch.Tensor] = {}
    for block in range(3):
        state[down_key.format(block)] = torch.randn(4, 48, generator=seeded(seed + block))
        state[up_key.format(block)] = torch.randn(48, 4, generator=seeded(seed + 10 + block))
        if alpha is not None:
            state[down_key.format(block).split(".lora_")[0] + ".alpha"] = torch.tensor(alpha)
    return state


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_in_any_key_style(tmp_path: Path, fresh: Any, expected: np.ndarray, style: str) -> None:
    save_file(lora(style), tmp_path / "style.safetensors")
    fresh.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    assert fresh.get_active_adapters() == ["style"]
    for block in range(3):
        layer = fresh.transformer.blocks[block].attn1.to_q
        assert torch.equal(layer.lora_A["style"].weight, torch.randn(4, 48, generator=seeded(block)))
    assert np.abs(call(fresh) - expected).max() > 1e-3


def test_the_alpha_of_a_lora(fresh: Any, expected: np.ndarray) -> None:
    state = lora()
    fresh.load_lora_weights({key: 0.5 * value if "lora_B" in key else value for key, value in state.items()}, "weaker")
    half = call(fresh)
    fresh.unload_lora_weights()
    assert np.array_equal(call(fresh), expected)
    fresh.load_lora_weights(lora("ComfyUI", alpha=2.0), "alpha")  # of rank 4
    assert np.array_equal(call(fresh), half) and not np.array_equal(half, expected)


def test_adapters_are_switched_weighted_fused_and_taken_away(fresh: Any, expected: np.ndarray) -> None:
    fresh.load_lora_weights(lora(), adapter_name="one")
    one = call(fresh)
    fresh.load_lora_weights(lora(seed=50), adapter_name="two")
    fresh.set_adapters(["one", "two"], [1.0, 0.5])
    both = call(fresh)
    fresh.set_adapters("one")
    assert np.array_equal(call(fresh), one) and not np.array_equal(both, one)
    fresh.fuse_lora(adapter_names=["one"])
    fused = call(fresh)
    fresh.unfuse_lora()
    assert np.abs(fused - one).max() < 1e-3
    assert np.abs(call(fresh) - one).max() < 1e-3
    fresh.disable_lora()
    assert np.abs(call(fresh) - expected).max() < 1e-3
    fresh.unload_lora_weights()
    assert np.abs(call(fresh) - expected).max() < 1e-3
    assert not [name for name, _ in fresh.transformer.named_modules() if "lora" in name]


def test_the_scale_of_a_call(fresh: Any, expected: np.ndarray) -> None:
    fresh.load_lora_weights(lora())
    assert np.array_equal(call(fresh, attention_kwargs={"scale": 0.0}), expected)
    assert not np.array_equal(call(fresh), expected)


@pytest.mark.parametrize("level", ["resident", "stream"])
def test_an_adapter_in_a_managed_pipeline(fresh: Any, level: str) -> None:
    fresh.to("cpu")
    fresh.load_lora_weights(lora())
    plain = call(fresh)
    fresh.unload_lora_weights()
    fresh.manage(torch.device("cpu"), level)
    call(fresh)  # the parts were on the device before the adapter came
    fresh.load_lora_weights(lora())
    assert fresh.residency.level == level and np.abs(call(fresh) - plain).max() < 1e-5


def test_loras_that_do_not_fit(tmp_path: Path, fresh: Any, expected: np.ndarray) -> None:
    foreign = {key.replace("blocks", "layers"): value for key, value in lora().items()}
    pickle = tmp_path / "style.bin"
    pickle.write_bytes(b"")
    for source, words in (
        (foreign, "nothing for this model"),
        (lora() | {"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.zeros(4, 48)}, "only in part"),
        (lora("ComfyUI") | {"diffusion_model.blocks.0.norm3.diff": torch.zeros(48)}, "no adapter"),
        (pickle, "pickle"),
        (tmp_path / "nowhere.safetensors", "not found"),
    ):
        with pytest.raises(CheckpointError, match=words):
            fresh.load_lora_weights(source)
    assert np.array_equal(call(fresh), expected)
