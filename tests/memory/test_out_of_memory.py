"""When memory runs out an edit goes on with less, or says what helps."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from kiwi_cli import KiwiPipeline
from kiwi_cli.engine import demand as asks
from kiwi_cli.errors import DeviceError

from ..conftest import CHECKPOINT
from .work import FRAMES


class Short:
    """A device that is short of memory: a stage's module fails at some of its calls, as an allocation would."""

    PARTS: ClassVar[dict[str, str]] = {
        "instruction": "mllm_encoder",
        "encode": "vae.quant_conv",
        "denoise": "transformer",
        "decode": "vae.post_quant_conv",
    }

    def __init__(self, pipe: Any, stage: str, fails: Any) -> None:
        part, _, inner = self.PARTS[stage].partition(".")
        module = getattr(pipe, part).get_submodule(inner)
        self.fails, self.calls = fails, 0
        self.seen: list[weakref.ref[torch.Tensor]] = []
        self.hook = module.register_forward_pre_hook(self.call, with_kwargs=True)

    def call(self, module: Any, args: Any, kwargs: Any) -> None:
        self.calls += 1
        if self.fails(self.calls):
            held = torch.zeros(8)
            self.seen.append(weakref.ref(held))
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB.\nMore."
            )


@pytest.fixture(scope="module")
def expected(loaded: Any) -> Any:
    return loaded.edit(FRAMES, "make it snowy", steps=2)


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("stage", asks.STAGES)
def test_out_of_memory_at_any_stage_ends_in_the_whole_result(expected: Any, stage: str, failures: int) -> None:
    """Each time by a smaller plan; nothing of a failed try is alive when the next one is planned."""
    other = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32")
    tries = {"instruction": 1, "encode": 2, "denoise": 2, "decode": 2}[stage]  # calls of a try; it fails at the last
    short = Short(other, stage, lambda call: call % tries == 0 and call <= failures * tries)
    said: list[str] = []

    def told(line: str) -> None:
        said.append(line)
        assert short.seen[-1]() is None

    got = other.edit(FRAMES, "make it snowy", steps=2, notify=told)
    assert short.calls == (failures + 1) * tries
    assert got.shape == expected.shape and np.abs(got.astype(int) - expected).max() <= 1  # strips' order of sums
    assert len(set(said)) == len(said) == failures
    assert all("out of memory" in line and "going on with less" in line for line in said)


@pytest.mark.parametrize("level", ["auto", "swap", "tiled"])
@pytest.mark.parametrize("stage", asks.STAGES)
def test_out_of_memory_for_good_is_said_with_what_helps(stage: str, level: str) -> None:
    other = KiwiPipeline.from_pretrained(str(CHECKPOINT), device="cpu", dtype="float32", memory=level)
    short = Short(other, stage, lambda call: True)
    with pytest.raises(DeviceError) as error:
        other.edit(FRAMES, "make it snowy", steps=1)
    assert error.value.message == "out of memory on cpu: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert "--size" in error.value.hint and ("tiled" in error.value.hint) == (level == "auto")
    assert short.calls > 1 if level == "auto" else other.residency.placement.level.name == level
    assert not other.residency.on_device
    short.hook.remove()
    assert other.edit(FRAMES, "make it snowy", steps=1).shape == FRAMES.shape
