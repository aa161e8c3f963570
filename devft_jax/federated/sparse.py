"""Sparse messages: some entries of a pytree, with their positions.

All leaves together are one vector, in the order of `ravel_pytree`. A message has the values of the chosen entries and,
whichever is smaller, their positions as int32 or one bit per entry; if all entries are sent there are no positions.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.flatten_util import ravel_pytree

from devft_jax.federated.messages import Unsent
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class Shape:
    """The structure and shapes of a pytree, known to both sides of a message.

    Attributes:
      structure: structure of the pytree.
      shapes: shapes of its leaves.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tree: PyTree) -> Self:
        """The shape of a pytree of arrays.

        Args:
          tree: a tree of arrays.
        """
        return cls(structure=jax.tree.structure(tree), shapes=tuple(leaf.shape for leaf in jax.tree.leaves(tree)))

    @property
    def size(self) -> int:
        """Number of entries of all leaves."""
        return sum(math.prod(shape) for shape in self.shapes)

    def unravel(self, vector: jax.Array) -> PyTree:
        """The pytree with these entries.

        Args:
          vector: f32[size], in the order of `ravel_pytree`.
        """
        leaves, first = [], 0
        for shape in self.shapes:
            leaves.append(vector[first : first + math.prod(shape)].reshape(shape))
            first += math.prod(shape)
        return jax.tree.unflatten(self.structure, leaves)


class Sparse(struct.PyTreeNode):
    """Some entries of a pytree.

    Attributes:
      values: [k], in the order of their positions.
      where: the positions, i32[k] ascending, or one bit per entry u8[ceil(size / 8)], or None if all entries are sent;
        `Unsent` if the receiver knows the positions.
      shape: shape of the pytree.
    """

    values: jax.Array
    where: jax.Array | Unsent | None
    shape: Shape = struct.field(pytree_node=False)

    def dense(self) -> PyTree:
        """The pytree in float32, with zeros for all other entries."""
        values, size = self.values.astype(jnp.float32), self.shape.size
        where: Any = self.where.value if isinstance(self.where, Unsent) else self.where
        if where is None:
            return self.shape.unravel(values)
        if where.dtype == jnp.int32:
            return self.shape.unravel(jnp.zeros(size, jnp.float32).at[where].set(values))
        chosen = jnp.unpackbits(where, count=size).astype(bool)
        return self.shape.unravel(jnp.where(chosen, values[jnp.maximum(jnp.cumsum(chosen) - 1, 0)], 0))


def entries_sent(density: float, size: int) -> int:
    """floor(density x size), at least 1, computed from the decimal digits of the density: 0.07 of 100 is 7, 0.29 is 29.

    Args:
      density: share of the entries.
      size: number of entries.
    """
    return max(1, math.floor(Fraction(str(density)) * size))


def sparse(tree: PyTree, density: float, dtype: str) -> Sparse:
    """The floor(density x entries) entries of `tree` of largest magnitude, at least one, in messages of `dtype`.

    Args:
      tree: a tree of floats.
      density: share of its entries.
      dtype: data type of messages.
    """
    shape = Shape.of(tree)
    vector, _ = ravel_pytree(tree)
    count = entries_sent(density, shape.size)
    if count == shape.size:
        return Sparse(values=vector.astype(dtype), where=None, shape=shape)
    where = jnp.sort(jax.lax.top_k(jnp.abs(vector), count)[1])
    values = vector[where].astype(dtype)
    if 4 * count > math.ceil(shape.size / 8):
        where = jnp.packbits(jnp.zeros(shape.size, jnp.uint8).at[where].set(1))
    return Sparse(values=values, where=where, shape=shape)
