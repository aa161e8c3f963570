"""Gauge alignment: rotates the low-rank factors of a group's layers to agree before they are fused factor by factor.

The product of factors a [in, r], b [r, out] does not change under an orthogonal R [r, r]: (a R)(R^T b) = a b. A layer's R is
therefore arbitrary, but a weighted sum of factors, as in fusion, depends on it: the product of sums is closest
to the sum of products if all layers of a group use the same R. For layer j of a group with anchor k (its first layer) the R
that brings both factors closest to the anchor's,

    min_R ||a_j R - a_k||_F^2 + ||R^T b_j - b_k||_F^2,

is the orthogonal Procrustes solution R = U V^T of the singular value decomposition U S V^T of a_j^T a_k + b_j b_k^T
(Schoenemann 1966). This is our addition: the paper's DevFT fuses the factors without it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from devft_jax.developmental.fusion import anchors
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.rotation import nearest_orthogonal


def align_factors(layer_map: LayerMap, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The factors of one projection, with every layer's rotated to its anchor's; traceable.

    Factors of layers that are not mixed with others are unchanged bit for bit: anchors, absent layers, and the members of a
    group whose representative selects a single layer.

    Args:
      layer_map: the map of the stage that will be fused.
      a: f32[L, in, r].
      b: f32[L, r, out].

    Returns:
      a and b, rotated.
    """
    if layer_map.selected() is not None:
        return a, b
    group = jnp.maximum(layer_map.assign, 0)
    anchor = anchors(layer_map.assign, layer_map.num_groups)[group]
    mixes = jnp.count_nonzero(layer_map.fuse, axis=1) > 1
    rotates = (layer_map.assign >= 0) & mixes[group] & (anchor != jnp.arange(layer_map.num_layers, dtype=jnp.int32))
    rotation = procrustes(a, b, a[anchor], b[anchor])
    exact = lax.Precision.HIGHEST
    rotated_a = jnp.einsum("lir,lrs->lis", a, rotation, precision=exact)
    rotated_b = jnp.einsum("lrs,lro->lso", rotation, b, precision=exact)
    rotates = rotates[:, None, None]
    return jnp.where(rotates, rotated_a, a), jnp.where(rotates, rotated_b, b)


def procrustes(a: jax.Array, b: jax.Array, to_a: jax.Array, to_b: jax.Array) -> jax.Array:
    """The orthogonal f32[L, r, r] that bring (a R, R^T b) closest to other factors.

    Args:
      a: f32[L, in, r].
      b: f32[L, r, out].
      to_a: f32[L, in, r], the factors to approach.
      to_b: f32[L, r, out], the factors to approach.
    """
    exact = lax.Precision.HIGHEST
    inputs = jnp.einsum("lir,lis->lrs", a, to_a, precision=exact)
    outputs = jnp.einsum("lro,lso->lrs", b, to_b, precision=exact)
    return nearest_orthogonal(inputs + outputs)
