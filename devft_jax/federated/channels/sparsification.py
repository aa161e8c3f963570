"""Messages of few entries: the largest (top-k), or a random choice (random-k), of all leaves together.

Of n entries k = floor(share x n) are sent, at least one. Top-k (Aji and Heafield, EMNLP 2017; Stich et al., NeurIPS 2018)
sends the values and their positions. Random-k draws the positions from the client's key of the round, which both sides know,
so only the values are sent. Without error feedback its values are multiplied by n / k, which makes it unbiased; with error
feedback they are sent as they are, because what is multiplied is no contraction.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from devft_jax.federated.channels.channel import Channel, compressor
from devft_jax.federated.messages import Unsent
from devft_jax.federated.sparse import Shape, Sparse, entries_sent, sparse
from devft_jax.typing import PyTree


def dense(message: Sparse) -> PyTree:
    """The pytree that a sparse message stands for.

    Args:
      message: some of its entries.
    """
    return message.dense()


def top_k(share: float, dtype: str) -> Channel:
    """The channel that sends the entries of largest magnitude.

    Args:
      share: share of the entries that is sent.
      dtype: data type of their values.
    """
    return compressor(f"topk={share:g}", lambda up, key: sparse(up, share, dtype), dense)


def random_k(share: float, dtype: str, *, unbiased: bool) -> Channel:
    """The channel that sends a random choice of entries.

    Args:
      share: share of the entries that is sent.
      dtype: data type of their values.
      unbiased: whether values are multiplied by n / k.
    """

    def encode(up: PyTree, key: jax.Array) -> Sparse:
        shape = Shape.of(up)
        vector, _ = ravel_pytree(up)
        count = entries_sent(share, shape.size)
        where = jnp.sort(jax.random.permutation(key, shape.size)[:count]).astype(jnp.int32)
        values = vector[where] * (shape.size / count if unbiased else 1.0)
        return Sparse(values=values.astype(dtype), where=Unsent(where), shape=shape)

    return compressor(f"randk={share:g}", encode, dense)
