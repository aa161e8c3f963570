"""The principal directions of the weights (PiSSA: Meng et al., PiSSA: Principal Singular Values and Singular Vectors
Adaptation of Large Language Models, NeurIPS 2024), at which factors can begin (`devft_jax.federated.directions`).

With the singular value decomposition W = U S V^T of every adapted weight, its first r triplets, and the scale s,

    a_0 = U_r (S_r / s)^(1/2),    b_0 = (S_r / s)^(1/2) V_r^T,    W_res = W - s a_0 b_0.

`federa` is FedIT with this initialisation, and sends changes of the factors instead of the factors, for messages in 16 bits.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from devft_jax.errors import InputError
from devft_jax.federated.aggregation import best_factors_of_layer, product
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.weights import dense_weight


@functools.partial(jax.jit, static_argnames=("rank", "scale"))
def principal_factors(weights: Any, delta: jax.Array, rank: int, scale: float) -> LoraFactors:
    """a_0 and b_0 of weights with a correction, computed layer by layer.

    Args:
      weights: [L, in, out], floats or packed.
      delta: f32[L, in, out], the weights' correction.
      rank: r.
      scale: s.
    """

    def one(layer: tuple[Any, jax.Array]) -> LoraFactors:
        weight, correction = layer
        return best_factors_of_layer(dense_weight(weight, jnp.float32) + correction, rank, scale)

    return jax.lax.map(one, (weights, delta))


def residuals(
    base: Base, delta: dict[str, jax.Array], rank: int, scale: float
) -> tuple[dict[str, LoraFactors], dict[str, jax.Array]]:
    """a_0 and b_0 of a stage's weights with their corrections, and the corrections less s a_0 b_0.

    Args:
      base: the stage's frozen weights.
      delta: f32[G, in, out] of every adapted projection.
      rank: r.
      scale: s.
    """
    initial = {name: principal_factors(getattr(base.blocks, name), leaf, rank, scale) for name, leaf in delta.items()}
    return initial, {name: leaf - scale * product(initial[name]) for name, leaf in delta.items()}


def check_principal_rank(rank: int, model: ModelConfig, adapter: Adapter, user: str) -> None:
    """Raise `InputError` if a projection has fewer singular values than the rank.

    Args:
      rank: r.
      model: the architecture of the model.
      adapter: has the adapted projections.
      user: what uses the singular values, for the message.
    """
    for name in adapter.lora:
        most = min(model.projection_shape(name))
        if rank > most:
            raise InputError(
                f"rank {rank} exceeds the {most} singular values of projection '{name}', of which {user} uses the "
                "largest; lower the rank."
            )
