"""Moves clients' rows between processes.

The rows of a block of clients travel as bytes in one array: the process that has a client's rows fills its place and all
others leave zeros, so the sum over the processes is the bytes themselves. Every process receives every block and stores
what it will train; the memory of a block is bounded.
"""

from collections.abc import Sequence

import jax
import numpy as np

from devft_jax.runtime.processes import Processes
from devft_jax.storage.rows import Rows

MOST_BYTES = 2**26
"""Largest size of a block in bytes, if it has more than one client."""


def move_rows(
    processes: Processes,
    parts: Sequence[Rows],
    since: np.ndarray,
    positions: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
) -> None:
    """Move rows from one process to another; called by all processes with equal arguments but for their own rows.

    Args:
      processes: the processes.
      parts: where the rows are stored; changed.
      since: i32[N], a number that belongs to every client's rows; changed.
      positions: i64[K], the clients whose rows move.
      old: i64[K], for each the process that has its rows.
      new: i64[K], for each the process that gets them.
    """
    width = 4 + sum(1 + _bytes_of(rows) for rows in parts)
    block = max(1, MOST_BYTES // width)
    for first in range(0, len(positions), block):
        some = slice(first, first + block)
        # Blocks of few sizes, so that few programs are compiled.
        size = min(block, 1 << (len(positions[some]) - 1).bit_length())
        packed = np.zeros((size, width + -width % 4), np.uint8)
        mine = np.flatnonzero(old[some] == processes.index)
        if len(mine):
            packed[mine, :width] = _packed(parts, since, positions[some][mine])
        words = processes.sum_of_words(packed.view(np.uint32))
        got = np.flatnonzero(new[some] == processes.index)
        if len(got):
            _unpack(words.view(np.uint8)[got, :width], parts, since, positions[some][got])
        for rows in parts:
            rows.stored[positions[some][mine]] = False


def _bytes_of(rows: Rows) -> int:
    return rows.whole_bytes // len(rows.stored)


def _packed(parts: Sequence[Rows], since: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The rows of some clients as bytes u8[K, width]."""
    count = len(positions)
    columns = [since[positions].astype(np.int32).reshape(count, 1).view(np.uint8)]
    for rows in parts:
        columns.append(rows.stored[positions].reshape(count, 1).view(np.uint8))
        for leaf in jax.tree.leaves(rows.take(positions)):
            columns.append(np.ascontiguousarray(leaf).reshape(count, -1).view(np.uint8))
    return np.concatenate([column.reshape(count, -1) for column in columns], axis=1)


def _unpack(packed: np.ndarray, parts: Sequence[Rows], since: np.ndarray, positions: np.ndarray) -> None:
    """Store the rows of some clients from bytes u8[K, width]."""
    since[positions] = np.ascontiguousarray(packed[:, :4]).view(np.int32)[:, 0]
    start = 4
    for rows in parts:
        stored = np.flatnonzero(packed[:, start])
        start += 1
        leaves, structure = jax.tree.flatten(rows.row)
        found = []
        for leaf in leaves:
            size = int(np.prod(leaf.shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
            content = np.ascontiguousarray(packed[stored, start : start + size])
            found.append(content.view(np.dtype(leaf.dtype)).reshape(len(stored), *leaf.shape))
            start += size
        if len(stored):
            rows.put(positions[stored], jax.tree.unflatten(structure, found))
