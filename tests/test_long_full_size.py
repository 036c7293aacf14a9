"""A long clip at the released 5B's full size, 1280x704: what is on the device and on the host is what the plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import torch

from kiwi_cli.bench.speed.live_memory import LiveMemory, fused_attention
from kiwi_cli.engine import long
from kiwi_cli.engine.estimate import on_host
from kiwi_cli.engine.layout import Layout, lay_out
from kiwi_cli.engine.long import LongEdit, LongSettings
from kiwi_cli.engine.long_decode import LongDecode
from kiwi_cli.engine.random_model import random_pipeline
from kiwi_cli.engine.workspace import Workspace
from kiwi_cli.model import vae
from kiwi_cli.model.shape import RELEASED_5B
from kiwi_cli.model.vae import Decoder, Encoder
from kiwi_cli.video import Size

SIZE = Size(1280, 704)
CONTEXT = (1, RELEASED_5B.queries[1], RELEASED_5B.width)


def windows_of(frames: int) -> Layout:
    """The released models' windows over a shot, by default."""
    return lay_out((frames,), 21, 6, "frame")


@pytest.fixture
def handed_over(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model in bf16 on `meta`, which computes nothing: where values would come to the host there are zeros of their
    shape. The instruction alone is not read; what it takes does not depend on windows."""
    pipe: Any = random_pipeline(request.param, torch.device("meta"), torch.bfloat16)

    def there(value: torch.Tensor) -> torch.Tensor:
        return torch.zeros(value.shape)

    class Encoded(Encoder):
        def __call__(self, chunk: torch.Tensor) -> torch.Tensor:
            return there(super().__call__(chunk))

    class Decoded(Decoder):
        def __call__(self, latent: torch.Tensor) -> torch.Tensor:
            return there(super().__call__(latent))

    forward, context = pipe.transformer.forward, (*CONTEXT[:2], pipe.mllm_encoder.config.dit_dim)
    monkeypatch.setattr(long, "Encoder", Encoded)
    monkeypatch.setattr(vae, "Decoder", Decoded)
    monkeypatch.setattr(pipe.transformer, "forward", lambda *args, **named: (there(forward(*args, **named)[0]),))
    monkeypatch.setattr(pipe, "encode_inputs", lambda inputs: torch.zeros(context, dtype=torch.bfloat16))
    return pipe


@dataclass
class Counted:
    """Bytes of one edit in one step: the most on the device and on the host in each stage, and what the host keeps when
    all steps are made."""

    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    kept: int = 0


def of_an_edit(pipe: Any, size: Size, layout: Layout) -> Counted:
    picture = np.zeros((size.height, size.width, 3), np.uint8)
    found, on_device, on_host = Counted(), LiveMemory("meta"), LiveMemory("cpu")
    for part in (pipe.transformer, pipe.vae, pipe.source_embedder, pipe.ref_embedder):
        on_device.ignore(part)

    def frames_from(first: int) -> Iterator[np.ndarray]:
        yield from repeat(picture)

    def stage(name: str, work: Callable[[], object]) -> None:
        on_device.peak, on_host.peak = on_device.live, on_host.live
        work()
        found.device[name], found.host[name] = on_device.peak, on_host.peak

    with torch.no_grad(), fused_attention(), on_device, on_host:
        edit = LongEdit(pipe, frames_from, size, layout, LongSettings("make it snowy", steps=1), Workspace())
        stage("encode", edit.read)
        stage("denoise", edit.denoise)
        found.kept = on_host.live
        stage("decode", lambda: [None for _ in LongDecode(pipe, edit.made).frames()])
    return found


@pytest.mark.parametrize("handed_over", ["small"], indirect=True)
def test_windows_leave_nothing_on_the_device(handed_over: Any) -> None:
    """An anchor's encoder stayed there up to the next window, and took half as much again."""
    many, one = (of_an_edit(handed_over, Size(64, 64), lay_out((frames,), 5, 1, "frame")) for frames in (33, 17))
    for stage, size in one.device.items():
        assert many.device[stage] == pytest.approx(size, rel=0.02), stage


def planned(frames: int) -> int:
    return on_host(RELEASED_5B, SIZE, windows_of(frames), "euler", contexts=1, references=0, item=2).total


@pytest.mark.slow
@pytest.mark.parametrize("handed_over", ["5b"], indirect=True)
def test_the_device_holds_what_one_window_needs_and_the_host_what_is_planned(handed_over: Any) -> None:
    """At 300 frames the tables are in memory; what is on the host beside them is one window's, and does not grow."""
    long_clip, one_window = (of_an_edit(handed_over, SIZE, windows_of(frames)) for frames in (300, 81))
    for stage, size in one_window.device.items():
        assert long_clip.device[stage] == pytest.approx(size, rel=0.02), stage
    assert long_clip.kept == pytest.approx(planned(300), rel=0.15)
    assert long_clip.host["denoise"] - one_window.host["denoise"] == pytest.approx(planned(300) - planned(81), rel=0.15)
