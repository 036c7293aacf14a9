"""What a diffusers pipeline promises of its call, by the library's names: one case for each promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kiwi_cli.errors import UsageError

from .calls import FRAMES, PICTURE, call, seeded


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
