"""Short hashes that stand for what tensors were made from. Light: no torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def digest(*parts: Any) -> str:
    """A short hash of plain values, 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=list)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def content_key(*arrays: Any) -> str:
    """A short hash of arrays' shapes and bytes."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        whole = np.ascontiguousarray(array)
        found.update(f"{whole.shape}{whole.dtype}".encode())
        found.update(whole.data)
    return found.hexdigest()
