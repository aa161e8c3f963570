"""The model with a cache of keys and values: prompts are read in one pass, then one token of every row at a time."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.attention import Attention
from devft_jax.models.base import Base
from devft_jax.models.generation.sampling import Method, draw_tokens
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute, causal_attention, logits_of, run_layers
from devft_jax.models.packed_attention import Prefix, packed_attention

STATIC = ("config", "compute", "method")
"""Static arguments of the compiled programs."""


class Cache(struct.PyTreeNode):
    """Keys and values of earlier tokens of every row; slot j holds position j.

    Attributes:
      keys: [L, B, S, K, E], after rotation.
      values: [L, B, S, K, E].
    """

    keys: jax.Array
    values: jax.Array


class State(struct.PyTreeNode):
    """The state of a batch during decoding.

    Attributes:
      cache: of all tokens except the newest.
      token: i32[B], each row's newest token.
      position: i32[B], position of the newest token.
      done: bool[B], whether the row is finished.
      step: i32[], number of tokens drawn.
      keys: key[B], random keys of the rows.
    """

    cache: Cache
    token: jax.Array
    position: jax.Array
    done: jax.Array
    step: jax.Array
    keys: jax.Array


@partial(jax.jit, static_argnames=(*STATIC, "slots"))
def begin(
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    lengths: jax.Array,
    done: jax.Array,
    keys: jax.Array,
    ends: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    prefix: Prefix | None = None,
    slots: int,
    config: ModelConfig,
    compute: Compute,
    method: Method,
) -> State:
    """Read a batch of prompts and draw the first token of each.

    Args:
      base: frozen weights.
      adapter: the adapter, or None.
      tokens: i32[B, P], padded on the right, behind the prefix.
      lengths: i32[B], lengths of the prompts, behind the prefix.
      done: bool[B], rows for which nothing is drawn.
      keys: key[B], random keys of the rows.
      ends: i32[n], tokens that end a row.
      temperature: as in `draw_tokens`.
      top_p: as in `draw_tokens`.
      prefix: keys and values of the tokens with which all prompts begin; None where they are read with each prompt.
      slots: S, slots of the cache.
      config: the architecture.
      compute: execution choices.
      method: the sampling method.
    """
    logits, cache = prefill(config, base, adapter, tokens, lengths, prefix=prefix, slots=slots, compute=compute)
    step = jnp.int32(0)
    token = draw_tokens(method, logits, keys, step, temperature, top_p)
    position = lengths if prefix is None else prefix.length + lengths
    return State(cache, token, position, done | jnp.isin(token, ends), step + 1, keys)


@partial(jax.jit, static_argnames=(*STATIC, "chunk"), donate_argnames="state")
def decode(
    base: Base,
    adapter: Adapter | None,
    state: State,
    ends: jax.Array,
    limit: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    chunk: int,
    config: ModelConfig,
    compute: Compute,
    method: Method,
) -> tuple[State, jax.Array]:
    """Draw up to `chunk` more tokens of each row.

    Args:
      base: frozen weights.
      adapter: the adapter, or None.
      state: state of the batch; its buffers are reused.
      ends: i32[n], tokens that end a row.
      limit: i32[], most tokens of a row in all.
      temperature: as in `draw_tokens`.
      top_p: as in `draw_tokens`.
      chunk: most tokens of a row in this call.
      config: the architecture.
      compute: execution choices.
      method: the sampling method.

    Returns:
      The new state, and the tokens drawn i32[chunk, B]. Tokens of a row after it is done are to be ignored, and so are those
        of steps that were not taken.
    """
    first = state.step
    drawn = jnp.zeros((chunk, len(state.token)), jnp.int32)
    last = jnp.minimum(first + chunk, limit)

    def unfinished(carry: tuple[State, jax.Array]) -> jax.Array:
        state, _ = carry
        return (state.step < last) & ~jnp.all(state.done)

    def draw_one(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, drawn = carry
        logits, cache = decode_step(config, base, adapter, state.cache, state.token, state.position, compute=compute)
        token = draw_tokens(method, logits, state.keys, state.step, temperature, top_p)
        token = jnp.where(state.done, state.token, token)
        drawn = drawn.at[state.step - first].set(token)
        position = state.position + ~state.done
        done = state.done | jnp.isin(token, ends)
        return State(cache, token, position, done, state.step + 1, state.keys), drawn

    return jax.lax.while_loop(unfinished, draw_one, (state, drawn))


def prefill(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    prefix: Prefix | None = None,
    slots: int,
    compute: Compute = DEFAULT_COMPUTE,
) -> tuple[jax.Array, Cache]:
    """Read prompts.

    Args:
      config: the architecture.
      base: frozen weights.
      adapter: the adapter, or None.
      tokens: i32[B, P], padded on the right, behind the prefix.
      lengths: i32[B], lengths of the prompts behind the prefix, at least 1.
      prefix: keys and values of the tokens with which all prompts begin; None where they are read with each prompt.
      slots: S, at least P, and room for the longest prompt behind the prefix.
      compute: execution choices.

    Returns:
      Logits f32[B, V] after the last token of every prompt, and the cache, of the prefix too.
    """
    length = tokens.shape[1]
    positions = jnp.arange(length, dtype=jnp.int32)
    shared = None if prefix is None else (prefix.keys, prefix.values)
    if prefix is None:
        mixing = causal_attention(config, compute, length)
    else:
        positions += prefix.length
        ends = jnp.full((1, length), length, jnp.int32)
        mixing = packed_attention(positions[None], ends, prefix_length=prefix.length, window=config.sliding_window)

    def attend(
        queries: jax.Array, keys: jax.Array, values: jax.Array, first: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, Cache]:
        mixed, _ = mixing(queries, keys, values, first)
        if first is None:
            room = ((0, 0), (0, slots - length), (0, 0), (0, 0))
            return mixed, Cache(jnp.pad(keys, room), jnp.pad(values, room))
        return mixed, Cache(_behind(first[0], keys, positions, slots), _behind(first[1], values, positions, slots))

    hidden, cache = run_layers(config, base, adapter, tokens, positions, attend=attend, cache=shared, compute=compute)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return logits_of(base, last), cache


def _behind(shared: jax.Array, own: jax.Array, positions: jax.Array, slots: int) -> jax.Array:
    """A layer's cache [B, slots, K, E] of rows [B, T, K, E] at `positions` behind a beginning [K, S, E] that they share."""
    shared = shared.swapaxes(0, 1)[:slots]
    shared = jnp.pad(shared, ((0, slots - len(shared)), (0, 0), (0, 0)))
    # Only padding may be behind the last slot; it is written nowhere.
    return jnp.broadcast_to(shared, (len(own), *shared.shape)).at[:, positions].set(own, mode="drop")


def decode_step(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    cache: Cache,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    compute: Compute = DEFAULT_COMPUTE,
) -> tuple[jax.Array, Cache]:
    """Read one more token of every row.

    Args:
      config: the architecture.
      base: frozen weights.
      adapter: the adapter, or None.
      cache: keys and values of the earlier tokens.
      tokens: i32[B].
      positions: i32[B], positions of the tokens, below S.
      compute: execution choices.

    Returns:
      Logits f32[B, V] after the tokens, and the cache including them.
    """
    attend = cached_attention(config, positions, cache.keys.shape[2])
    hidden, new = run_layers(
        config, base, adapter, tokens[:, None], positions[:, None], attend=attend, cache=cache, compute=compute
    )
    rows = jnp.arange(len(positions), dtype=jnp.int32)
    # Written once for all layers: a cache carried through the scan over layers would be copied for every token.
    cache = jax.tree.map(lambda old, added: old.at[:, rows, positions].set(added), cache, new)
    return logits_of(base, hidden[:, 0]), cache


def cached_attention(config: ModelConfig, positions: jax.Array, slots: int) -> Attention:
    """Attention of one token per row to its cache and itself; returns its key and value as new entries.

    Args:
      config: the architecture.
      positions: i32[B], positions of the tokens.
      slots: S, slots of the cache.
    """
    window = config.sliding_window
    slot = jnp.arange(slots, dtype=jnp.int32)[None]
    visible = slot < positions[:, None]
    if window is not None:
        visible &= slot > positions[:, None] - window

    def attend(queries: jax.Array, keys: jax.Array, values: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        batch, _, heads, size = queries.shape
        queries = queries.reshape(batch, config.kv_heads, -1, size)
        key, value = keys[:, 0], values[:, 0]
        score = partial(jnp.einsum, preferred_element_type=jnp.float32)
        past = jnp.where(visible[:, None, None], score("bkge,bske->bkgs", queries, cache.keys), -jnp.inf)
        own = score("bkge,bke->bkg", queries, key)[..., None]
        weights = jax.nn.softmax(jnp.concatenate([past, own], axis=-1) * size**-0.5, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bkgs,bske->bkge", weights[..., :-1], cache.values) + weights[..., -1:] * value[:, :, None]
        return mixed.reshape(batch, 1, heads, size), Cache(key, value)

    return attend
