"""Linear algebra on the layer axis, a block of columns at a time.

A leaf `[L, ...]` stacks one weight of all L layers. Seen as a matrix it has L rows and, at 7B, tens of
millions of columns; Eq. 1 needs its Gram matrix and Eq. 5 its product with a `[G, L]` matrix, both in
float32 although the weights are stored in 16 or 4 bits. A float32 copy of one such leaf is gigabytes, so
every function here walks over the columns in blocks whose float32 scratch is a few megabytes and never
more than about one float32 layer of that leaf.

There are two routes behind each function, chosen by where the leaf is:

* In host memory (numpy, memory-mapped files included, and jax arrays on a CPU device) numpy works on it
  with a few threads, without a copy of the leaf. What comes out is numpy or jax as what went in.
* Anything else, tracers included, goes through a `lax` loop over `dynamic_slice`. It jits, differentiates
  and lowers for every platform, no huge leaf is ever reshaped (a reshape may copy it), and all indices
  count along one axis, so they fit 32 bits at any model size.

A weight with a `dequantize(dtype)` method is one opaque leaf. It has to be a pytree whose arrays all
lead with L (a `lax.scan` over layers asks the same). Where its arrays also agree on their second axis
(quantised in blocks along the first weight axis) it is dequantised block by block, otherwise whole.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

Index = tuple[slice, ...]

_SMALLEST_BLOCK = 2**16
_LARGEST_BLOCK = 2**21
# OpenBLAS, numpy's on most platforms, leaves `a @ a.T` of L rows, k columns to the calling thread up to (L + 1) L k of this.
_OWN_THREAD = 2**18
_SHORTEST_PIECE = 64
_THREADS = min(16, os.cpu_count() or 1)


def is_opaque(leaf: Any) -> bool:
    """True for a weight that can `dequantize`: one leaf, whatever arrays it is made of."""
    return hasattr(leaf, "dequantize")


def is_concrete(array: Any) -> bool:
    """True for an array whose values can be looked at, False for a tracer."""
    return not isinstance(array, Tracer)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their `jax.tree_util.keystr` paths, an opaque weight counting as one."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_opaque)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in flat]


def map_leaves(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` that hands over an opaque weight whole."""
    return jax.tree.map(function, tree, *rest, is_leaf=is_opaque)


def weight_shape(leaf: Any) -> tuple[int, ...]:
    """Shape of a leaf as a float array, `()` for what has no shape at all."""
    if is_opaque(leaf):
        return jax.eval_shape(lambda w: w.dequantize(jnp.float32), leaf).shape
    return getattr(leaf, "shape", ())


def count_layers(tree: Any, *, expected: int | None = None) -> int:
    """L, after checking that every leaf is a float array that leads with it.

    `expected` is the L that something else (a layer map) asks for; without it the first leaf decides.
    Raises ValueError naming the first leaf that does not fit.
    """
    leaves = named_leaves(tree)
    if not leaves:
        raise ValueError("The tree has no leaves: give a pytree of arrays that lead with the layers.")
    source = "the layer map" if expected is not None else f"leaf {leaves[0][0] or 'root'}"
    for path, leaf in leaves:
        shape = weight_shape(leaf)
        if not shape:
            raise ValueError(
                f"Leaf {path or 'root'} has shape () and so no layer axis: stack one value per layer on axis 0."
            )
        expected = shape[0] if expected is None else expected
        if shape[0] != expected:
            raise ValueError(
                f"Leaf {path or 'root'} has shape {shape}, but axis 0 must hold the {expected} layers "
                f"of {source}: stack the per-layer weights of all leaves on axis 0."
            )
        if not is_opaque(leaf) and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"Leaf {path or 'root'} has dtype {leaf.dtype}, which cannot be fused or compared: "
                "give float weights, or a weight with a dequantize(dtype) method."
            )
    assert expected is not None
    return expected


def gram(leaf: Any) -> jax.Array:
    """Inner products of the layers of one leaf `[L, ...]`: f32[L, L], exactly symmetric."""
    if isinstance(leaf, np.ndarray):
        return jnp.asarray(_host_gram(np.asarray(leaf)), jnp.float32)
    return _device_gram(leaf)


def combine(matrix: Any, leaf: Any) -> Any:
    """`matrix` f32[G, L] times a leaf `[L, ...]`: `[G, ...]` in the leaf's dtype (f32 if opaque)."""
    view = _host_view(leaf)
    if view is not None and is_concrete(matrix):
        return _returned(_host_combine(np.asarray(matrix), view), leaf)
    return _device_combine(matrix, leaf)


def take(rows: np.ndarray, leaf: Any) -> Any:
    """Layers `rows` i32[G] of a leaf, as they are stored: nothing is rounded or dequantised."""
    if isinstance(leaf, np.ndarray):
        return leaf[rows]
    return jax.tree.map(lambda array: jnp.take(array, rows, axis=0), leaf)


def replace(source: Any, trained: Any, full: Any) -> Any:
    """Layer l of the result is `trained[source[l]]`, or `full[l]` where `source[l]` is -1.

    `source` i32[L], `trained` `[G, ...]`, `full` `[L, ...]`; the result has the dtype of `full`.
    """
    trained, full = _as_floats(trained), _as_floats(full)
    new, old = _host_view(trained), _host_view(full)
    if new is not None and old is not None and is_concrete(source):
        return _returned(_host_replace(np.asarray(source), new, old), full)
    return _device_replace(source, trained, full)


def shift(matrix: Any, source: Any, trained: Any, full: Any) -> Any:
    """Layer l of the result is `full[l] + (trained - matrix @ full)[source[l]]`, or `full[l]` at -1.

    `matrix` f32[G, L], the rest as in `replace`. The sum is taken in float32.
    """
    trained, full = _as_floats(trained), _as_floats(full)
    new, old = _host_view(trained), _host_view(full)
    if new is not None and old is not None and is_concrete(source) and is_concrete(matrix):
        return _returned(_host_shift(np.asarray(matrix), np.asarray(source), new, old), full)
    return _device_shift(matrix, source, trained, full)


def _host_view(leaf: Any) -> np.ndarray | None:
    """The leaf as a numpy array without a copy, if it is one array in host memory."""
    if isinstance(leaf, np.ndarray):
        return np.asarray(leaf)
    if not isinstance(leaf, jax.Array) or not is_concrete(leaf) or len(leaf.devices()) > 1:
        return None
    (device,) = leaf.devices()
    return np.asarray(leaf) if device.platform == "cpu" else None


def _returned(out: np.ndarray, leaf: Any) -> Any:
    """A result as the kind of array that the leaf is, on its device, without a copy."""
    if isinstance(leaf, np.ndarray):
        return out
    return jax.device_put(out, leaf.sharding if leaf.committed else None)


def _as_floats(leaf: Any) -> Any:
    return leaf.dequantize(jnp.float32) if is_opaque(leaf) else leaf


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a leaf is cut: `size` entries at a time of the `length` entries along `axis`."""

    axis: int
    length: int
    size: int

    @classmethod
    def of(cls, shape: tuple[int, ...], length: int | None = None, *, at_once: int = 1) -> Self:
        """Blocks of a weight of `shape` `[L, ...]`, all L layers in each.

        A block holds at most a quarter of a layer's worth of elements, so that the block, its transpose and a product
        of its size stay within one float32 layer, and between 0.25 and 8 MiB in float32: smaller ones would cost more
        calls than arithmetic, larger ones would leave the caches. `at_once` blocks in memory together share that bound.
        The cut is along the first axis that is long enough, which keeps the reads contiguous. `length` tells that axis
        1 can only be cut into that many equal pieces.
        """
        layers, columns = shape[0], math.prod(shape[1:])
        elements = min(max(columns // 4, _SMALLEST_BLOCK), _LARGEST_BLOCK) // at_once
        wanted = max(1, min(columns, elements // max(layers, 1)))
        pieces = math.ceil(columns / wanted)
        long_enough = (axis for axis in range(1, len(shape)) if shape[axis] >= pieces)
        axis = next(long_enough, 1 + int(np.argmax(shape[1:])))
        if length is not None:
            axis = 1
        length = shape[axis] if length is None else length
        return cls(axis, length, max(1, min(length, wanted * length // max(columns, 1))))

    def indices(self) -> Iterator[Index]:
        """Numpy indices of the blocks, leaving out the layer axis."""
        lead = (slice(None),) * (self.axis - 1)
        for start in range(0, self.length, self.size):
            yield (*lead, slice(start, min(start + self.size, self.length)))


# ---------------------------------------------------------------------------------------------------
# The host: numpy in, numpy out, a few threads because numpy works outside Python's lock.


def _host_blocks(leaf: np.ndarray) -> tuple[np.ndarray, Blocks]:
    leaf = leaf[:, None] if leaf.ndim == 1 else leaf
    return leaf, Blocks.of(leaf.shape)


def _host_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`np.empty` at an address that XLA needs to take the array over without a copy."""
    size, alignment = math.prod(shape) * np.dtype(dtype).itemsize, 64
    memory = np.empty(size + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + size].view(dtype).reshape(shape)


def _on_threads(work: Callable[[Any], Any], items: Any) -> Iterator[Any]:
    """`map`, in order, on all threads."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(work, items)


def _host_gram(leaf: np.ndarray) -> np.ndarray:
    leaf, _ = _host_blocks(leaf)
    blocks = Blocks.of(leaf.shape, at_once=_THREADS)
    # Buffers are used again and again: fresh pages for every block would take longer than filling them.
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
    """`rows @ rows.T` of a few long rows, in products too small for a BLAS to use threads of its own.

    Those are one set for the process: products that several threads ask for would wait for each other.
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


def _host_combine(matrix: np.ndarray, leaf: np.ndarray) -> np.ndarray:
    shape = (matrix.shape[0], *leaf.shape[1:])
    leaf, blocks = _host_blocks(leaf)
    out = _host_empty((matrix.shape[0], *leaf.shape[1:]), leaf.dtype)

    def fill(index: Index) -> None:
        for group, weights in enumerate(matrix):
            out[group][index] = _weighted_sum(weights, leaf, index)

    list(_on_threads(fill, blocks.indices()))
    return out.reshape(shape)


def _host_replace(source: np.ndarray, trained: np.ndarray, full: np.ndarray) -> np.ndarray:
    out = _host_empty(full.shape, full.dtype)

    def fill(layer: int) -> None:
        group = source[layer]
        out[layer] = full[layer] if group < 0 else trained[group]

    list(_on_threads(fill, range(len(full))))
    return out


def _host_shift(matrix: np.ndarray, source: np.ndarray, trained: np.ndarray, full: np.ndarray) -> np.ndarray:
    shape = full.shape
    trained, _ = _host_blocks(trained)
    full, blocks = _host_blocks(full)
    out = _host_empty(full.shape, full.dtype)

    def fill(index: Index) -> None:
        out[:, *index] = full[:, *index]
        for group in np.unique(source[source >= 0]):
            change = trained[group][index].astype(np.float32)
            change -= _weighted_sum(matrix[group], full, index)
            for layer in np.flatnonzero(source == group):
                out[layer][index] = full[layer][index].astype(np.float32) + change

    list(_on_threads(fill, blocks.indices()))
    return out.reshape(shape)


# ---------------------------------------------------------------------------------------------------
# The device: one compiled loop per leaf shape.


def _flat(block: jax.Array) -> jax.Array:
    # The barrier has the block in memory once, as a float32 matrix; XLA would else convert and transpose it inside the
    # product, for each of its operands.
    return lax.optimization_barrier(block.astype(jnp.float32).reshape(block.shape[0], -1))


def _gram_in_float32(block: jax.Array) -> jax.Array:
    flat = _flat(block)
    return lax.dot_general(flat, flat, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _gram_in_bfloat16(block: jax.Array) -> jax.Array:
    # A product of two bfloat16 numbers is a float32 number: matrix units give the same terms from halves, in one pass.
    flat = block.reshape(block.shape[0], -1)
    return lax.dot_general(flat, flat, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _block_gram(block: jax.Array) -> jax.Array:
    if block.dtype == jnp.bfloat16:
        return lax.platform_dependent(block, cpu=_gram_in_float32, default=_gram_in_bfloat16)
    return _gram_in_float32(block)


def _block_combine(matrix: jax.Array, block: jax.Array) -> jax.Array:
    combined = jnp.matmul(matrix, _flat(block), precision=lax.Precision.HIGHEST)
    return combined.reshape(matrix.shape[0], *block.shape[1:])


def _cut(leaf: Any) -> tuple[Any, tuple[int, ...], Blocks]:
    """The leaf in a form that can be cut, its shape as floats, and its blocks."""
    shape = weight_shape(leaf)
    if is_opaque(leaf):
        seconds = {array.shape[1:2] for array in jax.tree.leaves(leaf)}
        (second, *others) = seconds
        if second and not others and len(shape) > 1 and shape[1] % second[0] == 0:
            return leaf, shape, Blocks.of(shape, second[0])
        leaf = leaf.dequantize(jnp.float32)
    leaf = jnp.asarray(leaf)
    if leaf.ndim == 1:
        leaf, shape = leaf[:, None], (*shape, 1)
    return leaf, shape, Blocks.of(shape)


def _read(leaf: Any, axis: int, start: Any, size: int) -> jax.Array:
    block = _read_as_stored(leaf, axis, start, size)
    return block.dequantize(jnp.float32) if is_opaque(block) else block.astype(jnp.float32)


def _read_as_stored(leaf: Any, axis: int, start: Any, size: int) -> Any:
    # XLA would turn "cut, then convert" round and convert the whole leaf ahead of the loop. A leaf that passed a
    # barrier together with the loop's counter has to stay inside.
    leaf, start = lax.optimization_barrier((leaf, jnp.asarray(start)))
    return jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, size, axis), leaf)


def _loop(step: Callable[[Any, Any, int], Any], carry: Any, blocks: Blocks) -> Any:
    """Folds `step(carry, start, size)` over the blocks; the last, shorter one comes after the loop."""
    count, rest = divmod(blocks.length, blocks.size)
    if count == 1:
        carry = step(carry, 0, blocks.size)
    elif count:
        carry = lax.fori_loop(0, count, lambda i, c: step(c, i * blocks.size, blocks.size), carry)
    return step(carry, count * blocks.size, rest) if rest else carry


def _recomputed(function: Callable[..., jax.Array], size: int) -> Callable[..., jax.Array]:
    # Without this the backward pass would keep the float32 form of every block at once.
    return jax.checkpoint(functools.partial(function, size), prevent_cse=False)


@jax.jit
def _device_gram(leaf: Any) -> jax.Array:
    leaf, shape, blocks = _cut(leaf)
    read = _read if is_opaque(leaf) else _read_as_stored

    def part(size: int, leaf: Any, start: Any) -> jax.Array:
        return _block_gram(read(leaf, blocks.axis, start, size))

    def step(total: jax.Array, start: Any, size: int) -> jax.Array:
        return total + _recomputed(part, size)(leaf, start)

    total = _loop(step, jnp.zeros((shape[0], shape[0]), jnp.float32), blocks)
    return (total + total.T) / 2


def _fill(
    part: Callable[..., jax.Array], operands: tuple[Any, ...], blocks: Blocks, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """`shape` in `dtype`, put together from `part(size, *operands, start)` for every block."""
    scale = shape[blocks.axis] // max(blocks.length, 1)

    def write(carried: Any, *operands: Any) -> jax.Array:
        def step(out: jax.Array, start: Any, size: int) -> jax.Array:
            block = _recomputed(part, size)(*operands, start).astype(carried)
            return lax.dynamic_update_slice_in_dim(out, block, start * scale, blocks.axis)

        return _loop(step, jnp.zeros(shape, carried), blocks).astype(dtype)

    if jnp.dtype(dtype).itemsize >= 4:
        return write(dtype, *operands)
    # XLA for CPU updates a slice of a 16-bit array by converting all of it to float32 and back, at every step.
    wide, narrow = functools.partial(write, jnp.float32), functools.partial(write, dtype)
    return lax.platform_dependent(*operands, cpu=wide, default=narrow)


@jax.jit
def _device_combine(matrix: jax.Array, leaf: Any) -> jax.Array:
    dtype = jnp.float32 if is_opaque(leaf) else leaf.dtype
    result_shape = (matrix.shape[0], *weight_shape(leaf)[1:])
    leaf, shape, blocks = _cut(leaf)

    def part(size: int, matrix: jax.Array, leaf: Any, start: Any) -> jax.Array:
        return _block_combine(matrix, _read(leaf, blocks.axis, start, size))

    return _fill(part, (matrix, leaf), blocks, (matrix.shape[0], *shape[1:]), dtype).reshape(result_shape)


@jax.jit
def _device_replace(source: jax.Array, trained: jax.Array, full: jax.Array) -> jax.Array:
    rows = jnp.take(trained, jnp.maximum(source, 0), axis=0).astype(full.dtype)
    return jnp.where(_per_layer(source >= 0, full), rows, full)


def _per_layer(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


@jax.jit
def _device_shift(matrix: jax.Array, source: jax.Array, trained: jax.Array, full: jax.Array) -> jax.Array:
    result_shape, dtype = full.shape, full.dtype
    trained, _, _ = _cut(trained)
    full, shape, blocks = _cut(full)

    def part(size: int, matrix: jax.Array, trained: Any, full: Any, start: Any) -> jax.Array:
        old = _read(full, blocks.axis, start, size)
        change = _read(trained, blocks.axis, start, size) - _block_combine(matrix, old)
        moved = old + jnp.take(change, jnp.maximum(source, 0), axis=0)
        return jnp.where(_per_layer(source >= 0, old), moved, old)

    return _fill(part, (matrix, trained, full), blocks, shape, dtype).reshape(result_shape)
