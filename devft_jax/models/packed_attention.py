"""Attention of packed sequences, and of sequences behind a beginning that all of them share.

A token sees those tokens of its own sequence that come before it and whose end is behind it, so that one sequence may hold
several texts that branch (`devft_jax.harness.packing`), and all tokens of the shared beginning, whose keys and values were
computed before.

Axis letters: B sequences, T tokens of each, S slots of the beginning's cache, L layers, H query heads, K key/value heads, G
query heads of a key head, E head size.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.models.attention import UNSEEN, Attention

QUERIES_AT_ONCE = 512
"""Queries of a sequence whose attention scores are held at once."""


class Prefix(struct.PyTreeNode):
    """Keys and values of a beginning that sequences share; slot j holds position j.

    Attributes:
      keys: [L, K, S, E], rotated.
      values: [L, K, S, E].
      length: i32[], how many slots are filled.
    """

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def packed_attention(
    positions: jax.Array, ends: jax.Array, *, prefix_length: jax.Array | None, window: int | None
) -> Attention:
    """Attention of packed sequences: to their own tokens where those are ancestors, and to a prefix that all share.

    Its cache is keys and values of the prefix [K, S, E]; its new entries are those of the first sequence [K, T, E].

    Args:
      positions: i32[B or 1, T], one row where all sequences are alike.
      ends: i32[B or 1, T], behind the last token of the sequence that sees a token.
      prefix_length: i32[], filled slots of the prefix; None where there is none.
      window: how many tokens a position attends to, itself and those before it; None for all.
    """
    length = positions.shape[1]

    def seen_of_own(first: int, last: int) -> jax.Array:
        """bool[B, queries, keys] for the queries from `first` to before `last`; keys behind them are seen by none."""
        query, key = (jnp.arange(start, last, dtype=jnp.int32) for start in (first, 0))
        seen = (key[None, None] <= query[None, :, None]) & (query[None, :, None] < ends[:, None, :last])
        if window is not None:
            seen &= positions[:, first:last, None] - positions[:, None, :last] < window
        return seen

    def seen_of_prefix(first: int, last: int, slots: int) -> jax.Array:
        """bool[B or 1, queries or 1, S]."""
        slot = jnp.arange(slots, dtype=jnp.int32)[None, None]
        assert prefix_length is not None
        seen = slot < prefix_length
        return seen if window is None else seen & (positions[:, first:last, None] - slot < window)

    def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        batch, _, heads, size = queries.shape
        kv_heads = keys.shape[2]
        # The axes over which products are independent come first, so that each is one matrix product.
        q = queries.reshape(batch, length, kv_heads, -1, size).transpose(2, 0, 3, 1, 4)
        k, v = keys.transpose(2, 0, 1, 3), values.transpose(2, 0, 1, 3)
        mixed = []
        for first in range(0, length, QUERIES_AT_ONCE):
            last = min(first + QUERIES_AT_ONCE, length)
            parts = [_Part(k[:, :, :last], v[:, :, :last], seen_of_own(first, last), shared=False)]
            if cache is not None:
                parts.append(_Part(cache[0], cache[1], seen_of_prefix(first, last, cache[0].shape[1]), shared=True))
            mixed.append(_mixed(q[:, :, :, first:last], parts))
        out = jnp.concatenate(mixed, axis=3).transpose(1, 3, 0, 2, 4).reshape(batch, length, heads, size)
        return out.astype(values.dtype), (k[:, 0], v[:, 0])

    return attend


class _Part(struct.PyTreeNode):
    """Keys and values [K, B, n, E], or [K, n, E] shared by all sequences, and which of them are seen, bool[B, T, n]."""

    keys: jax.Array
    values: jax.Array
    seen: jax.Array
    shared: bool = struct.field(pytree_node=False)

    def product(self, terms: str, a: jax.Array, b: jax.Array) -> jax.Array:
        """An einsum in which `b`'s sequences are all sequences' own, or one for all."""
        return jnp.einsum(terms.replace("%", "" if self.shared else "b"), a, b, preferred_element_type=jnp.float32)


def _mixed(queries: jax.Array, parts: list[_Part]) -> jax.Array:
    """Softmax over all keys of all parts: f32[K, B, G, T, E] of queries [K, B, G, T, E]."""
    scores = []
    for part in parts:
        found = part.product("kbgte,k%se->kbgts", queries, part.keys) * queries.shape[-1] ** -0.5
        scores.append(jnp.where(part.seen[None, :, None], found, UNSEEN))
    top = partial(jnp.max, axis=-1, keepdims=True)
    most = jax.tree.reduce(jnp.maximum, [top(each) for each in scores])
    weights = [jnp.exp(each - most) for each in scores]
    total = sum(jnp.sum(each, axis=-1, keepdims=True) for each in weights)
    pairs = zip(weights, parts, strict=True)
    mixed = [part.product("kbgts,k%se->kbgte", each.astype(part.values.dtype), part.values) for each, part in pairs]
    return sum(mixed[1:], mixed[0]) / total
