"""The compiled unit of a round: several clients at once, on all devices.

    chunk(inputs, sums) -> (sums, outputs)

Clients run under `vmap` (a device's part of the chunk) and their local steps under `scan`; the client axis C is
sharded over the local devices. The base is shared by all clients, never copied per client. Only the sums are donated: the
round's total is accumulated in one buffer, while base and broadcast are also used by the next chunk.

Each device keeps sums of its own clients, which are added once, at the end of the round (`add_over_devices`): if each
device has the base, a chunk contains no collective operation, so devices never wait for each other.

Devices that hold the base together (`devft_jax.models.sharding`) gather its weights when they need them. A collective
operation that only some devices of a group reach would never end, or mix up two exchanges. A decision that depends on data
and has a collective inside is therefore made by the whole group: the padded length of a pass (`Passes.group`). The loss's
loop over blocks of tokens, whose number each device decides alone, has no collective inside, because the head is gathered
before it. Two chunks may still be in flight: a device runs its programs in the order of their launch, and XLA gives host
devices, which share a pool of threads, a program of several devices only when the previous one has finished.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from devft_jax.federated.algorithm import Algorithm, Share
from devft_jax.federated.local import Batch, LocalStatistics, local_train, make_optimizer
from devft_jax.federated.messages import ranks_of
from devft_jax.federated.round.client import LocalTraining, client_loss, participant_of
from devft_jax.federated.sampling import client_keys
from devft_jax.models.base import Base
from devft_jax.models.sharding import partition_specs
from devft_jax.runtime.compiled import shared_programs
from devft_jax.runtime.devices import MODEL_AXIS, OVER_DEVICES, shapes_on
from devft_jax.typing import PyTree

# Name of the `vmap` over the clients that a device trains at once.
CHUNK_AXIS = "chunk"


class RoundInputs(struct.PyTreeNode):
    """What all chunks of a round share.

    Attributes:
      base: the stage's frozen model.
      broadcast: what the server sends, before it is addressed, and what clients know without a message.
      lr: f32[], the round's learning rate.
      train_rows: bool[G], which of the stage's layers learn.
    """

    base: Base
    broadcast: tuple[PyTree, PyTree]
    lr: jax.Array
    train_rows: jax.Array


class ClientInputs(struct.PyTreeNode):
    """The clients' own inputs: for C clients, or for one if the axis C is mapped away.

    Attributes:
      rows: [C, ...], what they have kept of earlier rounds.
      batches: tokens i32[C, S, B, T] and mask bool[C, S, B, T]; if the layers below the adapter's do not run, also their
        hidden states [C, S, B, T, D].
      shares: weights f32[C] and slots i32[C] of their messages.
      keys: key[C], for their random draws.
      steps: i32[C], how many of the S local steps each takes; None if all take all.
      scales: f32[C], factors of their messages, which are changes; None if no message is scaled.
    """

    rows: PyTree
    batches: Batch
    shares: Share
    keys: jax.Array
    steps: jax.Array | None = None
    scales: jax.Array | None = None


class ChunkInputs(struct.PyTreeNode):
    """All inputs of a chunk.

    Attributes:
      shared: the same for all clients, whole on every device except for a base that is divided over them.
      clients: each client's own inputs, divided over the devices.
    """

    shared: RoundInputs
    clients: ClientInputs


class ClientOutputs(struct.PyTreeNode):
    """What a chunk reports of its clients, divided over the devices.

    Attributes:
      rows: [C, ...], what they keep for later rounds; unchanged for a client whose update is not finite.
      statistics: of their local training.
      ranks: i32[C] per leaf, of the messages down and up if clients differ in rank.
    """

    rows: PyTree
    statistics: LocalStatistics
    ranks: PyTree


def chunk_specs(base: Base) -> ChunkInputs:
    """How a chunk's inputs are divided over the devices: a partition spec for each leaf, or for a whole subtree."""
    whole: Any = PartitionSpec()
    by_client: Any = OVER_DEVICES
    shared = RoundInputs(base=partition_specs(base), broadcast=whole, lr=whole, train_rows=whole)
    return ChunkInputs(shared=shared, clients=by_client)


def chunk_shapes(
    mesh: Mesh,
    base: Base,
    broadcast: tuple[PyTree, PyTree],
    row: PyTree,
    batch: PyTree,
    train_rows: Any,
    *,
    clients: int,
    partial_work: bool = False,
    scaled: bool = False,
) -> ChunkInputs:
    """Shapes, dtypes and placement of a chunk's inputs. All trees may hold arrays or shapes.

    Args:
      mesh: the devices.
      base: shapes of the stage's model, already placed (`devft_jax.models.sharding.placed_shapes`).
      broadcast: what the server sends, and what clients know without a message.
      row: what one client keeps.
      batch: one client's examples, [S, B, ...].
      train_rows: bool[G].
      clients: C.
      partial_work: whether clients may take fewer local steps than S.
      scaled: whether messages have factors.
    """
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, OVER_DEVICES)
    share = jax.eval_shape(lambda: Share(jnp.float32(1.0), jnp.int32(0)))
    ids = jax.ShapeDtypeStruct((clients,), np.uint32)
    rate = jax.ShapeDtypeStruct((), np.float32)
    broadcast, lr, train_rows = shapes_on(whole, (broadcast, rate, train_rows))
    rows, batches, shares = shapes_on(split, (row, batch, share), clients)
    keys = shapes_on(split, jax.eval_shape(partial(client_keys, 0, 0), ids))
    steps = shapes_on(split, jax.ShapeDtypeStruct((clients,), np.int32)) if partial_work else None
    scales = shapes_on(split, jax.ShapeDtypeStruct((clients,), np.float32)) if scaled else None
    return ChunkInputs(
        shared=RoundInputs(base=base, broadcast=broadcast, lr=lr, train_rows=train_rows),
        clients=ClientInputs(rows=rows, batches=batches, shares=shares, keys=keys, steps=steps, scales=scales),
    )


def all_finite(tree: PyTree) -> jax.Array:
    """bool[], whether no element of any leaf is NaN or infinite."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def scaled_message(up: PyTree, scale: jax.Array) -> PyTree:
    """A message of changes times a factor, in float32.

    Args:
      up: the message.
      scale: f32[].
    """
    return jax.tree.map(lambda leaf: scale * leaf.astype(jnp.float32), up)


def train_client(training: LocalTraining, shared: RoundInputs, client: ClientInputs) -> tuple[PyTree, ClientOutputs]:
    """One client's round, traced.

    Args:
      training: what the program is built from.
      shared: the inputs that all clients share.
      client: its own inputs, without the axis C.

    Returns:
      Its contribution to the sums, zero if its update is not finite; and its report, without the axis C.
    """
    algorithm, lr = training.algorithm, shared.lr
    steps = client.batches[0].shape[0] if client.steps is None else client.steps
    participant = participant_of(algorithm, shared.broadcast, client.rows, client.keys, lr, steps)
    start, frozen = algorithm.start(participant)
    loss = client_loss(training, shared.base, frozen)
    rule = algorithm.optimizer(make_optimizer(training.optimizer, lr), frozen, lr)
    learning = shared.train_rows if algorithm.layered else None
    trained, statistics = local_train(
        loss, rule, start, client.batches, client.keys, learning, training.passes, steps=client.steps
    )
    up, new_row = algorithm.finish(participant, trained)
    # Values within float32 may overflow the messages' dtype.
    finite = statistics.finite & all_finite((up, new_row))
    new_row = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new_row, client.rows)
    up = up if client.scales is None else scaled_message(up, client.scales)
    # Zero times NaN is NaN: a broken client's contribution is replaced, not only given weight zero.
    contribution = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0), algorithm.contribution(up, client.shares))
    ranks = ranks_of(participant.down), ranks_of(up)
    return contribution, ClientOutputs(rows=new_row, statistics=statistics.replace(finite=finite), ranks=ranks)


def make_chunk(training: LocalTraining, mesh: Mesh) -> Callable[[ChunkInputs, PyTree], tuple[PyTree, ClientOutputs]]:
    """The chunk over the devices of `mesh` as a traceable function.

    Returns:
      (inputs, sums [devices, ...]) -> (the sums including this chunk's clients, the clients' reports).
    """
    group = MODEL_AXIS if mesh.shape[MODEL_AXIS] > 1 else None
    training = replace(training, passes=replace(training.passes, axis=CHUNK_AXIS, group=group))

    def on_a_device(inputs: ChunkInputs, sums: PyTree) -> tuple[PyTree, ClientOutputs]:
        over_clients = jax.vmap(partial(train_client, training, inputs.shared), axis_name=CHUNK_AXIS)
        contributions, outputs = over_clients(inputs.clients)
        sums = jax.tree.map(lambda total, parts: total + jnp.sum(parts, axis=0, keepdims=True), sums, contributions)
        return sums, outputs

    def chunk(inputs: ChunkInputs, sums: PyTree) -> tuple[PyTree, ClientOutputs]:
        over_devices = jax.shard_map(
            on_a_device,
            mesh=mesh,
            in_specs=(chunk_specs(inputs.shared.base), OVER_DEVICES),
            out_specs=OVER_DEVICES,
            check_vma=False,
        )
        return over_devices(inputs, sums)

    return chunk


@shared_programs
def jit_chunk(training: LocalTraining, mesh: Mesh) -> jax.stages.Wrapped:
    """`make_chunk`, jitted; the sums are donated."""
    return jax.jit(make_chunk(training, mesh), donate_argnames="sums")


def zero_sums(algorithm: Algorithm, up: PyTree, devices: int) -> PyTree:
    """The sums of no client: zeros [devices, ...] of the shapes of a message's contribution.

    Args:
      algorithm: the algorithm that makes the contribution.
      up: shapes of one client's message.
      devices: number of devices that sum over clients.
    """
    shapes = jax.eval_shape(algorithm.contribution, up, Share(jnp.float32(1.0), jnp.int32(0)))
    return jax.tree.map(lambda leaf: jnp.zeros((devices, *leaf.shape), leaf.dtype), shapes)


@shared_programs
def jit_zero_sums(
    algorithm: Algorithm, structure: Any, up: tuple[jax.ShapeDtypeStruct, ...], split: NamedSharding
) -> jax.stages.Wrapped:
    """`zero_sums` for messages of this structure and these leaves, divided as `split`; jitted."""
    message = jax.tree.unflatten(structure, up)
    return jax.jit(lambda: zero_sums(algorithm, message, split.mesh.size), out_shardings=split)
