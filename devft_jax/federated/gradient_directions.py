"""The directions of the loss's gradient (LoRA-GA: Wang et al., LoRA-GA: Low-Rank Adaptation with Gradient Approximation,
NeurIPS 2024), at which factors can begin (`devft_jax.federated.directions`).

With the singular value decomposition G = U S V^T of the loss's gradient [in, out] with respect to every adapted weight,

    a_0 = c U_{1..r},    b_0 = c V_{r+1..2r}^T,    c = out^(1/4) / gamma^(1/2),    W_0 = W - s a_0 b_0,

with gamma = 16 and the run's scale s, for which the authors take rsLoRA's (`rslora`). A first step of b in the direction of
its gradient s a_0^T G, and of a in that of s G b_0^T, then changes the weight in the directions 1 to 2 r of G, the best
approximation of a step of the weight itself that factors of rank r can make; c keeps the outputs' size independent of the
width. The largest entry of every column of a_0 and of every row of b_0 is positive.

Departures: the authors measure G on batches of the training data. Here the server has none of it, and a gradient is
as large as the base, so no client sends one: G is the mean over the answers' tokens of `probe_examples` examples of public
text (`probe_data`), at the weights with which a stage begins, which in a later stage contain what earlier ones learned. All
clients know the text and are taken to compute the same factors, so that these are not counted as a message; where devices
round differently, the server would have to send a_0 and b_0 once per stage. The decomposition is exact; the authors' is
randomised. They store W_0 in the base, rounded or packed; here it is the base and a float32 correction beside it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig

GAMMA = 16
"""The authors' value."""


@functools.partial(jax.jit, static_argnames="rank")
def gradient_factors(gradient: jax.Array, rank: int) -> LoraFactors:
    """a_0 and b_0 of the gradients of weights, computed layer by layer.

    Args:
      gradient: f32[L, in, out].
      rank: r, at most half of the smaller extent.
    """
    size = gradient.shape[-1] ** 0.25 / GAMMA**0.5

    def one(layer: jax.Array) -> LoraFactors:
        left, _, right = jnp.linalg.svd(layer, full_matrices=False)
        return LoraFactors(a=size * _signed(left[:, :rank]), b=size * _signed(right[rank : 2 * rank].T).T)

    return jax.lax.map(one, gradient)


def _signed(columns: jax.Array) -> jax.Array:
    """The columns with such signs that the largest entry of each is positive."""
    largest = jnp.take_along_axis(columns, jnp.argmax(jnp.abs(columns), axis=0)[None], axis=0)
    return jnp.where(largest < 0, -columns, columns)


def initial_factors(gradient: Mapping[str, Any], rank: int) -> dict[str, LoraFactors]:
    """a_0 and b_0 of every projection.

    Args:
      gradient: f32[G, in, out] of every adapted projection.
      rank: r.
    """
    return {name: gradient_factors(jnp.asarray(leaf), rank) for name, leaf in gradient.items()}


def check_gradient_rank(rank: int, model: ModelConfig, adapter: Adapter) -> None:
    """Raise `InputError` if a projection has fewer directions than twice the rank.

    Args:
      rank: r.
      model: the architecture of the model.
      adapter: has the adapted projections.
    """
    for name in adapter.lora:
        most = min(model.projection_shape(name))
        if 2 * rank > most:
            raise InputError(
                f"rank {rank} with initialization lora-ga uses {2 * rank} directions of a gradient, and that of projection "
                f"'{name}' has {most}; use rank {most // 2} or below."
            )
