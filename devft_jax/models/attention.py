"""Causal self-attention over whole sequences, with a kernel that suits the platform.

`cudnn`, `splash` (for TPUs) and `xla` are JAX's own. `blocked` is written here, for processors whose compiler has no fused
kernel: queries are processed in blocks, each with only the keys up to its own end, so that nearly half of the T x T square
is never computed. The backward pass keeps the logarithm of each block's normaliser and recomputes the scores (Dao et al.
2022; the backward formulas are those of Dao 2023, section 3.1.2). Nothing of the size of the square is kept between the
passes.

Shapes: queries [B, T, H, E], keys and values [B, T, K, E], H a multiple of K; query head h belongs to key head h // (H / K).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Attention = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""(queries [B, T, H, E], keys and values [B, T, K, E], the layer's cache) -> (mixed values [B, T, H, E], new entries for
that cache); both are None without a cache."""

Kernel = Literal["xla", "cudnn", "splash", "blocked"]
# Name under which a remat policy may save what attention's backward pass needs.
SAVED = "attention"
# Fewest queries of a block, enough for a fast matrix product, and the most blocks, each of which is compiled.
SMALLEST_BLOCK, MOST_BLOCKS = 64, 8
# Score of a key that a query does not see: finite, so that a difference of two is not NaN.
UNSEEN = -1e30
# Tokens of a tile of splash attention, and most tiles of a block.
TILE, MOST_TILES = 128, 4


def kernel_for(kernel: Kernel | Literal["auto"], *, dtype: str, head_size: int, length: int) -> Kernel:
    """The kernel that a name refers to on the default platform.

    `auto` is cudnn on an NVIDIA GPU in bfloat16 if the head size allows it, splash on a TPU for sequences of at least one
    tile, blocked on CPU, and otherwise xla.

    Args:
      kernel: a kernel's name, or auto.
      dtype: of queries, keys and values.
      head_size: E.
      length: T, tokens of a sequence.
    """
    if kernel != "auto":
        return kernel
    platform = jax.default_backend()
    if platform == "gpu" and dtype == "bfloat16" and head_size % 8 == 0:
        return "cudnn"
    if platform == "tpu" and length >= TILE:
        return "splash"
    return "blocked" if platform == "cpu" else "xla"


def causal(kernel: Kernel, *, length: int, window: int | None = None) -> Attention:
    """Attention over whole sequences, without a cache.

    Args:
      kernel: xla, cudnn, splash or blocked.
      length: T, tokens of a sequence.
      window: number of tokens to which a position attends, itself and those before it; None for all.
    """
    # A window as long as the sequence would only keep kernels from their plain causal path.
    if window is not None and window >= length:
        window = None

    def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, cache: None) -> tuple[jax.Array, None]:
        if kernel == "blocked":
            return blocked_attention(window, queries, keys, values), None
        if kernel == "splash":
            return splash_attention(window, queries, keys, values), None
        mixed = jax.nn.dot_product_attention(
            queries,
            keys,
            values,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation=kernel,
        )
        return mixed, None

    return attend


def splash_attention(
    window: int | None, queries: jax.Array, keys: jax.Array, values: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """As `blocked_attention`, by JAX's Pallas kernel for TPUs, which skips tiles that no query sees.

    Sequences are padded to whole tiles on the right, where no real query sees them.

    Args:
      window: as in `causal`.
      queries: [B, T, H, E].
      keys: [B, T, K, E].
      values: [B, T, K, E].
      interpret: run the kernel step by step, on any platform.

    Returns:
      [B, T, H, E] in the values' dtype.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        LocalMask,
        MultiHeadMask,
        make_splash_mha_single_device,
    )

    length, heads, size = queries.shape[1:]
    tiles = -(-length // TILE)
    padded = tiles * TILE
    shape = padded, padded
    mask = CausalMask(shape) if window is None else LocalMask(shape, (window - 1, 0), 0)
    block = TILE * max(many for many in range(1, MOST_TILES + 1) if tiles % many == 0)
    sizes = BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = make_splash_mha_single_device(
        MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )

    def by_head(x: jax.Array) -> jax.Array:
        return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padded - length), (0, 0)))

    scaled = (queries * size**-0.5).astype(queries.dtype)
    mixed = jax.vmap(kernel)(by_head(scaled), by_head(keys), by_head(values))
    return mixed[:, :, :length].swapaxes(1, 2).astype(values.dtype)


def inner_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """sum(a * b) over the last axis.

    Args:
      a: [..., n].
      b: [..., n].

    Returns:
      f32[..., 1].
    """
    product = a.astype(jnp.float32) * b.astype(jnp.float32)
    if jax.default_backend() != "cpu":
        return jnp.sum(product, axis=-1, keepdims=True)
    # XLA's CPU library was measured to take fifty times as long for the sum of a product inside a large program.
    flat = product.reshape(-1, product.shape[-1])
    return jnp.dot(flat, jnp.ones(flat.shape[-1], jnp.float32), precision="highest").reshape(*product.shape[:-1], 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blocked_attention(window: int | None, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(E)) v over the keys that each query sees.

    Args:
      window: as in `causal`.
      queries: [B, T, H, E].
      keys: [B, T, K, E].
      values: [B, T, K, E].

    Returns:
      [B, T, H, E] in the values' dtype.
    """
    return _forward(window, queries, keys, values)[0]


def _blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice, jax.Array]]:
    """Query blocks: their rows, the keys that any of them sees, and a mask bool[rows, keys] of the keys that each one
    sees."""
    size = max(SMALLEST_BLOCK, -(-length // (MOST_BLOCKS * 8)) * 8)
    for first in range(0, length, size):
        last = min(first + size, length)
        begin = 0 if window is None else max(0, first - window + 1)
        query, key = jnp.arange(first, last, dtype=jnp.int32)[:, None], jnp.arange(begin, last, dtype=jnp.int32)[None]
        seen = key <= query
        yield slice(first, last), slice(begin, last), seen if window is None else seen & (key > query - window)


def _by_key_head(x: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, H, E] -> [B * K, H / K, T, E]: the query heads of the same key head next to each other."""
    batch, length, heads, size = x.shape
    grouped = x.reshape(batch, length, kv_heads, heads // kv_heads, size)
    return grouped.transpose(0, 2, 3, 1, 4).reshape(batch * kv_heads, heads // kv_heads, length, size)


def _by_token(x: jax.Array, batch: int) -> jax.Array:
    """The inverse of `_by_key_head`."""
    rows, group, length, size = x.shape
    split = x.reshape(batch, rows // batch, group, length, size)
    return split.transpose(0, 3, 1, 2, 4).reshape(batch, length, rows // batch * group, size)


def _rows(x: jax.Array, block: slice) -> jax.Array:
    """A block of queries [N, G, T, ...] as rows [N, G * block, ...]."""
    part = x[:, :, block]
    return part.reshape(part.shape[0], part.shape[1] * part.shape[2], *part.shape[3:])


def _unrows(x: jax.Array, group: int) -> jax.Array:
    """The inverse of `_rows`, for one block."""
    return x.reshape(x.shape[0], group, x.shape[1] // group, *x.shape[2:])


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _forward(window: int | None, queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, Any]:
    batch, length, heads, size = queries.shape
    group = heads // keys.shape[2]
    q, k, v = _by_key_head(queries, keys.shape[2]), *(_by_key_head(x, keys.shape[2])[:, 0] for x in (keys, values))
    mixed, normalisers = [], []
    for block, past, seen in _blocks(length, window):
        scores = _product("nqe,nke->nqk", _rows(q, block), k[:, past]) * size**-0.5
        scores = jnp.where(jnp.tile(seen, (group, 1))[None], scores, UNSEEN)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed.append(_unrows(_product("nqk,nke->nqe", weights.astype(v.dtype), v[:, past]) / total, group))
        normalisers.append(_unrows((top + jnp.log(total))[..., 0], group))
    normaliser = checkpoint_name(jnp.concatenate(normalisers, axis=2), SAVED)
    output = checkpoint_name(_by_token(jnp.concatenate(mixed, axis=2), batch).astype(values.dtype), SAVED)
    return output, (queries, keys, values, output, normaliser)


def _backward(window: int | None, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    queries, keys, values, output, normaliser = kept
    batch, length, heads, size = queries.shape
    kv_heads, group = keys.shape[2], heads // keys.shape[2]
    q, d = _by_key_head(queries, kv_heads), _by_key_head(gradient, kv_heads)
    k, v = (_by_key_head(x, kv_heads)[:, 0] for x in (keys, values))
    # Gradients of keys and values are summed as [N, E, T]: the CPU's matrix libraries have no product along the rows of both
    # factors.
    dk = dv = jnp.zeros((k.shape[0], size, length), jnp.float32)
    # The term that softmax's derivative subtracts: the mean of a row's gradient under its own weights, which is d . output.
    mean = _by_key_head(inner_products(gradient, output), kv_heads)[..., 0]
    dq = []
    for block, past, seen in _blocks(length, window):
        rows, up = _rows(q, block), _rows(d, block)
        scores = _product("nqe,nke->nqk", rows, k[:, past]) * size**-0.5
        visible = jnp.tile(seen, (group, 1))[None]
        weights = jnp.where(visible, jnp.exp(scores - _rows(normaliser, block)[..., None]), 0.0)
        dv = dv.at[:, :, past].add(_product("neq,nqk->nek", jnp.swapaxes(up, 1, 2), weights.astype(up.dtype)))
        towards = _product("nqe,nke->nqk", up, v[:, past])
        change = (weights * (towards - _rows(mean, block)[..., None]) * size**-0.5).astype(q.dtype)
        dq.append(_unrows(_product("nqk,nke->nqe", change, k[:, past]), group))
        dk = dk.at[:, :, past].add(_product("neq,nqk->nek", jnp.swapaxes(rows, 1, 2), change))
    # Separate from the products; otherwise the compiler would move the transposition back into them.
    dk, dv = (jnp.swapaxes(x, 1, 2)[:, None] for x in jax.lax.optimization_barrier((dk, dv)))
    gradients = (jnp.concatenate(dq, axis=2), dk, dv)
    return tuple(_by_token(x, batch).astype(like.dtype) for x, like in zip(gradients, (queries, keys, values), strict=True))  # type: ignore[return-value]


blocked_attention.defvjp(_forward, _backward)
