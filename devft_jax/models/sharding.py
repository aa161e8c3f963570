"""A base that several devices hold together, each with an equal part of every large weight.

Divided weights (`shard_base`): the seven projections along their inputs, packed ones along their blocks of inputs, or along
their outputs if the number of devices does not divide the inputs; the head in the same way; the embedding along the width. A
weight that cannot be divided is whole on every device, like norms and biases, and is counted there (`part_bytes`,
`undivided`).

Use: every device runs its own examples through the whole model, so it needs every weight, but only one at a time. A
projection is gathered where its product is computed, and again in the backward pass, packed weights before they are
expanded; the head for the loss. An embedding is never gathered: each device looks up its part for the tokens of all devices
and the parts are exchanged. This is what ZeRO-3 (Rajbhandari et al. 2020) and FSDP (Zhao et al. 2023) do with weights; there
are no gradients of the base to scatter.

A gathered weight has the bits of the weight before it was divided, so the number of devices does not change what one of them
computes. Devices that hold a base together have to run the same products in the same order.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.base import Base, Block
from devft_jax.models.weights import FLOAT_DIVISIONS, ShardedWeight, divisions_of
from devft_jax.runtime.devices import shapes_on
from devft_jax.typing import PyTree


def _is_sharded(leaf: Any) -> bool:
    return isinstance(leaf, ShardedWeight)


def sharded(weight: Any, shards: int, axis: str, *choices: tuple[int, ...]) -> Any:
    """A weight divided over `shards` devices along the first of `choices` that allows it; unchanged if none does.

    Args:
      weight: a float array or a packed weight; arrays or shapes.
      shards: number of devices.
      axis: name of the mesh axis.
      *choices: for each array of the weight, the dimension to divide, counted from its end.
    """
    leaves = jax.tree.leaves(weight)
    for dimensions in choices:
        if all(leaf.shape[dimension] % shards == 0 for leaf, dimension in zip(leaves, dimensions, strict=True)):
            return ShardedWeight(weight, dimensions, axis)
    return weight


def shard_blocks(blocks: Block, shards: int, axis: str) -> Block:
    """Decoder layers with their projections divided over `shards` devices; unchanged for one device.

    Args:
      blocks: the layers.
      shards: number of devices.
      axis: name of the mesh axis.
    """
    if shards == 1:
        return blocks
    divided = {}
    for name in PROJECTIONS:
        weight = getattr(blocks, name)
        divided[name] = sharded(weight, shards, axis, *divisions_of(weight))
    return blocks.replace(**divided)


def shard_base(base: Base, shards: int, axis: str) -> Base:
    """A base divided over `shards` devices along a mesh axis; see the module's docstring. Nothing is moved.

    Args:
      base: arrays or shapes.
      shards: number of devices.
      axis: name of the mesh axis.
    """
    if shards == 1:
        return base
    return base.replace(
        embed=sharded(base.embed, shards, axis, (-1,)),
        head=None if base.head is None else sharded(base.head, shards, axis, *FLOAT_DIVISIONS),
        blocks=shard_blocks(base.blocks, shards, axis),
    )


def whole(tree: PyTree) -> PyTree:
    """The tree with its divided weights as ordinary arrays, for use outside of programs, where arrays span the devices.

    Args:
      tree: a tree that may have divided weights.
    """
    return jax.tree.map(lambda leaf: leaf.part if _is_sharded(leaf) else leaf, tree, is_leaf=_is_sharded)


def partition_specs(tree: PyTree) -> PyTree:
    """How each array of a tree is placed on a mesh: divided weights along their axis, everything else whole on every device.

    Args:
      tree: arrays or shapes; may have divided weights.
    """

    def of(leaf: Any) -> Any:
        if not _is_sharded(leaf):
            return PartitionSpec()
        arrays, structure = jax.tree.flatten(leaf.part)
        specs = [
            PartitionSpec(*[None] * (array.ndim + dimension), leaf.axis)
            for array, dimension in zip(arrays, leaf.dimensions, strict=True)
        ]
        return leaf.replace(part=jax.tree.unflatten(structure, specs))

    return jax.tree.map(of, tree, is_leaf=_is_sharded)


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """The tree's arrays on the devices of a mesh, placed by `partition_specs`.

    Args:
      tree: a tree that may have divided weights.
      mesh: the devices.
    """
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), partition_specs(tree)))


def place_frozen(tree: PyTree, mesh: Mesh) -> PyTree:
    """`place` for arrays that are only read: those that are whole on every device of a CPU are held once.

    All of a CPU's devices use the host's memory, but an array that is put on several of them from one of them is copied for
    each. From host memory it is used in place, as its buffer is aligned. No program may be given such an array to overwrite
    (`donate_argnums`), because other devices read the same memory.

    Args:
      tree: a tree that may have divided weights.
      mesh: the devices.
    """
    if mesh.devices.flat[0].platform == "cpu":
        tree = jax.tree.map(_in_host_memory, tree)
    return place(tree, mesh)


def _in_host_memory(leaf: Any) -> Any:
    """A view of an array on a single device of the CPU; other leaves unchanged."""
    on_one = isinstance(leaf, jax.Array) and {device.platform for device in leaf.devices()} == {"cpu"}
    return np.asarray(leaf) if on_one and len(leaf.devices()) == 1 else leaf


def placed_shapes(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes, dtypes and placement of the result of `place`.

    Args:
      tree: arrays or shapes.
      mesh: the devices.
    """
    return jax.tree.map(lambda leaf, spec: shapes_on(NamedSharding(mesh, spec), leaf), tree, partition_specs(tree))


def part_bytes(tree: PyTree, shards: int) -> int:
    """Bytes of a tree that one of `shards` devices holds.

    Args:
      tree: arrays or shapes; may have divided weights.
      shards: number of devices.
    """

    def of(leaf: Any) -> int:
        size = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(leaf))
        return size // shards if _is_sharded(leaf) else size

    return sum(of(leaf) for leaf in jax.tree.leaves(tree, is_leaf=_is_sharded))


def undivided(base: Base) -> tuple[str, ...]:
    """Names of the large weights of a divided base that every device holds whole.

    Args:
      base: a base divided by `shard_base`.
    """
    large = {"embed": base.embed, "head": base.head} | {name: getattr(base.blocks, name) for name in PROJECTIONS}
    return tuple(name for name, weight in large.items() if weight is not None and not _is_sharded(weight))
