"""Frozen weights that are not plain float arrays, and their products.

A projection of the frozen base is a float array `[in, out]` or a `Weight`: packed in fewer bits (`QTensor` of
`devft_jax.models.quantization`), read from the stack of all layers when it is used (`StackedWeight`), or divided over
devices (`ShardedWeight`, see `devft_jax.models.sharding`). The forward pass only requires that a `Weight` can be converted
to a float array for one product, and dividing a base only requires the dimensions along which it can be cut.
"""

from typing import Any, Protocol, runtime_checkable

import jax
from flax import struct

from devft_jax.typing import PyTree


@runtime_checkable
class Weight(Protocol):
    """A weight that is not a plain float array; a pytree of the arrays of which it consists."""

    def dequantize(self, dtype: Any) -> jax.Array:
        """The weight as a float array.

        Args:
          dtype: data type of the result.
        """

    @property
    def divisions(self) -> tuple[tuple[int, ...], ...]:
        """The ways in which it can be divided over devices, the best first; empty if it cannot be divided.

        A way is one dimension for each of its arrays, counted from the end.
        """


FLOAT_DIVISIONS = ((-2,), (-1,))
"""The ways in which a float array `[..., in, out]` can be divided: along its inputs, or along its outputs."""


def divisions_of(weight: Any) -> tuple[tuple[int, ...], ...]:
    """The ways in which a weight can be divided over devices, see `Weight.divisions`.

    Args:
      weight: an array or a `Weight`.
    """
    return weight.divisions if isinstance(weight, Weight) else FLOAT_DIVISIONS


def dense_weight(weight: Any, dtype: Any) -> jax.Array:
    """A weight as a float array.

    Args:
      weight: an array or a `Weight`.
      dtype: data type of the result.
    """
    return weight.dequantize(dtype) if isinstance(weight, Weight) else weight.astype(dtype)


def frozen_product(x: jax.Array, weight: Any) -> jax.Array:
    """`x [..., in] @ weight [in, out]` in `x`'s dtype.

    A `Weight` is expanded again in the backward pass: keeping the expanded weights of all layers from the forward pass would
    use the memory that quantising them saved.

    Args:
      x: [..., in].
      weight: [in, out], an array or a `Weight`.
    """
    if isinstance(weight, Weight):
        return jax.checkpoint(lambda x, weight: x @ weight.dequantize(x.dtype), prevent_cse=False)(x, weight)
    return x @ weight.astype(x.dtype)


def read_layer(stacked: PyTree, index: jax.Array) -> PyTree:
    """One layer of a tree.

    Args:
      stacked: leaves [L, ...].
      index: i32[], number of the layer.
    """
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked)


class StackedWeight(struct.PyTreeNode):
    """A `Weight`: a projection of one layer, read from the stack of all layers when it is used.

    Attributes:
      stack: [L, in, out], an array or a `Weight`.
      index: i32[], number of the layer.
    """

    stack: Any
    index: jax.Array

    @property
    def divisions(self) -> tuple[tuple[int, ...], ...]:
        """Empty: the stack is divided, not the layer that is read from it."""
        return ()

    def dequantize(self, dtype: Any) -> jax.Array:
        """The layer's weight [in, out] as a float array.

        Args:
          dtype: data type of the result.
        """
        return dense_weight(read_layer(self.stack, self.index), dtype)


class ShardedWeight(struct.PyTreeNode):
    """A `Weight` that is divided over the devices along a mesh axis.

    Inside `jax.shard_map` over that axis `part` is a device's own part, outside it is the whole. Every use gathers the
    parts, so all devices along the axis must use it at the same time; see `devft_jax.models.sharding`.

    Attributes:
      part: a float array or a packed weight.
      dimensions: for each of its arrays, the dimension that is divided, counted from the end.
      axis: name of the mesh axis.
    """

    part: Any
    dimensions: tuple[int, ...] = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)

    @property
    def divisions(self) -> tuple[tuple[int, ...], ...]:
        """Empty: it is already divided."""
        return ()

    def gathered(self) -> Any:
        """The weight before it was divided."""
        arrays, structure = jax.tree.flatten(self.part)
        wholes = [
            jax.lax.all_gather(array, self.axis, axis=array.ndim + dimension, tiled=True)
            for array, dimension in zip(arrays, self.dimensions, strict=True)
        ]
        return jax.tree.unflatten(structure, wholes)

    def dequantize(self, dtype: Any) -> jax.Array:
        """The weight as a float array; packed weights are sent packed.

        Args:
          dtype: data type of the result.
        """
        return dense_weight(self.gathered(), dtype)

    def __getitem__(self, rows: jax.Array) -> jax.Array:
        """Rows of an embedding [V, D] that is divided along D, without gathering it.

        Args:
          rows: i32[...].

        Returns:
          [..., D].
        """
        assert self.dimensions == (-1,)
        # Every device looks up its part for all of them; the rows are small compared with the embedding.
        found = self.part[jax.lax.all_gather(rows, self.axis)]
        return jax.lax.all_to_all(found, self.axis, split_axis=0, concat_axis=found.ndim - 1, tiled=True)[0]
