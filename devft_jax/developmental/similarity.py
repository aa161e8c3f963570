"""Eq. 1 of the DevFT paper: cosine similarity of whole layers.

    W_ij = <theta_i, theta_j> / (||theta_i|| ||theta_j||)

theta_i is all parameters of layer i as one vector, including its LoRA factors if they are in the tree. The vectors are never
formed. Inner products add over leaves, so each leaf gives one `[L, L]` Gram matrix in a single read, and everything else
(norms, cosines, the distances of Lemma 1) follows from their sum. LoRA is a quarter of a percent of a 7B layer, so it hardly
changes W unless the base is left out.

Choices that the paper does not specify: the factors are compared as they are (not merged into W), norm weights count, 4-bit
weights are dequantised first, negative similarities are kept, and the diagonal is what the formula gives. `select`
restricts theta_i, for example to exclude the norms.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from devft_jax.developmental import streaming
from devft_jax.developmental.leaves import count_layers, named_leaves

Select = Callable[[str], bool]


class LayerGrams:
    """The inner products between the layers of a tree, computed on first use and then kept.

    Every function of this package that needs only inner products of a tree also accepts `LayerGrams(tree)`, so that a
    trainer that logs similarity, groups and transition gap reads the weights once. The tree must not change in between.

    Attributes:
      tree: the weights, every leaf `[L, ...]`.
      num_layers: L.
    """

    def __init__(self, tree: Any) -> None:
        """Check the shapes of `tree`; reads no weights yet."""
        self.num_layers: int = count_layers(tree)
        self.tree = tree

    @functools.cached_property
    def per_leaf(self) -> dict[str, jax.Array]:
        """Gram matrix f32[L, L] of every leaf by its `jax.tree_util.keystr` path."""
        leaves = named_leaves(self.tree)
        return {path: streaming.gram(leaf) for path, leaf in leaves}

    def gram(self, select: Select | None = None) -> jax.Array:
        """f32[L, L], the sum over the leaves whose path is selected.

        Args:
          select: predicate on the `jax.tree_util.keystr` path of a leaf; None for all leaves.
        """
        chosen = _chosen(list(self.per_leaf), select)
        return functools.reduce(jnp.add, [self.per_leaf[path] for path in chosen])


def _chosen(paths: list[str], select: Select | None) -> list[str]:
    chosen = [path for path in paths if select is None or select(path)]
    if not chosen:
        some = ", ".join(paths[:4])
        raise ValueError(
            f"select accepts none of the tree's {len(paths)} leaves: let it accept at least one path, such as {some}."
        )
    return chosen


def layer_gram(tree: Any, *, select: Select | None = None) -> jax.Array:
    """Inner products <theta_i, theta_j> of the layers of a tree: f32[L, L].

    Leaves are read once, in blocks; float32 sums.

    Args:
      tree: any pytree whose leaves begin with axis L, or `LayerGrams` of one.
      select: predicate on the `jax.tree_util.keystr` path of a leaf; None for all leaves.

    Raises:
      ValueError: a leaf does not begin with axis L, or `select` accepts none.
    """
    if isinstance(tree, LayerGrams):
        return tree.gram(select)
    count_layers(tree)
    leaves = dict(named_leaves(tree))
    grams = [streaming.gram(leaves[path]) for path in _chosen(list(leaves), select)]
    return functools.reduce(jnp.add, grams)


def layer_similarity(tree: Any, *, select: Select | None = None) -> jax.Array:
    """Eq. 1, cosine similarity of the layers of a tree: f32[L, L].

    A layer whose weights are all zero has similarity 0 to every layer, itself included.

    Args:
      tree: as in `layer_gram`.
      select: as in `layer_gram`.
    """
    return similarity_from_gram(layer_gram(tree, select=select))


@jax.jit
def similarity_from_gram(gram: jax.Array) -> jax.Array:
    """Cosine similarities from inner products: f32[L, L], zero where a norm is zero.

    Args:
      gram: f32[L, L].
    """
    squares = jnp.diagonal(gram)
    positive = squares > 0
    # The inner `where` keeps the gradient finite at a zero norm, the outer one sets the value there.
    scale = jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squares, 1.0)), 0.0)
    return gram * scale[:, None] * scale[None, :]
