"""What every layer computes: block influence (ShortGPT, Men et al. 2024), how much it changes its input; and its outputs."""

import jax
import jax.numpy as jnp

from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base, Block
from devft_jax.models.decoder import decoder_layer, rotary_table
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute, causal_attention, embedded


def layer_cosines(
    config: ModelConfig, base: Base, tokens: jax.Array, real: jax.Array, *, compute: Compute = DEFAULT_COMPUTE
) -> jax.Array:
    """The sum over real tokens of the cosine similarity between a layer's input and its output.

    Args:
      config: the architecture.
      base: frozen weights.
      tokens: i32[B, T], padded on the right.
      real: bool[B, T], which tokens are not padding.
      compute: execution choices.

    Returns:
      f32[L], one value for every layer of the base.
    """
    length = tokens.shape[-1]
    attend, table = causal_attention(config, compute, length), rotary_table(config, jnp.arange(length, dtype=jnp.int32))

    def step(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array]:
        after, _ = decoder_layer(config, x, block, {}, {}, {}, table=table, attend=attend)
        before, now = x.astype(jnp.float32), after.astype(jnp.float32)
        norms = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(now, axis=-1)
        cosines = jnp.sum(before * now, axis=-1) / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
        return after, jnp.sum(jnp.where(real, cosines, 0.0))

    return jax.lax.scan(step, embedded(base, tokens, compute), base.blocks)[1]


def layer_outputs(
    config: ModelConfig, base: Base, tokens: jax.Array, places: jax.Array, *, compute: Compute = DEFAULT_COMPUTE
) -> jax.Array:
    """The outputs of all layers at some tokens.

    Args:
      config: the architecture.
      base: frozen weights.
      tokens: i32[B, T], padded on the right.
      places: i32[n], numbers of tokens, row by row: b T + t.
      compute: execution choices.

    Returns:
      f32[L, n, D].
    """
    length = tokens.shape[-1]
    attend, table = causal_attention(config, compute, length), rotary_table(config, jnp.arange(length, dtype=jnp.int32))

    def step(x: jax.Array, block: Block) -> tuple[jax.Array, jax.Array]:
        after, _ = decoder_layer(config, x, block, {}, {}, {}, table=table, attend=attend)
        return after, after.reshape(-1, after.shape[-1])[places].astype(jnp.float32)

    return jax.lax.scan(step, embedded(base, tokens, compute), base.blocks)[1]
