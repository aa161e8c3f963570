"""Fusion of a group into one layer: Eqs. 4 and 5 of the DevFT paper, and its controls, as matrices.

DBLF ("differential-based layer fusion") adds to the anchor, a group's first layer, the differences of the other layers from
it:

    vartheta_g = theta_anchor + beta * sum_{j in g} (theta_j - theta_anchor)

beta multiplies the sum, not the mean. With m layers in the group the anchor's coefficient is therefore 1 - beta (m - 1) and
every other layer's is beta; they sum to one. With beta = 0.1 the anchor's coefficient is zero at m = 11 and NEGATIVE above.
This follows from the equation and is not corrected here; `beta="auto"` = min(0.1, 1/m) per group, which is ours and not the
paper's, avoids it.

Every method is one row per group of a matrix over the layers, so that all of them share one `fuse`.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.leaves import is_concrete
from devft_jax.developmental.options import FUSIONS


def fusion_matrix(
    assign: jax.Array,
    *,
    num_groups: int | None = None,
    method: str = "dblf",
    beta: float | str = 0.1,
    key: jax.Array | None = None,
) -> jax.Array:
    """Coefficients of every layer in every representative layer: f32[G, L].

    * `dblf`: Eq. 5. `beta` is a number or "auto", min(0.1, 1/m) for a group of m layers.
    * `sum`: all coefficients 1 (the paper's Sum).
    * `r_one`: one member drawn at random with coefficient 1 (the paper's R-One); needs `key`.
    * `mean`: 1/m each.
    * `anchor`: the group's first layer alone; DBLF at beta 0.

    Args:
      assign: i32[L], the group of each layer, -1 for a layer that is absent (a zero column).
      num_groups: G; may be left out unless `assign` is traced.
      method: one of the above.
      beta: weight of the differences in `dblf`.
      key: random key for `r_one`.

    Raises:
      ValueError: the method is unknown, a key is missing, beta is neither a finite number nor "auto", or a group has no
        layer.
    """
    check_fusion(method, beta, has_key=key is not None)
    num_groups = _count_groups(assign, num_groups)
    step = None if isinstance(beta, str) else jnp.float32(beta)
    return _coefficients(jnp.asarray(assign), num_groups, method, step, key)


@functools.partial(jax.jit, static_argnames=("num_groups", "method"))
def _coefficients(
    assign: jax.Array, num_groups: int, method: str, beta: jax.Array | None, key: jax.Array | None
) -> jax.Array:
    """`fusion_matrix` after its arguments were checked; `beta` None means "auto"."""
    member = assign[None, :] == jnp.arange(num_groups, dtype=jnp.int32)[:, None]
    size = member.sum(axis=1, keepdims=True, dtype=jnp.float32)
    if method == "sum":
        return member.astype(jnp.float32)
    if method == "mean":
        return member / jnp.maximum(size, 1.0)
    if method == "r_one":
        assert key is not None
        drawn = jnp.where(member, jax.random.uniform(key, assign.shape, jnp.float32), -1.0).argmax(axis=1)
        return _one_hot(drawn, member)
    anchor = _one_hot(member.argmax(axis=1), member)
    if method == "anchor":
        return anchor
    step = jnp.minimum(0.1, 1.0 / jnp.maximum(size, 1.0)) if beta is None else beta
    return jnp.where(anchor > 0, 1.0 - step * (size - 1.0), step * member)


@jax.jit
def norm_gains(gram: jax.Array, matrix: jax.Array, assign: jax.Array) -> jax.Array:
    """The factors that give fused layers of one weight the mean norm of their groups' layers: f32[G].

    For nearly orthogonal layers of norm r the fused one has norm r sqrt(sum of squared coefficients), 0.55 r in a group of
    five with DBLF at 0.1: products of such weights, as in attention and in the MLP, shrink with a power of it. The factor
    undoes this without changing the direction; ours, not the paper's. It is 1 for a fused layer of norm 0.

    Args:
      gram: f32[L, L], inner products of the layers of this weight.
      matrix: f32[G, L], coefficients of `fusion_matrix`.
      assign: i32[L], the group of each layer, -1 for none.
    """
    member = (assign[None, :] == jnp.arange(matrix.shape[0], dtype=jnp.int32)[:, None]).astype(jnp.float32)
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0.0))
    mean = (member * norms[None, :]).sum(axis=1) / jnp.maximum(member.sum(axis=1), 1.0)
    square = jnp.einsum("gl,lm,gm->g", matrix, gram, matrix, precision=jax.lax.Precision.HIGHEST)
    fused = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return jnp.where((square > 0) & (mean > 0), mean / fused, 1.0)


def check_fusion(method: str, beta: Any, *, has_key: bool) -> None:
    """Check the arguments of `fusion_matrix`; reads no weights.

    Args:
      method: the fusion method.
      beta: a number or "auto".
      has_key: whether a key will be given.

    Raises:
      ValueError: an argument is invalid.
    """
    if method not in FUSIONS:
        raise ValueError(f"fusion method {method!r} is unknown: choose from {', '.join(FUSIONS)}.")
    if method == "r_one" and not has_key:
        raise ValueError("fusion method 'r_one' draws one layer per group: give it a key.")
    if isinstance(beta, str) and beta != "auto":
        raise ValueError(f"beta {beta!r} must be a finite number, such as 0.1, or 'auto'.")
    if isinstance(beta, (int, float)) and not np.isfinite(beta):
        raise ValueError(f"beta {beta} must be a finite number, such as 0.1, or 'auto'.")


@functools.partial(jax.jit, static_argnames="num_groups")
def anchors(assign: jax.Array, num_groups: int) -> jax.Array:
    """The first layer of every group: i32[G]. Groups without layers give 0.

    Args:
      assign: i32[L], the group of each layer, -1 for none.
      num_groups: G.
    """
    member = jnp.asarray(assign)[None, :] == jnp.arange(num_groups, dtype=jnp.int32)[:, None]
    return member.argmax(axis=1).astype(jnp.int32)


def _one_hot(layers: jax.Array, member: jax.Array) -> jax.Array:
    chosen = jnp.arange(member.shape[1], dtype=jnp.int32)[None, :] == layers[:, None]
    return (chosen & member).astype(jnp.float32)


def _count_groups(assign: jax.Array, num_groups: int | None) -> int:
    if not is_concrete(assign):
        if num_groups is None:
            raise ValueError("num_groups is missing: it cannot be derived from a traced assign, so give it.")
        return operator.index(num_groups)
    ids = np.asarray(assign)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"assign has shape {ids.shape} and dtype {ids.dtype}: give one group id per layer, i32[L].")
    count = int(ids.max()) + 1 if num_groups is None else operator.index(num_groups)
    missing = sorted(set(range(count)) - set(ids.tolist()))
    if missing or count < 1:
        raise ValueError(
            f"assign leaves group {missing[0] if missing else 0} without a layer: "
            "number the groups 0..G-1 and give each at least one layer."
        )
    if ids.max() >= count or ids.min() < -1:
        raise ValueError(
            f"assign holds group ids from {ids.min()} to {ids.max()}, but num_groups is {count}: "
            f"use 0..{count - 1}, or -1 for an absent layer."
        )
    return count
