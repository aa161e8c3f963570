"""Rows of a population: what clients keep between rounds. Only rows that were written use memory or disk.

A row is a pytree of small arrays. `Rows` holds those of N clients, in memory or, if all of them together could need more
than `in_memory` bytes, in a temporary file without a name, which is deleted when the process ends. `save_rows` writes the
stored rows to one safetensors file, a block of clients at a time:

  name>.positions    i32[M]       the clients that have a row, ascending
  name>.<path>       [M, ...]     their rows, one array per leaf
"""

import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from devft_jax.errors import RunError
from devft_jax.files import exclusive_temporary
from devft_jax.typing import PyTree

MOST_IN_MEMORY = 2**27
# Number of clients whose rows are moved at once.
BLOCK = 256
# Safetensors' names of dtypes.
_CODES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
}
_NAMES = {code: name for name, code in _CODES.items()}


class _Memory:
    """One leaf of all clients, in memory; only pages that are written use memory, although a page may hold many rows."""

    def __init__(self, clients: int, shape: tuple[int, ...], dtype: np.dtype):
        self._array = np.zeros((clients, *shape), dtype)

    def read(self, positions: np.ndarray) -> np.ndarray:
        return self._array[positions]

    def write(self, positions: np.ndarray, rows: np.ndarray) -> None:
        self._array[positions] = rows

    @property
    def disk_bytes(self) -> int:
        return 0


class _Disk:
    """One leaf of all clients, in a sparse file; not memory-mapped, because mapped pages would count as memory."""

    def __init__(self, clients: int, shape: tuple[int, ...], dtype: np.dtype, folder: Path | None):
        self._shape, self._dtype, self._folder = shape, dtype, folder
        self._bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def read(self, positions: np.ndarray) -> np.ndarray:
        rows = np.empty((len(positions), self._bytes), np.uint8)
        for row, position in zip(rows, positions.tolist(), strict=True):
            os.preadv(self._file.fileno(), [row.data], position * self._bytes)
        return rows.view(self._dtype).reshape(len(positions), *self._shape)

    def write(self, positions: np.ndarray, rows: np.ndarray) -> None:
        # Without a row, the number of elements cannot be inferred.
        elements = self._bytes // self._dtype.itemsize
        flat = np.ascontiguousarray(rows, self._dtype).reshape(len(positions), elements).view(np.uint8)
        try:
            for row, position in zip(flat, positions.tolist(), strict=True):
                written = 0
                while written < self._bytes:
                    written += os.pwrite(self._file.fileno(), row[written:].data, position * self._bytes + written)
        except OSError as error:
            where = "the system's temporary folder" if self._folder is None else str(self._folder)
            raise RunError(
                f"the clients' rows could not be stored in {where} ({error.strerror}); free space there and run again."
            ) from error

    @property
    def disk_bytes(self) -> int:
        # The unit of `st_blocks` is 512 bytes, whatever the file system's blocks are.
        return 512 * os.fstat(self._file.fileno()).st_blocks


class Rows:
    """The rows of N clients, of which some may have none.

    Args:
      row: shapes and dtypes of one row; may be a tree without leaves.
      clients: N.
      in_memory: largest size in bytes of N rows that are held in memory; larger rows are held in a file.
      folder: folder of that file; None for the system's temporary folder.

    Attributes:
      row: as given.
      stored: bool[N], which rows were written.
      whole_bytes: size of all N rows, written or not.
    """

    def __init__(self, row: PyTree, clients: int, *, in_memory: int = MOST_IN_MEMORY, folder: Path | None = None):
        self.row = row
        self.stored = np.zeros(clients, bool)
        leaves, self._structure = jax.tree.flatten(row)
        each = sum(int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
        self.whole_bytes = clients * each
        self._leaves: list[_Memory | _Disk] = [
            _Memory(clients, leaf.shape, np.dtype(leaf.dtype))
            # A leaf without elements cannot be read from a file.
            if self.whole_bytes <= in_memory or not np.prod(leaf.shape)
            else _Disk(clients, leaf.shape, np.dtype(leaf.dtype), folder)
            for leaf in leaves
        ]

    def take(self, positions: np.ndarray) -> PyTree:
        """Rows [K, ...] of the clients at `positions` i64[K]; zeros for a client without a row."""
        return jax.tree.unflatten(self._structure, [leaf.read(positions) for leaf in self._leaves])

    def put(self, positions: np.ndarray, rows: PyTree) -> None:
        """Write rows [K, ...] of the clients at `positions` i64[K]; all other rows are unchanged."""
        for leaf, new in zip(self._leaves, jax.tree.leaves(rows), strict=True):
            leaf.write(positions, np.asarray(new))
        if self._leaves:
            self.stored[positions] = True

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk that the written rows take up to now, in whole blocks of the file system; 0 for rows in memory."""
        return sum(leaf.disk_bytes for leaf in self._leaves)


def blocks(positions: np.ndarray) -> Iterator[np.ndarray]:
    """The positions in blocks."""
    for first in range(0, len(positions), BLOCK):
        yield positions[first : first + BLOCK]


def _leaf_names(row: PyTree) -> list[str]:
    """A name for every leaf, in the tree's order."""
    return ["".join(str(key) for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(row)[0]]


def save_rows(path: Path, parts: Mapping[str, Rows]) -> None:
    """Write rows to one file, which replaces an older one.

    Args:
      path: the file.
      parts: rows by the name under which they are saved.

    Raises:
      OSError: the file cannot be written.
    """
    header: dict[str, dict[str, Any]] = {}
    start = 0

    def add(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        nonlocal start
        end = start + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
        start = end

    held = {name: np.flatnonzero(rows.stored) for name, rows in parts.items()}
    for name, rows in parts.items():
        add(f"{name}.positions", held[name].shape, np.dtype(np.int32))
        for leaf, of_leaf in zip(_leaf_names(rows.row), jax.tree.leaves(rows.row), strict=True):
            add(f"{name}.{leaf}", (len(held[name]), *of_leaf.shape), np.dtype(of_leaf.dtype))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_temporary(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, rows in parts.items():
            file.write(held[name].astype(np.int32).tobytes())
            for index in range(len(jax.tree.leaves(rows.row))):
                for some in blocks(held[name]):
                    file.write(np.ascontiguousarray(rows._leaves[index].read(some)).tobytes())
        file.flush()
        os.fsync(file.fileno())


class SavedRows:
    """Reads a file of `save_rows`, a block at a time. All methods raise OSError, ValueError or KeyError if it is damaged.

    Args:
      path: the file.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        size = struct.unpack("<Q", self._file.read(8))[0]
        self._start = 8 + size
        self._header = json.loads(self._file.read(size))
        end = self._start + max((entry["data_offsets"][1] for entry in self._header.values()), default=0)
        if path.stat().st_size < end:
            raise ValueError(f"{path} is cut off.")

    def _read(self, name: str, first: int, count: int) -> np.ndarray:
        entry = self._header[name]
        dtype = np.dtype(_NAMES[entry["dtype"]])
        shape = entry["shape"][1:]
        each = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        content = os.pread(self._file.fileno(), count * each, self._start + entry["data_offsets"][0] + first * each)
        return np.frombuffer(content, dtype).reshape(count, *shape)

    def positions(self, name: str) -> np.ndarray:
        """The clients i32[M] whose rows were saved under this name, ascending."""
        return self._read(f"{name}.positions", 0, self._header[f"{name}.positions"]["shape"][0])

    def restore(self, name: str, rows: Rows, wanted: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        """Write what was saved under this name into `rows`, of the same shapes.

        Args:
          name: the name.
          rows: changed.
          wanted: clients i32[M] -> bool[M], which of them are read; None for all.
        """
        positions = self.positions(name)
        leaves = _leaf_names(rows.row)
        for first in range(0, len(positions), BLOCK):
            some = positions[first : first + BLOCK]
            chosen = np.arange(len(some)) if wanted is None else np.flatnonzero(wanted(some))
            if len(chosen):
                parts = [self._read(f"{name}.{leaf}", first, len(some))[chosen] for leaf in leaves]
                rows.put(some[chosen], jax.tree.unflatten(jax.tree.structure(rows.row), parts))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
