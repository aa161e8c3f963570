"""The server's part of a round: its broadcast at the beginning, and at the end its new state from the sum over all clients.

    (down, known)      broadcast(server), known(server)
    sums               the sum of `contribution(up, share)` over all clients, each device's part added up here
    server, metrics    finalize(server, sums)

A server's trees are on the first device, whole.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.messages import message_bytes, ranks_of
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.typing import PyTree


def broadcast_of(algorithm: Algorithm, server: PyTree) -> tuple[PyTree, PyTree]:
    """What the server sends, before it is addressed to a client, and what clients know without a message."""
    return algorithm.broadcast(server), algorithm.known(server)


@shared_programs
def jit_broadcast(algorithm: Algorithm) -> jax.stages.Wrapped:
    """`broadcast_of`, jitted."""
    return jax.jit(partial(broadcast_of, algorithm))


@shared_programs
def jit_finalize(algorithm: Algorithm) -> jax.stages.Wrapped:
    """An algorithm's `finalize` for the server and sums [1, ...] over all devices; jitted."""

    def finalize(server: PyTree, sums: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        return algorithm.finalize(server, jax.tree.map(lambda leaf: leaf[0], sums))

    return jax.jit(finalize)


@shared_programs
def jit_add() -> jax.stages.Wrapped:
    """The sum of two trees, written into the second's buffers; jitted."""
    return jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=1)


def add_over_devices(programs: CompiledPrograms, sums: PyTree) -> PyTree:
    """The devices' sums, added on the first device in the devices' order.

    Each device's part is copied only when it is needed: the first device never holds more than its own part, the total, and
    the part to be added.

    Args:
      programs: compiles and counts the addition.
      sums: [devices, ...], sharded over the devices.

    Returns:
      Their sum [1, ...].
    """
    leaves, structure = jax.tree.flatten(sums)
    if not leaves:
        return sums
    shards = [sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0) for leaf in leaves]
    first = shards[0][0].device
    total, *others = ([shard.data for shard in of_device] for of_device in zip(*shards, strict=True))
    for part in others:
        total = programs.call("add", jit_add(), total, jax.device_put(part, first))
        # Without waiting, the copy of the next part would start now.
        jax.block_until_ready(total)
    return jax.tree.unflatten(structure, total)


def cumulative_bytes(algorithm: Algorithm, down: PyTree, ranks: Sequence[np.ndarray] = ()) -> int:
    """Bytes of the part of a downlink that a client needs of every round, also of rounds that it missed.

    Args:
      algorithm: its `cumulative` gives this part.
      down: the downlink of one client, arrays or shapes.
      ranks: i32[C] per leaf, ranks of the clients if messages differ in rank; the first client counts.
    """
    if algorithm.cumulative is None:
        return 0
    part = jax.eval_shape(algorithm.cumulative, down)
    return message_bytes(part, [int(each[0]) for each in ranks] if ranks and ranks_of(part) else None)
