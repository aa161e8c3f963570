"""Fingerprints of arrays, by which a resumed run verifies that its inputs have not changed."""

import hashlib

import numpy as np


def fingerprint(*items: np.ndarray | str | int) -> str:
    """Sixteen hexadecimal digits of a hash of a sequence of arrays, names and numbers."""
    digest = hashlib.sha256()
    for item in items:
        array = item if isinstance(item, np.ndarray) else np.frombuffer(repr(item).encode(), np.uint8)
        # The header separates the items: [0, 1] [2] is not [0] [1, 2].
        digest.update(f"{array.dtype}{array.shape}".encode())
        # Bytes are viewed, not copied: token arrays may be larger than memory.
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
