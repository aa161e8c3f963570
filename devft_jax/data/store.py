"""Token examples as a folder of raw arrays, written in pieces and mapped into memory.

A store holds one file per array of `Examples` (little-endian, nothing but the values) and
`store.json` with every file's length and checksum. It is filled under another name and renamed when
whole, so that a half-written one never counts and two processes that fill the same one do no harm:
the second finds the first's. What a killed process left half-written is removed by a later
writer, a day on. What is read from it are pages of the files, which the system drops
again under pressure, so a data set may be larger than memory.
"""

import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from devft_jax.files import parse_json

_INDEX = "store.json"

# Names of stores that are being written, and the seconds without a write after which nobody writes one any more.
_PREFIX, _SUFFIX, _ABANDONED = "devft-", ".tmp", 24 * 3600

# Bytes read at once where a whole file is checked.
_PIECE = 1 << 24


class StoreWriter:
    """Appends to the arrays of a new store; `publish` makes it the one at `path`.

    Args:
      path: where the store will be; None for one that vanishes when its arrays are let go.
      dtypes: of each array by name.

    Leaving the context without `publish` removes what was written.
    """

    def __init__(self, path: Path | None, dtypes: Mapping[str, np.dtype]):
        self.path = path
        self._dtypes = dtypes
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path.parent)
        self._folder = Path(tempfile.mkdtemp(dir=path and path.parent, prefix=_PREFIX, suffix=_SUFFIX))
        self._files: dict[str, BinaryIO] = {name: (self._folder / name).open("wb") for name in dtypes}
        self._checksums = dict.fromkeys(dtypes, 0)

    def __enter__(self) -> "StoreWriter":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files and remove the folder where it was not published."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, **parts: np.ndarray) -> None:
        """Add values to the ends of the arrays named; OSError if they cannot be written.

        Args:
          **parts: new values by array.
        """
        for name, part in parts.items():
            content = np.ascontiguousarray(part, self._dtypes[name]).tobytes()
            self._files[name].write(content)
            self._checksums[name] = zlib.crc32(content, self._checksums[name])

    def publish(self, note: Any) -> tuple[dict[str, np.ndarray], Any]:
        """Finish the store and map it; `note` is any JSON value kept with it. OSError if it cannot be written.

        Args:
          note: any JSON value, kept with the store.
        """
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        sizes = {name: (self._folder / name).stat().st_size for name in self._dtypes}
        index = {"bytes": sizes, "crc32": self._checksums, "note": note, "note_crc32": _note_checksum(note)}
        (self._folder / _INDEX).write_text(json.dumps(index))
        if self.path is None:
            # On POSIX systems a mapping outlives the name of its file.
            return _map(self._folder, self._dtypes), note
        if found := read_store(self.path, self._dtypes):
            return found
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self._folder.rename(self.path)
        except OSError:
            # Another process may have published the same store in the meantime; anything else is not taken for one.
            if found := read_store(self.path, self._dtypes):
                return found
            raise
        return _map(self.path, self._dtypes), note


def read_store(path: Path, dtypes: Mapping[str, np.dtype]) -> tuple[dict[str, np.ndarray], Any] | None:
    """The arrays, read-only and mapped, and the note of a whole and undamaged store; None for any other.

    Args:
      path: of the store.
      dtypes: of each array by name.
    """
    try:
        index = parse_json((path / _INDEX).read_bytes(), _INDEX)
        sound = index["note_crc32"] == _note_checksum(index["note"]) and all(
            (path / name).stat().st_size == index["bytes"][name] and _checksum(path / name) == index["crc32"][name]
            for name in dtypes
        )
        return (_map(path, dtypes), index["note"]) if sound else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for store in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):  # another process removes or publishes it
            if time.time() - max(path.stat().st_mtime for path in (store, *store.iterdir())) > _ABANDONED:
                shutil.rmtree(store, ignore_errors=True)


def _note_checksum(note: Any) -> int:
    return zlib.crc32(json.dumps(note, sort_keys=True).encode())


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found


def _map(folder: Path, dtypes: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
    return {
        # An empty file cannot be mapped.
        name: np.asarray(np.memmap(folder / name, dtype, "r")) if (folder / name).stat().st_size else np.zeros(0, dtype)
        for name, dtype in dtypes.items()
    }
