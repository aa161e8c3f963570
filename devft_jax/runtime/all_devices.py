"""Programs on the devices of all processes: each process runs its part on its own devices, and exchanges nothing.

Compiled for one device, a program may round differently than for several, because the compiler simplifies it otherwise. So
that several processes compute the bits of one process with as many devices, a program is compiled for the devices of all,
and a process's arrays are seen as its part of arrays of all (no copy is made):

    whole on every device            [n]          [n]
    divided over the devices         [C, ...]     [P C, ...]

One process sees its arrays as they are.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from devft_jax.runtime.devices import CLIENT_AXIS, OVER_DEVICES
from devft_jax.runtime.processes import Processes
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class AllDevices:
    """The devices of all processes.

    Attributes:
      own: this process's devices, as `client_mesh` arranges them.
      mesh: those of all processes, in the processes' order.
      count: P, the number of processes.
    """

    own: Mesh
    mesh: Mesh
    count: int

    @classmethod
    def of(cls, processes: Processes, own: Mesh) -> "AllDevices":
        """Called by all processes.

        Args:
          processes: the processes.
          own: this process's devices, as many in every process.
        """
        if not processes.several:
            return cls(own, own, 1)
        by_id = {device.id: device for device in jax.devices()}
        found = processes.of_all([device.id for device in own.devices.flat])
        devices = np.array([by_id[number] for some in found for number in some])
        shape = (own.devices.shape[0] * processes.count, *own.devices.shape[1:])
        return cls(own, Mesh(devices.reshape(shape), own.axis_names, axis_types=own.axis_types), processes.count)

    @property
    def split(self) -> NamedSharding:
        """Divided over all devices along the first axis."""
        return NamedSharding(self.mesh, OVER_DEVICES)

    def together(self, tree: PyTree) -> PyTree:
        """Arrays on this process's devices as its part of arrays on all devices.

        Args:
          tree: arrays, or shapes with their sharding.
        """
        return tree if self.count == 1 else jax.tree.map(self._together, tree)

    def apart(self, tree: PyTree) -> PyTree:
        """This process's part of arrays that are divided over all devices along the first axis.

        Args:
          tree: arrays.
        """
        return tree if self.count == 1 else jax.tree.map(self._apart, tree)

    def _together(self, leaf: Any) -> Any:
        sharding = NamedSharding(self.mesh, leaf.sharding.spec)
        axes = [axes if isinstance(axes, tuple) else (axes,) for axes in sharding.spec]
        sizes = [self.count if CLIENT_AXIS in axes else 1 for axes in axes] + [1] * (leaf.ndim - len(axes))
        shape = tuple(size * factor for size, factor in zip(leaf.shape, sizes, strict=True))
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type)
        return jax.make_array_from_single_device_arrays(shape, sharding, [shard.data for shard in leaf.addressable_shards])

    def _apart(self, leaf: jax.Array) -> jax.Array:
        shape = (leaf.shape[0] // self.count, *leaf.shape[1:])
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(self.own, OVER_DEVICES), parts)
