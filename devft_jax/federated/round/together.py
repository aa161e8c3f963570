"""What several processes exchange in a round: the sums over their devices, and what they report of their participants.

A chunk is divided over the devices of all processes, in the processes' order, and each process assembles and runs only its
own devices' part. The sums over all devices are added in the devices' order, as one process with these devices adds them
(`devft_jax.federated.round.server.add_over_devices`): the result has the same bits. Every device adds a part of the
elements, so a process receives about as much as for a sum in any order:

    sums            [devices, n], each device has its row
    by elements     each device has n / devices columns of all rows, and adds the rows one after the other
    total           all columns, on every device
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.federated.round.chunk import ClientOutputs
from devft_jax.federated.round.in_flight import ChunkTooLargeError
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.processes import Processes
from devft_jax.typing import PyTree


@shared_programs
def jit_add_in_order(mesh: Mesh) -> jax.stages.Wrapped:
    """Leaves [devices, ...], a row on each device -> their sums [1, ...] on every device; jitted.

    Args:
      mesh: all devices.
    """
    by_elements = NamedSharding(mesh, PartitionSpec(None, mesh.axis_names))

    def one(leaf: jax.Array) -> jax.Array:
        size = math.prod(leaf.shape[1:])
        rows = leaf.reshape(mesh.size, size)
        rows = jnp.pad(rows, ((0, 0), (0, -size % mesh.size)))
        rows = jax.lax.with_sharding_constraint(rows, by_elements)
        total, _ = jax.lax.scan(lambda total, row: (total + row, None), rows[0], rows[1:])
        return total[:size].reshape(1, *leaf.shape[1:])

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda leaves: [one(leaf) for leaf in leaves], out_shardings=everywhere)


def add_over_processes(programs: CompiledPrograms, sums: PyTree, mesh: Mesh) -> PyTree:
    """The sum over the devices of all processes, in the mesh's order; called by all processes.

    Args:
      programs: compiles and counts the addition.
      sums: [devices, ...], divided over the devices of all processes.
      mesh: these devices.

    Returns:
      The sum [1, ...] on this process's first device.
    """
    leaves, structure = jax.tree.flatten(sums)
    if not leaves:
        return sums
    totals = programs.call("add", jit_add_in_order(mesh), leaves)
    first = mesh.local_devices[0]
    held = [next(shard.data for shard in total.addressable_shards if shard.device == first) for total in totals]
    return jax.tree.unflatten(structure, held)


def agree_on_size(processes: Processes, failure: BaseException | None, size: int) -> None:
    """Raise `ChunkTooLargeError` in all processes if a chunk did not fit into the memory of one; called by all.

    Args:
      processes: the processes.
      failure: what this process's chunks raised; None if they have finished.
      size: clients of a chunk.

    Raises:
      ChunkTooLargeError: a chunk did not fit.
    """
    mine = failure.begun if isinstance(failure, ChunkTooLargeError) else None
    begun = [each for each in processes.of_all(mine) if each is not None]
    if begun:
        raise ChunkTooLargeError(size, any(begun)) from failure


def outputs_of_all(processes: Processes, own: tuple[np.ndarray, ClientOutputs], places: int) -> tuple[np.ndarray, Any]:
    """The outputs of all processes' participants; called by all processes.

    Args:
      processes: the processes.
      own: this process's participants: their places in the cohort, and their outputs.
      places: as many as a process may have at most; equal in all processes.

    Returns:
      The same for all participants.
    """
    slots, outputs = own

    def padded(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.zeros((places - len(leaf), *leaf.shape[1:]), leaf.dtype)])

    marks = np.full(places, -1, np.int32)
    marks[: len(slots)] = slots
    all_marks, found = processes.gathered((marks, jax.tree.map(padded, outputs)))
    real = all_marks.ravel() >= 0
    return all_marks.ravel()[real], jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[real], found)
