"""Photographs of installed packages: found without importing them, moved over by a camera, never in held-out scenes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kiwi_cli.errors import UsageError
from kiwi_cli.synth import photographs
from kiwi_cli.synth.natural import PHOTOGRAPHED, natural_scene

RED = np.full((90, 120, 3), (220, 20, 30), np.uint8)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that must not be imported, with one photograph."""
    folder = tmp_path / "holiday_pictures"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    Image.fromarray(RED).save(folder / "data/beach.png")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder.name


def test_a_photograph_is_found_where_its_package_lies_without_importing_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = photographs.Photograph(package, "data/beach.png", "somebody, CC0")
    known = (there, photographs.Photograph(package, "data/gone.png", ""), photographs.Photograph("no_such", "a", ""))
    monkeypatch.setattr(photographs, "KNOWN", known)
    (found,) = photographs.installed()
    assert package not in sys.modules
    assert np.array_equal(photographs.read(found), RED)
    monkeypatch.setattr(photographs, "KNOWN", known[1:])
    with pytest.raises(UsageError, match="no package with photographs"):
        photographs.installed()


def test_every_known_photograph_says_whose_it_is_and_on_what_terms() -> None:
    terms = ("CC0", "CC BY 2.0", "public domain")
    assert all(photograph.credit.split(", ")[1] in terms for photograph in photographs.KNOWN)


def test_parts_of_a_photograph_are_within_it_and_of_the_size_that_was_asked() -> None:
    slope = np.tile(np.linspace(0, 255, 200, dtype=np.uint8)[None, :, None], (150, 1, 3))
    rng = np.random.default_rng(0)
    parts = [photographs.part(rng, [slope], 48, 32) for _ in range(60)]
    assert all(part.shape == (32, 48, 3) and part.dtype == np.float32 for part in parts)
    assert all(part.min() >= 0 and part.max() <= 1 for part in parts)
    rises = [float(part[0, -1, 0] - part[0, 0, 0]) for part in parts]
    assert any(rise > 0.1 for rise in rises) and any(rise < -0.1 for rise in rises)  # as it is, and mirrored
    spans = [abs(rise) for rise in rises]
    assert min(spans) < 0.5 * max(spans) and max(spans) <= 1.0


def test_training_scenes_are_of_photographs_now_and_then_and_held_out_ones_never() -> None:
    seeds = range(60)

    def reddish(held_out: bool) -> list[bool]:
        scenes = [natural_scene(seed, 32, 32, 5, held_out, [RED]) for seed in seeds]
        return [bool((scene.picture[..., 0] > 2 * scene.picture[..., 1:].max(-1)).all()) for scene in scenes]

    share = sum(reddish(False)) / len(seeds)
    assert abs(share - PHOTOGRAPHED) < 0.15
    assert not any(reddish(True))
    bare, given = (natural_scene(3, 32, 32, 5, True, photos) for photos in ((), [RED]))
    assert np.array_equal(bare.picture, given.picture)
