"""How the similarity of layers is measured: Eq. 1 of the DevFT paper, and other measures for its place.

From the weights, as inner products that are read once (`LayerGrams`):

    weights          Eq. 1: cosine of all parameters of the layers (the paper)
    without_norms    of all but the weights of the norms
    norms            of the weights of the norms alone
    projections      the mean of the cosines of q, k, v, o, gate, up and down
    q ... down       of one projection alone

From what the layers compute on public text, with x_l [n, D] the output of layer l at n tokens:

    hidden           mean over tokens of cos(x_i, x_j)
    cka              linear CKA (Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019):
                     <K_i, K_j> / (||K_i|| ||K_j||),  K_l = X_l X_l^T of the centred outputs
    influence        exp(-sum_{i < l <= j} BI_l), BI_l = 1 - mean cos(x_{l-1}, x_l): layers between which little changes

Only `weights` is the paper's; the others are ours, or named in studies of layers, and are compared by `devft probe`.
"""

import functools
import re

import jax
import jax.numpy as jnp

from devft_jax.developmental.options import PROJECTIONS
from devft_jax.developmental.similarity import LayerGrams, Select, layer_similarity, similarity_from_gram

_NORM = re.compile(r"\.norm_\w+$")


def selection(measure: str) -> Select | None:
    """Predicate on leaf paths: what a measure of weights compares; None for everything.

    Args:
      measure: a member of `OF_WEIGHTS` other than `projections`.
    """
    if measure == "weights":
        return None
    if measure == "norms":
        return lambda path: _NORM.search(path) is not None
    if measure == "without_norms":
        return lambda path: _NORM.search(path) is None
    return lambda path: path.endswith(f".{measure}")


def weight_similarity(grams: LayerGrams, measure: str, *, select: Select | None = None) -> jax.Array:
    """The similarity of layers by their weights: f32[L, L].

    Args:
      grams: inner products between the layers.
      measure: a member of `OF_WEIGHTS`.
      select: restricts the measure `weights`; None for all leaves.

    Raises:
      ValueError: the tree has none of the leaves that the measure compares.
    """
    if measure == "weights":
        return layer_similarity(grams, select=select)
    if measure != "projections":
        return layer_similarity(grams, select=selection(measure))
    found = [layer_similarity(grams, select=selection(name)) for name in PROJECTIONS]
    return functools.reduce(jnp.add, found) / len(found)


@jax.jit
def linear_cka(states: jax.Array) -> jax.Array:
    """Linear CKA between the outputs of layers: f32[L, L], 1 on the diagonal.

    It does not change if the outputs of a layer are rotated, or scaled. A layer with constant outputs has 0 to all others.

    Args:
      states: [L, n, D], the outputs at n tokens.
    """
    wide = states.astype(jnp.float32)
    centred = wide - wide.mean(axis=1, keepdims=True)
    kernels = jnp.einsum("lnd,lmd->lnm", centred, centred, precision=jax.lax.Precision.HIGHEST)
    # Kernels of outputs of any size are compared by their directions; without this, squares of large outputs overflow.
    kernels /= jnp.maximum(jnp.abs(kernels).max(axis=(1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)
    gram = jnp.einsum("inm,jnm->ij", kernels, kernels, precision=jax.lax.Precision.HIGHEST)
    return similarity_from_gram(gram)


@jax.jit
def token_cosines(states: jax.Array) -> jax.Array:
    """The mean over tokens of the cosine between the outputs of layers: f32[L, L], 1 on the diagonal.

    Args:
      states: [L, n, D], the outputs at n tokens.
    """
    wide = states.astype(jnp.float32)
    norms = jnp.linalg.norm(wide, axis=-1, keepdims=True)
    unit = wide / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
    return jnp.einsum("ind,jnd->ij", unit, unit, precision=jax.lax.Precision.HIGHEST) / states.shape[1]


@jax.jit
def influence_similarity(influence: jax.Array) -> jax.Array:
    """exp(-sum of the influences of the layers above i up to j) for i < j: f32[L, L], symmetric, 1 on the diagonal.

    Args:
      influence: f32[L], the block influence of every layer.
    """
    passed = jnp.cumsum(influence)
    return jnp.exp(-jnp.abs(passed[:, None] - passed[None, :]))
