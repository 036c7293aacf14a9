"""Runway and fal through their own clients, against servers on loopback that speak their protocols."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.base.events import SILENT
from kiwi_cli.editors import fal, remote, runway
from kiwi_cli.editors.base import Denoising, Edited, Origin
from kiwi_cli.engine.choice import ModelChoice
from kiwi_cli.errors import KiwiError, UsageError

from . import services
from .services import KEY, Services
from .test_files import counting, numbers

pytest.importorskip("runwayml", reason="needs runwayml: pip install 'kiwi-cli[runway]'")
pytest.importorskip("fal_client", reason="needs fal-client: pip install 'kiwi-cli[fal]'")

PLAIN = "fal:some/editor"
KLING = "fal:fal-ai/kling-video/o3/pro/video-to-video/edit"
BOTH = pytest.mark.parametrize("name", ["runway", PLAIN])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    with services.serve() as running:
        services.use(monkeypatch, running)
        yield running


def edit(name: str, frames: np.ndarray | None = None, rate: int = 24, references: Any = (), **more: Any) -> Edited:
    choice = ModelChoice(editor=name, **more)
    kind: Any = runway.KIND if name == "runway" else fal.KIND
    found = kind.find(choice)
    kind.admit(found, choice)
    frames = counting(17) if frames is None else frames
    origin = Origin(Path("clip.mp4"), Path("out.mp4"), Fraction(rate))
    editor = kind.load(found, choice, SILENT)
    return editor.edit(frames, "make it snowy", references, denoising=Denoising(1, seed=5), origin=origin)


def taken(done: Edited) -> list[int]:
    return numbers(np.concatenate(list(done.frames)))


def test_runway(server: Services) -> None:
    """A clip that is shorter than two seconds is slowed down, and its last frame held; what was paid is said."""
    done = edit("runway")
    assert taken(done) == list(range(17))
    assert done.changes == (
        "given at 12 frames a second, not 24",
        "given with its last frame 7 times more, to 2.00 s",
        "cost 0.60 dollars, as charged",
    )
    assert done.dollars == pytest.approx(0.60)
    (task,) = server.begun
    assert (task["model"], task["videoUri"], task["promptText"], task["seed"]) == (
        *("aleph2", "runway://clip", "make it snowy", 5),
    )
    assert server.steps["begin"] == 1 and {f"Bearer {KEY}"} <= server.keys


def test_fal(server: Services) -> None:
    done = edit(PLAIN, editor_price=0.5)
    assert taken(done) == list(range(17))
    assert done.changes == ("cost 0.35 dollars, at list price",) and done.dollars == pytest.approx(0.5 * 17 / 24)
    (task,) = server.begun
    assert task["path"] == "/some/editor" and task["prompt"] == "make it snowy"
    assert task["video_url"] == f"{server.url}/files/1" and f"Key {KEY}" in server.keys
    assert edit(PLAIN).dollars is None


def test_kling_at_fal_takes_pictures_and_has_limits(server: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    model = KLING.removeprefix("fal:")
    own = fal.MODELS[model]
    monkeypatch.setitem(fal.MODELS, model, replace(own, limits=replace(own.limits, side=(128, 256))))
    picture = Image.new("RGB", (8, 8), "red")
    done = edit(KLING, counting(5, (96, 64)), 8, [picture, picture])
    assert taken(done) == list(range(5))
    assert done.changes[:3] == (
        "given at 192x128, not 96x64",
        "given at 24 frames a second, not 8",
        "given with its last frame 67 times more, to 3.00 s",
    )
    assert done.changes[-1] == "cost 1.01 dollars, at list price"
    (task,) = server.begun
    assert task["keep_audio"] is False and task["image_urls"] == [f"{server.url}/files/{n}" for n in (2, 3)]
    with pytest.raises(KiwiError, match=r"5 reference pictures, and .* takes 4"):
        fal.Fal(model, 10.0).submit("clip", "go", ["picture"] * 5, 0)


@BOTH
def test_a_busy_service_is_asked_again_and_paid_once(name: str, server: Services) -> None:
    server.faults = {"begin": [429, 429], "state": [429]}
    assert taken(edit(name)) == list(range(17)) and len(server.begun) == 1


@BOTH
def test_a_service_that_stays_busy(name: str, server: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiwi_cli.editors.remote.RETRIES", 1)
    monkeypatch.setattr("fal_client.client.MAX_ATTEMPTS", 1)
    server.faults = {"begin": [429, 429]}
    with pytest.raises(KiwiError, match=r"the service is busy \(429\)"):
        edit(name)
    assert not server.begun


@BOTH
def test_a_failing_service_is_not_asked_twice_for_what_it_may_have_taken(name: str, server: Services) -> None:
    server.faults = {"begin": [500]}
    with pytest.raises(KiwiError, match=r"answered 500: injected 500 \(whether it was charged is not known\)"):
        edit(name)
    assert server.steps["begin"] == 1
    server.faults = {"begin": [400]}
    with pytest.raises(KiwiError, match=r"answered 400: injected 400$"):
        edit(name)


@BOTH
def test_no_answer_is_an_error_in_time(name: str, server: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiwi_cli.editors.remote.REQUEST_TIMEOUT", 0.5)
    server.faults = {"begin": ["hang"]}
    with pytest.raises(KiwiError, match=r"no answer from .*whether it was charged is not known"):
        edit(name)
    assert server.steps["begin"] == 1


@BOTH
def test_a_key_that_is_refused(name: str, server: Services) -> None:
    server.faults = {"begin": [401]}
    with pytest.raises(KiwiError, match="refused the key") as error:
        edit(name)
    assert KEY not in error.value.message + error.value.hint


@BOTH
@pytest.mark.parametrize("end", ["failed", "refused", "cancelled"])
def test_how_a_task_may_end(name: str, end: str, server: Services) -> None:
    words = {"failed": "no such luck", "refused": "refused: ", "cancelled": "cancelled" if name == "runway" else "luck"}
    server.faults = {"begin": [end]}
    with pytest.raises(KiwiError, match=words[end]):
        edit(name)
    assert server.steps["download"] == 0


@BOTH
def test_a_task_that_never_ends_is_cancelled(name: str, server: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    late = 1e6  # seconds: its time is up as soon as it was looked at
    monkeypatch.setattr(remote, "monotonic", lambda: time.monotonic() + (late if server.steps["state"] else 0))
    server.faults = {"begin": ["never"]}
    with pytest.raises(KiwiError, match=r"was not done after .*, and was cancelled"):
        edit(name, editor_timeout=1000.0)
    assert server.cancelled == ["task-1"]


@BOTH
def test_an_interruption_cancels(name: str, server: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kiwi_cli.editors.remote.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edit(name)
    assert server.cancelled == ["task-1"]


@BOTH
def test_a_result_that_expired_is_asked_for_anew(name: str, server: Services) -> None:
    server.faults = {"download": [403]}
    assert taken(edit(name)) == list(range(17)) and server.steps["download"] == 2
    server.faults = {"download": [410, 404]}
    with pytest.raises(KiwiError, match="has expired"):
        edit(name)
    server.faults = {"download": [500]}
    with pytest.raises(KiwiError, match="cannot fetch the result: 500"):
        edit(name)


@BOTH
def test_a_result_that_is_no_clip_or_far_too_large(
    name: str, server: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.result = b"<html>not here</html>"
    with pytest.raises(KiwiError, match="gave no clip that can be read"):
        edit(name)
    monkeypatch.setattr("kiwi_cli.editors.remote.SPARE", 0)
    server.result = bytes(3 << 20)
    with pytest.raises(KiwiError, match="the result is larger than"):
        edit(name)


def test_addresses_of_files_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(KiwiError, match="not the address of a result"):
        remote.fetch("file:///etc/passwd", tmp_path / "x", 100)


@BOTH
def test_a_key_and_a_client_are_needed(name: str, server: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "RUNWAYML_API_SECRET" if name == "runway" else "FAL_KEY"
    monkeypatch.delenv(variable)
    with pytest.raises(UsageError, match=f"needs a key in {variable}"):
        edit(name)
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(UsageError, match=r"needs (runwayml|fal_client)") as error:
        edit(name)
    assert error.value.hint.startswith("pip install 'kiwi-cli[")


def test_names_that_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="not a model of fal: 'kling'"):
        fal.KIND.find(ModelChoice(editor="fal:kling"))
    with pytest.raises(UsageError, match="--editor runway takes no more words"):
        runway.KIND.find(ModelChoice(editor="runway:aleph"))


def test_what_a_clip_costs_before() -> None:
    def price(name: str, frames: int, rate: int, **more: Any) -> float | None:
        kind: Any = runway.KIND if name == "runway" else fal.KIND
        found = kind.find(ModelChoice(editor=name, **more))
        return found.price(frames, Fraction(rate))

    assert price("runway", 81, 24) == pytest.approx(0.28 * 81 / 24)
    assert price("runway", 5, 24) == pytest.approx(0.56)  # the least that is charged
    assert price("runway", 81, 24, editor_price=1.0) == pytest.approx(81 / 24)
    assert price(KLING, 5, 8) == pytest.approx(0.336 * 3)
    assert price(PLAIN, 81, 24) is None and price(PLAIN, 81, 27, editor_price=0.1) == pytest.approx(0.3)
    assert price("runway", 81, 1) == 0.0  # too long: refused
