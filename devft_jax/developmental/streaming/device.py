"""The implementation for all other leaves: one compiled loop per leaf shape, one block at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from devft_jax.developmental.leaves import is_opaque, weight_shape
from devft_jax.developmental.streaming.blocks import Blocks


def _flat(block: jax.Array) -> jax.Array:
    # The barrier keeps the block in memory once, as a float32 matrix; otherwise XLA would convert and transpose it inside
    # the product, for each of its operands.
    return lax.optimization_barrier(block.astype(jnp.float32).reshape(block.shape[0], -1))


def _gram_in_float32(block: jax.Array) -> jax.Array:
    flat = _flat(block)
    return lax.dot_general(flat, flat, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _gram_in_bfloat16(block: jax.Array) -> jax.Array:
    # The product of two bfloat16 numbers is exact in float32: matrix units give the same terms from bfloat16, in one pass.
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
    """The leaf in a form that can be divided, its shape as floats, and its blocks."""
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
    # XLA would reorder "slice, then convert" and convert the whole leaf before the loop. A leaf that passed a
    # barrier together with the loop's counter has to stay inside.
    leaf, start = lax.optimization_barrier((leaf, jnp.asarray(start)))
    return jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, size, axis), leaf)


def _loop(step: Callable[[Any, Any, int], Any], carry: Any, blocks: Blocks) -> Any:
    """Fold `step(carry, start, size)` over the blocks; the last, smaller one is processed after the loop."""
    count, rest = divmod(blocks.length, blocks.size)
    if count == 1:
        carry = step(carry, 0, blocks.size)
    elif count:
        carry = lax.fori_loop(0, count, lambda i, c: step(c, i * blocks.size, blocks.size), carry)
    return step(carry, count * blocks.size, rest) if rest else carry


def _recomputed(function: Callable[..., jax.Array], size: int) -> Callable[..., jax.Array]:
    # Otherwise the backward pass would keep the float32 form of all blocks at once.
    return jax.checkpoint(functools.partial(function, size), prevent_cse=False)


@jax.jit
def gram(leaf: Any) -> jax.Array:
    """Inner products of the layers, f32[L, L], exactly symmetric.

    Args:
      leaf: `[L, ...]`, an array or an opaque weight.
    """
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
    """An array of `shape` and `dtype`, assembled from `part(size, *operands, start)` for every block."""
    scale = shape[blocks.axis] // max(blocks.length, 1)

    def write(carried: Any, *operands: Any) -> jax.Array:
        def step(out: jax.Array, start: Any, size: int) -> jax.Array:
            block = _recomputed(part, size)(*operands, start).astype(carried)
            return lax.dynamic_update_slice_in_dim(out, block, start * scale, blocks.axis)

        return _loop(step, jnp.zeros(shape, carried), blocks).astype(dtype)

    if jnp.dtype(dtype).itemsize >= 4:
        return write(dtype, *operands)
    # XLA for CPU updates a slice of a 16-bit array by converting all of it to float32 and back, in every step.
    wide, narrow = functools.partial(write, jnp.float32), functools.partial(write, dtype)
    return lax.platform_dependent(*operands, cpu=wide, default=narrow)


@jax.jit
def combine(matrix: jax.Array, leaf: Any) -> jax.Array:
    """`matrix` times the leaf, `[G, ...]` in the leaf's dtype (float32 if opaque); sums are float32.

    Args:
      matrix: f32[G, L].
      leaf: `[L, ...]`, an array or an opaque weight.
    """
    dtype = jnp.float32 if is_opaque(leaf) else leaf.dtype
    result_shape = (matrix.shape[0], *weight_shape(leaf)[1:])
    leaf, shape, blocks = _cut(leaf)

    def part(size: int, matrix: jax.Array, leaf: Any, start: Any) -> jax.Array:
        return _block_combine(matrix, _read(leaf, blocks.axis, start, size))

    return _fill(part, (matrix, leaf), blocks, (matrix.shape[0], *shape[1:]), dtype).reshape(result_shape)


@jax.jit
def replace(source: jax.Array, trained: jax.Array, full: jax.Array) -> jax.Array:
    """Layer l of the result is `trained[source[l]]`, or `full[l]` if `source[l]` is -1.

    Args:
      source: i32[L].
      trained: `[G, ...]`.
      full: `[L, ...]`.
    """
    rows = jnp.take(trained, jnp.maximum(source, 0), axis=0).astype(full.dtype)
    return jnp.where(_per_layer(source >= 0, full), rows, full)


def _per_layer(flags: jax.Array, like: jax.Array) -> jax.Array:
    return flags.reshape(-1, *(1,) * (like.ndim - 1))


@jax.jit
def shift(matrix: jax.Array, source: jax.Array, trained: jax.Array, full: jax.Array) -> jax.Array:
    """Layer l of the result is `full[l] + (trained - matrix @ full)[source[l]]`, or `full[l]` at -1.

    Args:
      matrix: f32[G, L].
      source: i32[L].
      trained: `[G, ...]`.
      full: `[L, ...]`.
    """
    result_shape, dtype = full.shape, full.dtype
    trained, _, _ = _cut(trained)
    full, shape, blocks = _cut(full)

    def part(size: int, matrix: jax.Array, trained: Any, full: Any, start: Any) -> jax.Array:
        old = _read(full, blocks.axis, start, size)
        change = _read(trained, blocks.axis, start, size) - _block_combine(matrix, old)
        moved = old + jnp.take(change, jnp.maximum(source, 0), axis=0)
        return jnp.where(_per_layer(source >= 0, old), moved, old)

    return _fill(part, (matrix, trained, full), blocks, shape, dtype).reshape(result_shape)
