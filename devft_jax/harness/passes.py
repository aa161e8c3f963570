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
from devft_jax.models.base import Base, head_weight
from devft_jax.models.llama import Compute, run_layers
from devft_jax.models.packed_attention import Prefix, packed_attention
from devft_jax.models.sharding import partition_specs
from devft_jax.runtime.compiled import shared_programs
from devft_jax.runtime.devices import OVER_DEVICES

SCORED_AT_ONCE = 64
"""Places whose logits are held at once."""


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
