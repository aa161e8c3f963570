"""One decoder layer of LLaMA: RMSNorm, rotary positions, grouped-query attention and SwiGLU (Touvron et al. 2023).

A low-rank update is two small products beside the frozen one, `x @ W + scale * (x @ a) @ b`; see `devft_jax.models.adapter`.

Axis letters: B batch, T tokens, D model width, F feed-forward width, H query heads, K key/value heads, E head size, r rank.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from devft_jax.models.adapter import LoraFactors
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.attention import Attention, inner_products
from devft_jax.models.base import Block
from devft_jax.models.weights import frozen_product
from devft_jax.typing import PyTree

PROJECTED, KEPT = "projection", "dropout"
"""Names that a remat policy may save: the outputs of projections, and dropout's masks."""


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    block: Block,
    lora: dict[str, LoraFactors],
    scale: dict[str, jax.Array],
    delta: dict[str, jax.Array],
    *,
    table: tuple[jax.Array, jax.Array],
    attend: Attention,
    cache: PyTree = None,
    dropout: float = 0.0,
    row_keys: jax.Array | None = None,
    change: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, PyTree]:
    """One decoder layer.

    Args:
      config: the architecture.
      x: [B, T, D].
      block: frozen weights of the layer, without the layer axis.
      lora: the layer's low-rank factors by projection, without the layer axis.
      scale: factor of their product, f32[], by projection.
      delta: corrections of the frozen weights by projection, f32[in, out].
      table: cosines and sines of the T tokens' positions, from `rotary_table`.
      attend: the attention function.
      cache: the layer's cache, which `attend` reads.
      dropout: probability of dropping an input element of a low-rank product.
      row_keys: key[B], random keys of the rows; None switches dropout off.
      change: maps the outputs [B, T, D] of attention and of the MLP, before the residual sum; None for no change.

    Returns:
      The layer's output [B, T, D], and the cache entries that `attend` returns.
    """

    def project(name: str, inputs: jax.Array) -> jax.Array:
        outputs = frozen_product(inputs, getattr(block, name))
        if name in block.bias:
            outputs = outputs + _beside(block.bias[name], outputs).astype(outputs.dtype)
        if name in delta:
            outputs = outputs + inputs @ delta[name].astype(inputs.dtype)
        if name not in lora:
            return checkpoint_name(outputs, PROJECTED)
        if row_keys is not None and dropout > 0.0:
            inputs = _drop(fold_each(row_keys, PROJECTIONS.index(name)), dropout, inputs)
        factors = lora[name]
        low = inputs @ factors.a.astype(inputs.dtype)
        # A scale such as 0.7 is not exact in half precision, so it multiplies in float32.
        outputs = outputs + (scale[name] * (low @ factors.b.astype(inputs.dtype))).astype(x.dtype)
        return checkpoint_name(outputs, PROJECTED)

    def heads(y: jax.Array, count: int, norm: jax.Array | None = None) -> jax.Array:
        split = y.reshape(*y.shape[:-1], count, config.head_size)
        return split if norm is None else rms_norm(split, norm, config.norm_epsilon)

    with jax.named_scope("attention"):
        normed = rms_norm(x, block.norm_attention, config.norm_epsilon)
        queries = rotate(heads(project("q", normed), config.heads, block.norm_q), table)
        keys = rotate(heads(project("k", normed), config.kv_heads, block.norm_k), table)
        values = heads(project("v", normed), config.kv_heads)
        mixed, entries = attend(queries, keys, values, cache)
        mixed = project("o", mixed.reshape(*x.shape[:-1], -1))
        x = x + (mixed if change is None else change(mixed))
    with jax.named_scope("mlp"):
        normed = rms_norm(x, block.norm_mlp, config.norm_epsilon)
        gated = jax.nn.silu(project("gate", normed)) * project("up", normed)
        mapped = project("down", gated)
        return x + (mapped if change is None else change(mapped)), entries


def _drop(keys: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Dropout of `x [B, T, D]`, each row by its own key of `keys [B]`."""
    # A row's bits are derived from its flat index, with T leading: padding to more tokens changes no real token's mask.
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(1.0 - rate), x.shape[1:]))(keys)
    return jnp.where(checkpoint_name(keep, KEPT), x / (1.0 - rate), 0.0)


def fold_each(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """`fold_in` of one number into every key.

    Args:
      keys: key[B].
      number: integer [], the same for all keys.
    """
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis, computed in float32 (Zhang and Sennrich 2019).

    Args:
      x: [..., n].
      weight: [n].
      epsilon: added to the mean square.

    Returns:
      [..., n] in `x`'s dtype.
    """
    return _rms_forward(x, weight, epsilon)[0]


def _rms_forward(x: jax.Array, weight: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale * _beside(weight, wide).astype(jnp.float32)).astype(x.dtype), (x, weight, scale)


def _rms_backward(epsilon: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # With n the normalised x and g the gradient times the weight: scale * (g - n * mean(g * n)).
    x, weight, scale = kept
    normed = x.astype(jnp.float32) * scale
    towards = gradient.astype(jnp.float32) * _beside(weight, gradient).astype(jnp.float32)
    if jax.default_backend() == "cpu":
        # Used twice, and itself a sum over the projections that read the norm: otherwise the compiler would compute it
        # twice.
        towards = jax.lax.optimization_barrier(towards)
    along = inner_products(towards, normed) / x.shape[-1]
    by_weight = jnp.sum(gradient.astype(jnp.float32) * normed, axis=tuple(range(x.ndim - 1)))
    return (scale * (towards - normed * along)).astype(x.dtype), by_weight.astype(weight.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


def rotary_frequencies(config: ModelConfig) -> jax.Array:
    """Angular frequencies per position, f32[E / 2] (Su et al. 2021; LLaMA 3 scaling as in Hugging Face).

    Args:
      config: the architecture.
    """
    exponents = jnp.arange(0, config.head_size, 2, dtype=jnp.float32) / config.head_size
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * jnp.pi / frequencies
    rotations = scaling.original_length / wavelengths
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    keep = jnp.clip((rotations - scaling.low_frequency_factor) / span, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rotary_table(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary angles at positions.

    Args:
      config: the architecture.
      positions: i32[..., T].

    Returns:
      Two arrays f32[..., T, 1, E / 2].
    """
    places = positions[..., None, None].astype(jnp.float32)
    angles = places * _beside(rotary_frequencies(config), places)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding, with halves paired as in Hugging Face checkpoints.

    Args:
      x: [..., T, heads, E].
      table: from `rotary_table`.
    """
    cos, sin = (_beside(part, x).astype(x.dtype) for part in table)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _beside(array: jax.Array, other: jax.Array) -> jax.Array:
    """`array` with trailing axes of size 1 until it has as many axes as `other`, because implicit rank promotion is an
    error."""
    return jnp.expand_dims(array, tuple(range(jnp.ndim(other) - jnp.ndim(array))))
