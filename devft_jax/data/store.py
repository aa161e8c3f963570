"""Token examples as a folder of raw arrays, written in pieces and memory-mapped.

A store has one file per array of `Examples` (little-endian, only the values) and `store.json` with every file's length and
checksum. It is written under another name and renamed when complete, so that an incomplete store is never used and two
processes that write the same one do no harm: the second finds the first's. The incomplete store of a killed process is
removed by a later writer, after a day. What is read are pages of the files, which the system can drop when memory is short,
so a data set may be larger than memory.
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

# Names of stores that are being written, and the seconds without a write after which they count as abandoned.
_PREFIX, _SUFFIX, _ABANDONED = "devft-", ".tmp", 24 * 3600

# Bytes read at once when a whole file is checked.
_PIECE = 1 << 24


class StoreWriter:
    """Appends to the arrays of a new store; `publish` makes it the store at `path`.

    Args:
      path: where the store will be; None for one that is deleted when its arrays are released.
      dtypes: dtype of each array by name.

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
        """Close the files, and remove the folder if it was not published."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, **parts: np.ndarray) -> None:
        """Append values to arrays; raises OSError if they cannot be written.

        Args:
          **parts: new values by name of the array.
        """
        for name, part in parts.items():
            content = np.ascontiguousarray(part, self._dtypes[name]).tobytes()
            self._files[name].write(content)
            self._checksums[name] = zlib.crc32(content, self._checksums[name])

    def publish(self, note: Any) -> tuple[dict[str, np.ndarray], Any]:
        """Finish the store and map it; raises OSError if it cannot be written.

        Args:
          note: any JSON value, stored with it.
        """
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        sizes = {name: (self._folder / name).stat().st_size for name in self._dtypes}
        index = {"bytes": sizes, "crc32": self._checksums, "note": note, "note_crc32": _note_checksum(note)}
        (self._folder / _INDEX).write_text(json.dumps(index))
        if self.path is None:
            # On POSIX systems a mapping stays valid after the file's name is removed.
            return _map(self._folder, self._dtypes), note
        if found := read_store(self.path, self._dtypes):
            return found
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self._folder.rename(self.path)
        except OSError:
            # Another process may have published the same store in the meantime; nothing else is accepted.
            if found := read_store(self.path, self._dtypes):
                return found
            raise
        return _map(self.path, self._dtypes), note


def read_store(path: Path, dtypes: Mapping[str, np.dtype]) -> tuple[dict[str, np.ndarray], Any] | None:
    """The arrays, read-only and memory-mapped, and the note of a complete and intact store; None for any other.

    Args:
      path: path of the store.
      dtypes: dtype of each array by name.
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
    """Remove incomplete stores of killed processes."""
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
