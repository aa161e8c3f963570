"""Compiled passes over packed sequences: the model behind a cache of a shared beginning, and the scores that are asked for.

Axis letters: B sequences, T tokens of each, S slots of the cache, L layers, D model width, K key/value heads, E head size, N
places at which something is scored, A targets of each, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.attention import UNSEEN, Attention
from devft_jax.models.base import Base, head_weight
from devft_jax.models.llama import Compute, run_layers
from devft_jax.models.sharding import partition_specs
from devft_jax.runtime.compiled import shared_programs
from devft_jax.runtime.devices import OVER_DEVICES

SCORED_AT_ONCE = 64
"""Places whose logits are held at once."""
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


class Sequences(struct.PyTreeNode):
    """Packed sequences (`devft_jax.harness.packing`), padded, with what is scored in them.

    Attributes:
      tokens: i32[B, T].
      positions: i32[B, T].
      ends: i32[B, T], behind the last token of the sequence that sees a token.
      places: i32[N], tokens at which something is scored, numbered over the sequences of one device.
      targets: i32[N, A], whose log-likelihood is asked for there.
      count: i32[1], places that are in use, of one device.
    """

    tokens: jax.Array
    positions: jax.Array
    ends: jax.Array
    places: jax.Array
    targets: jax.Array
    count: jax.Array


class Scores(struct.PyTreeNode):
    """What the model makes of the targets.

    Attributes:
      log_likelihoods: f32[N, A], in nats.
      likeliest: bool[N, A], whether a target is the most likely token at its place.
    """

    log_likelihoods: jax.Array
    likeliest: jax.Array


@shared_programs
def jit_scores(config: ModelConfig, compute: Compute, mesh: Mesh) -> jax.stages.Wrapped:
    """(base, adapter, prefix, sequences) -> the scores of sequences, which the devices of a mesh divide among them."""

    def score(base: Base, adapter: Adapter | None, prefix: Prefix | None, sequences: Sequences) -> Scores:
        hidden, _ = _run(config, compute, base, adapter, prefix, sequences)
        return _scores(hidden, head_weight(base), sequences)

    def scores(base: Base, *arguments: Any) -> Scores:
        specs = (partition_specs(base), PartitionSpec(), PartitionSpec(), OVER_DEVICES)
        over_devices = jax.shard_map(score, mesh=mesh, in_specs=specs, out_specs=OVER_DEVICES, check_vma=False)
        return over_devices(base, *arguments)

    return jax.jit(scores)


@shared_programs
def jit_extended(config: ModelConfig, compute: Compute, mesh: Mesh, slots: int) -> jax.stages.Wrapped:
    """(base, adapter, prefix, sequence, tokens i32[]) -> the prefix with a sequence's first `tokens` behind it, and scores.

    The sequence is one for all devices; the new prefix has `slots` slots, room for all of its tokens.
    """

    def extend(
        base: Base, adapter: Adapter | None, prefix: Prefix | None, sequence: Sequences, tokens: jax.Array
    ) -> tuple[Prefix, Scores]:
        hidden, new = _run(config, compute, base, adapter, prefix, sequence)
        start = jnp.int32(0) if prefix is None else prefix.length
        # Padding is written where it would be behind the last slot, that is nowhere, or is written over or never seen.
        places = start + jnp.arange(sequence.tokens.shape[1], dtype=jnp.int32)

        def joined(old: jax.Array | None, added: jax.Array) -> jax.Array:
            shape = (*added.shape[:2], slots, added.shape[3])
            room = jnp.zeros(shape, added.dtype) if old is None else _padded(old, slots)
            return room.at[:, :, places].set(added, mode="drop")

        keys, values = new
        old = (None, None) if prefix is None else (prefix.keys, prefix.values)
        longer = Prefix(joined(old[0], keys), joined(old[1], values), start + tokens)
        return longer, _scores(hidden, head_weight(base), sequence)

    def extended(base: Base, *arguments: Any) -> tuple[Prefix, Scores]:
        whole = PartitionSpec()
        specs = (partition_specs(base), whole, whole, whole, whole)
        return jax.shard_map(extend, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)(base, *arguments)

    return jax.jit(extended)


def _padded(old: jax.Array, slots: int) -> jax.Array:
    return jnp.pad(old, ((0, 0), (0, 0), (0, slots - old.shape[2]), (0, 0)))


def _run(
    config: ModelConfig,
    compute: Compute,
    base: Base,
    adapter: Adapter | None,
    prefix: Prefix | None,
    sequences: Sequences,
) -> tuple[jax.Array, Any]:
    """Hidden states [B, T, D], and the first sequence's keys and values [L, K, T, E]."""
    window = config.sliding_window
    positions = sequences.positions
    # The layers are scanned over: what they share is closed over, what is a layer's own is the cache.
    cache = None if prefix is None else (prefix.keys, prefix.values)
    length = None if prefix is None else prefix.length
    attend = packed_attention(positions, sequences.ends, prefix_length=length, window=window)
    return run_layers(config, base, adapter, sequences.tokens, positions, attend=attend, cache=cache, compute=compute)


def packed_attention(
    positions: jax.Array, ends: jax.Array, *, prefix_length: jax.Array | None, window: int | None
) -> Attention:
    """Attention of packed sequences: to their own tokens where those are ancestors, and to a prefix that all share.

    Its cache is keys and values of the prefix [K, S, E]; its new entries are those of the first sequence [K, T, E].

    Args:
      positions: i32[B, T].
      ends: i32[B, T], as in `Sequences`.
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


def _scores(hidden: jax.Array, head: jax.Array, sequences: Sequences) -> Scores:
    """Scores of the places in use; elsewhere they mean nothing."""
    size, targets_each = sequences.targets.shape
    states = hidden.reshape(-1, hidden.shape[-1])
    rows = min(SCORED_AT_ONCE, size)
    cut: Callable[..., jax.Array] = partial(jax.lax.dynamic_slice_in_dim, slice_size=rows)

    def body(number: jax.Array, scores: Scores) -> Scores:
        start = number * rows
        targets = cut(sequences.targets, start)
        state = states[cut(sequences.places, start)]
        logits = jnp.einsum("nd,dv->nv", state, head.astype(state.dtype), preferred_element_type=jnp.float32)
        wanted = jnp.take_along_axis(logits, targets, axis=1)
        top = jnp.max(logits, axis=1, keepdims=True)
        found = wanted - top - jnp.log(jnp.sum(jnp.exp(logits - top), axis=1, keepdims=True))
        # A search for the place of the greatest logit would cost about as much as the product.
        hit = wanted == top
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return Scores(put(scores.log_likelihoods, found), put(scores.likeliest, hit))

    empty = Scores(jnp.zeros((size, targets_each), jnp.float32), jnp.zeros((size, targets_each), bool))
    return jax.lax.fori_loop(0, -(-sequences.count[0] // rows), body, empty)
