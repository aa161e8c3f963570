"""Draws one token of each row from its logits: greedily, from all tokens, or from the nucleus (Holtzman et al. 2020)."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

Method = Literal["greedy", "all", "nucleus"]
"""What a token is drawn from: the most likely one, all tokens, or the nucleus."""


@jax.jit
def sampling_keys(seed: jax.Array, rows: jax.Array) -> jax.Array:
    """The random keys of rows, key[B].

    Args:
      seed: u32[].
      rows: u32[B], numbers of the rows.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(partial(jax.random.fold_in, key))(rows)


def draw_tokens(
    method: Method,
    logits: jax.Array,
    keys: jax.Array,
    step: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
) -> jax.Array:
    """One token per row, i32[B].

    Args:
      method: the sampling method.
      logits: f32[B, V].
      keys: key[B], random keys of the rows.
      step: i32[], number of the token, from 0.
      temperature: f32[], positive; unused if the method is greedy.
      top_p: f32[], in (0, 1]; used only by the nucleus.
    """
    if method == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(logits: jax.Array, key: jax.Array) -> jax.Array:
        # The most likely token's quotient is 0, so none overflows however small the temperature.
        logits = (logits - jnp.max(logits)) / temperature
        noise = jax.random.gumbel(jax.random.fold_in(key, step), logits.shape, jnp.float32)
        if method == "all":
            return jnp.argmax(logits + noise)
        order = jnp.argsort(-logits)
        probabilities = jax.nn.softmax(logits[order])
        before = jnp.cumsum(probabilities) - probabilities
        # The most likely token belongs to every nucleus, even if top_p is so small that it is rounded to 0.
        inside = (before < top_p).at[0].set(True)
        return order[jnp.argmax(jnp.where(inside, (logits + noise)[order], -jnp.inf))]

    return jax.vmap(draw)(logits, keys).astype(jnp.int32)
