"""The implementation for leaves in host memory: numpy in, numpy out, on a few threads (numpy releases Python's lock)."""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

from devft_jax.developmental.leaves import is_concrete
from devft_jax.developmental.streaming.blocks import Blocks, Index

# OpenBLAS, numpy's on most platforms, runs `a @ a.T` of L rows, k columns on the calling thread up to (L + 1) L k of this.
_OWN_THREAD = 2**18
_SHORTEST_PIECE = 64
_THREADS = min(16, os.cpu_count() or 1)


def as_numpy(leaf: Any) -> np.ndarray | None:
    """The leaf as a numpy array without a copy, if it is one array in host memory, else None.

    Args:
      leaf: a leaf of a tree of weights.
    """
    if isinstance(leaf, np.ndarray):
        return np.asarray(leaf)
    if not isinstance(leaf, jax.Array) or not is_concrete(leaf) or len(leaf.devices()) > 1:
        return None
    (device,) = leaf.devices()
    return np.asarray(leaf) if device.platform == "cpu" else None


def returned(out: np.ndarray, leaf: Any) -> Any:
    """A result as the same kind of array as the leaf, on its device, without a copy.

    Args:
      out: the result, computed here.
      leaf: the leaf from which it was computed.
    """
    if isinstance(leaf, np.ndarray):
        return out
    return jax.device_put(out, leaf.sharding if leaf.committed else None)


def _cut(leaf: np.ndarray) -> tuple[np.ndarray, Blocks]:
    leaf = leaf[:, None] if leaf.ndim == 1 else leaf
    return leaf, Blocks.of(leaf.shape)


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`np.empty` at an address that XLA can take over without a copy."""
    size, alignment = math.prod(shape) * np.dtype(dtype).itemsize, 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def _on_threads(work: Callable[[Any], Any], items: Any) -> Iterator[Any]:
    """`map`, in order, on all threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, items)


def gram(leaf: np.ndarray) -> np.ndarray:
    """Inner products of the layers, f64[L, L].

    Args:
      leaf: `[L, ...]`.
    """
    leaf, _ = _cut(leaf)
    blocks = Blocks.of(leaf.shape, at_once=_THREADS)
    # Buffers are reused: fresh pages for every block would take longer than filling them.
    size = leaf.size // max(blocks.length, 1) * blocks.size
    buffers: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(_THREADS):
        buffers.put(np.empty(size, np.float32))

    def part(index: Index) -> np.ndarray:
        block, buffer = leaf[:, *index], buffers.get()
        try:
            flat = buffer[: block.size].reshape(block.shape[0], -1)
            np.copyto(flat.reshape(block.shape), block, casting="same_kind")
            return _product_in_pieces(flat)
        finally:
            buffers.put(buffer)

    return sum(_on_threads(part, blocks.indices()), np.zeros((leaf.shape[0],) * 2))


def _product_in_pieces(rows: np.ndarray) -> np.ndarray:
    """`rows @ rows.T` of a few long rows, in products too small for a BLAS to use its own threads.

    A BLAS has one set of threads per process: products from several threads would wait for each other.
    """
    count, columns = rows.shape
    size = max(_SHORTEST_PIECE, 2 ** int(math.log2(max(1, _OWN_THREAD / (count * (count + 1))))))
    whole = columns // size * size
    pieces = rows[:, :whole].reshape(count, -1, size).transpose(1, 0, 2)
    rest = rows[:, whole:]
    return np.matmul(pieces, pieces.transpose(0, 2, 1)).sum(axis=0) + rest @ rest.T


def _weighted_sum(weights: np.ndarray, leaf: np.ndarray, index: Index) -> np.ndarray:
    members = np.flatnonzero(weights)
    total = np.zeros(leaf[0][index].shape, np.float32)
    for layer in members:
        total += weights[layer] * leaf[layer][index].astype(np.float32)
    return total


def combine(matrix: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    """`matrix` times the leaf, `[G, ...]` in the leaf's dtype; sums are float32.

    Args:
      matrix: f32[G, L].
      leaf: `[L, ...]`.
    """
    shape = (matrix.shape[0], *leaf.shape[1:])
    leaf, blocks = _cut(leaf)
    out = _empty((matrix.shape[0], *leaf.shape[1:]), leaf.dtype)

    def fill(index: Index) -> None:
        for group, weights in enumerate(matrix):
            out[group][index] = _weighted_sum(weights, leaf, index)

    list(_on_threads(fill, blocks.indices()))
    return out.reshape(shape)


def replace(source: np.ndarray, trained: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Layer l of the result is `trained[source[l]]`, or `full[l]` if `source[l]` is -1.

    Args:
      source: i32[L].
      trained: `[G, ...]`.
      full: `[L, ...]`.
    """
    out = _empty(full.shape, full.dtype)

    def fill(layer: int) -> None:
        group = source[layer]
        out[layer] = full[layer] if group < 0 else trained[group]

    list(_on_threads(fill, range(len(full))))
    return out


def shift(matrix: np.ndarray, source: np.ndarray, trained: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Layer l of the result is `full[l] + (trained - matrix @ full)[source[l]]`, or `full[l]` at -1.

    Args:
      matrix: f32[G, L].
      source: i32[L].
      trained: `[G, ...]`.
      full: `[L, ...]`.
    """
    shape = full.shape
    trained, _ = _cut(trained)
    full, blocks = _cut(full)
    out = _empty(full.shape, full.dtype)

    def fill(index: Index) -> None:
        out[:, *index] = full[:, *index]
        for group in np.unique(source[source >= 0]):
            change = trained[group][index].astype(np.float32)
            change -= _weighted_sum(matrix[group], full, index)
            for layer in np.flatnonzero(source == group):
                out[layer][index] = full[layer][index].astype(np.float32) + change

    list(_on_threads(fill, blocks.indices()))
    return out.reshape(shape)
