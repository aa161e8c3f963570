"""The frozen base: every per-layer leaf is stacked on a leading axis L, so that depth is linear algebra on that axis.

Linear weights are stored `[in, out]`. Large weights may be `Weight`s: packed, or divided over devices.

Axis letters: L layers, D model width, E head size, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.weights import ShardedWeight, Weight


class Block(struct.PyTreeNode):
    """The decoder layers of a model, stacked.

    Attributes:
      q: [L, D, H E].
      k: [L, D, K E].
      v: [L, D, K E].
      o: [L, H E, D].
      gate: [L, D, F].
      up: [L, D, F].
      down: [L, F, D].
      norm_attention: [L, D].
      norm_mlp: [L, D].
      bias: [L, out] of the projections that have one, by name.
      norm_q: [L, E] if queries and keys are normalised, else None.
      norm_k: as `norm_q`.
    """

    q: Any
    k: Any
    v: Any
    o: Any
    gate: Any
    up: Any
    down: Any
    norm_attention: jax.Array
    norm_mlp: jax.Array
    bias: dict[str, jax.Array] = struct.field(default_factory=dict)
    norm_q: jax.Array | None = None
    norm_k: jax.Array | None = None


class Base(struct.PyTreeNode):
    """A frozen model.

    Attributes:
      embed: [V, D].
      blocks: the decoder layers.
      norm: [D], weight of the final RMSNorm.
      head: [D, V]; None if it is tied to `embed`.
    """

    embed: Any
    blocks: Block
    norm: jax.Array
    head: Any


def head_weight(base: Base) -> jax.Array:
    """The output projection `[D, V]`, which a tied model shares with its embedding.

    Args:
      base: the model.
    """
    weight = base.embed if base.head is None else base.head
    if isinstance(weight, ShardedWeight):
        weight = weight.gathered()
    return weight.T if base.head is None else weight


def parameter_count(base: Base) -> int:
    """Number of parameters of a base; packed weights count as weights, a tied head counts once.

    Args:
      base: arrays or shapes.
    """
    weights = jax.tree.leaves(base, is_leaf=lambda leaf: isinstance(leaf, Weight))
    return sum(math.prod(weight.shape) for weight in weights)


def init_base(key: jax.Array, config: ModelConfig, *, dtype: str = "float32") -> Base:
    """Random weights as for training from scratch: normal with deviation 0.02, residual outputs divided by sqrt(2 L).

    Norms are one and biases zero.

    Args:
      key: random key.
      config: the architecture.
      dtype: data type of every weight.
    """
    keys = iter(jax.random.split(key, len(PROJECTIONS) + 2))

    def normal(shape: tuple[int, ...], deviation: float = 0.02) -> jax.Array:
        return (deviation * jax.random.normal(next(keys), shape, jnp.float32)).astype(dtype)

    shrunk = 0.02 / (2 * config.layers) ** 0.5
    projections = {
        name: normal(
            (config.layers, *config.projection_shape(name)),
            shrunk if name in ("o", "down") else 0.02,
        )
        for name in PROJECTIONS
    }
    # Two separate arrays: an optimiser step that donates its buffers refuses shared ones.
    norms = [jnp.ones((config.layers, config.width), dtype) for _ in range(2)]
    head_norms = [jnp.ones((config.layers, config.head_size), dtype) if config.qk_norm else None for _ in range(2)]
    blocks = Block(
        **projections,
        norm_attention=norms[0],
        norm_mlp=norms[1],
        bias={name: jnp.zeros((config.layers, config.projection_shape(name)[1]), dtype) for name in config.biases},
        norm_q=head_norms[0],
        norm_k=head_norms[1],
    )
    embed = normal((config.vocabulary, config.width))
    head = None if config.tied_head else normal((config.width, config.vocabulary))
    return Base(embed=embed, blocks=blocks, norm=jnp.ones(config.width, dtype), head=head)
