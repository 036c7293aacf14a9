"""Which rows are near earlier ones: features on disk, found by hashes, memory flat whatever their number.

A vector has 24 hashes of 16 bits, each the signs of its products with 16 random directions. Two vectors are compared
when one hash is the same, so of pairs with a cosine of 0.95 some 99 of 100 are found, of 0.99 all but a few in
a million (tests/reference/test_duplicates.py); equal ones always are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

BANDS, BITS = 24, 16
CACHE = 64  # MiB of the index in memory


class Nearby:
    """An index of vectors of length 1, in a file that is deleted at the end.

    Args:
        path: of the index; what is there is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=OFF")  # a run that ends begins it anew
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(f"PRAGMA cache_size=-{CACHE * 1024}")
        self._db.execute("CREATE TABLE vectors (number INTEGER PRIMARY KEY, name TEXT, vector BLOB)")
        self._db.execute(
            "CREATE TABLE hashes (band INTEGER, hash INTEGER, number INTEGER, PRIMARY KEY (band, hash, number)) "
            "WITHOUT ROWID"
        )
        self._db.execute("BEGIN")
        self._directions: np.ndarray | None = None

    def __enter__(self) -> Nearby:
        return self

    def __exit__(self, *error: object) -> None:
        self._db.close()
        self.path.unlink(missing_ok=True)

    def _hashes(self, vector: np.ndarray) -> list[int]:
        if self._directions is None:
            rng = np.random.default_rng(0)
            self._directions = rng.standard_normal((BANDS * BITS, vector.size)).astype(np.float32)
        signs = (self._directions @ vector > 0).reshape(BANDS, BITS)
        return [int(value) for value in signs @ (1 << np.arange(BITS))]

    def nearest(self, vector: np.ndarray) -> tuple[str, float] | None:
        """The name of the nearest vector among those that share a hash, and its cosine; None when none does."""
        wanted = " OR ".join("(band = ? AND hash = ?)" for _ in range(BANDS))
        places = [value for pair in enumerate(self._hashes(vector)) for value in pair]
        found = self._db.execute(
            f"SELECT name, vector FROM vectors WHERE number IN (SELECT number FROM hashes WHERE {wanted})",
            places,
        )
        best: tuple[str, float] | None = None
        for name, blob in found:
            near = float(np.frombuffer(blob, np.float32) @ vector)
            if best is None or (near, best[0]) > (best[1], name):
                best = (name, near)
        return best

    def add(self, name: str, vector: np.ndarray) -> None:
        """Put a vector in."""
        number = self._db.execute(
            "INSERT INTO vectors (name, vector) VALUES (?, ?)", (name, vector.astype(np.float32).tobytes())
        ).lastrowid
        self._db.executemany(
            "INSERT INTO hashes VALUES (?, ?, ?)",
            [(band, value, number) for band, value in enumerate(self._hashes(vector))],
        )


def nearest_kept(
    vectors: Iterable[tuple[str, np.ndarray]], most: float, path: Path
) -> Iterator[tuple[str, str, float]]:
    """For each vector in order the nearest earlier one that was kept: (name, its name or '', cosine from 0).

    One is kept when that cosine is at most `most`: the first of several that are alike stays.

    Args:
        path: of the index while this goes on.
    """
    with Nearby(path) as index:
        for name, vector in vectors:
            nearest, near = index.nearest(vector) or ("", 0.0)
            near = round(min(1.0, near), 6)
            if near <= most or not nearest:
                index.add(name, vector)
            yield name, nearest, near
