"""The index of near rows against looking at every pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kiwi_cli.data.reference.duplicates import Nearby, nearest_kept


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def at_cosine(vector: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """A vector at exactly that cosine to another."""
    other = rng.standard_normal(vector.size)
    other = unit(other - (other @ vector) * vector)
    return (cosine * vector + (1 - cosine**2) ** 0.5 * other).astype(np.float32)


def test_near_ones_are_found_and_memory_is_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((400, 128)))
    with Nearby(tmp_path / "index") as index:
        for number, vector in enumerate(vectors):
            index.add(str(number), vector)
        for cosine, least in ((1.0, 400), (0.99, 400), (0.95, 390)):
            found = [index.nearest(at_cosine(vector, cosine, rng)) for vector in vectors]
            right = sum(near is not None and near[0] == str(number) for number, near in enumerate(found))
            assert right >= least, cosine
            assert all(
                near is None or near[0] != str(n) or abs(near[1] - cosine) < 1e-4 for n, near in enumerate(found)
            )
    assert not (tmp_path / "index").exists()


def test_the_first_of_several_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    first = unit(rng.standard_normal(64))
    rows = [("a", first), ("b", at_cosine(first, 0.97, rng)), ("c", first), ("d", unit(rng.standard_normal(64)))]
    found = {name: (nearest, near) for name, nearest, near in nearest_kept(rows, 0.95, tmp_path / "index")}
    assert found["b"][0] == found["c"][0] == "a" and found["c"][1] == 1.0 and found["d"][1] < 0.95
    loose = {name: near for name, _, near in nearest_kept(rows, 1.0, tmp_path / "index")}
    assert loose["c"] == 1.0 and list(tmp_path.iterdir()) == []
