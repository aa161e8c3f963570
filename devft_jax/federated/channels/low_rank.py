"""Messages of low rank: the best approximation of every matrix by two factors.

A matrix M [m, n] (the last two axes of a leaf) of which n is the smaller side is projected onto its q leading right singular
vectors V [n, q], the eigenvectors of M^T M with the largest eigenvalues,

    M ~ (M V) V^T,

the nearest matrix of rank q in the Frobenius norm, and never larger than M: a contraction, though a biased one. Where m is
the smaller side it is M's transpose. The client sends M V and V^T, (m + n) q numbers, and a leaf that would not be smaller,
such as a vector, as it is. Unlike PowerSGD (Vogels et al., NeurIPS 2019), which iterates on the mean of all clients, every
client approximates its own change, so that messages can be streamed.
"""

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.federated.channels.channel import Channel, as_floats, compressor
from devft_jax.typing import PyTree


class Factored(struct.PyTreeNode):
    """One leaf as two factors.

    Attributes:
      left: [..., m, q].
      right: [..., q, n].
    """

    left: jax.Array
    right: jax.Array


def factored(leaf: jax.Array, rank: int, dtype: str) -> Factored | jax.Array:
    """A leaf's nearest factors, or the leaf itself if they were not smaller.

    Args:
      leaf: f32[..., m, n].
      rank: q.
      dtype: data type of messages.
    """
    if leaf.ndim < 2 or rank * sum(leaf.shape[-2:]) >= leaf.shape[-2] * leaf.shape[-1]:
        return leaf.astype(dtype)
    tall = leaf.shape[-2] >= leaf.shape[-1]
    matrix = leaf if tall else jnp.swapaxes(leaf, -1, -2)
    gram = jnp.matmul(jnp.swapaxes(matrix, -1, -2), matrix, precision="highest")
    # Eigenvalues ascend.
    basis = jnp.linalg.eigh(gram)[1][..., -rank:]
    projected = jnp.matmul(matrix, basis, precision="highest")
    if not tall:
        basis, projected = projected, basis
    return Factored(left=projected.astype(dtype), right=jnp.swapaxes(basis, -1, -2).astype(dtype))


def low_rank(rank: int, dtype: str) -> Channel:
    """The channel that sends matrices as factors.

    Args:
      rank: q.
      dtype: data type of the factors.
    """

    def decode(message: PyTree) -> PyTree:
        def one(leaf: Factored | jax.Array) -> jax.Array:
            if isinstance(leaf, Factored):
                return jnp.matmul(leaf.left, leaf.right, precision="highest")
            return leaf

        return jax.tree.map(one, as_floats(message), is_leaf=lambda leaf: isinstance(leaf, Factored))

    return compressor(f"lowrank={rank}", lambda up, key: jax.tree.map(lambda leaf: factored(leaf, rank, dtype), up), decode)
