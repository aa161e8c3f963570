"""An algorithm whose clients send through a channel: a record like any other, so that the engine knows no channels.

The algorithm has to be one whose server takes the mean of its messages (`Algorithm.averages`). Wrapped are what a client
sends and keeps, and what the server keeps:

    finish         message, row = channel.client(up, row, key), with the algorithm's own up
    contribution   that of the algorithm, of combine(message)
    finalize       that of the algorithm; if the channel acts on the mean, of channel.server(mean)

If the channel acts on the mean, the sums are those of a weighted mean, and the algorithm's `finalize` is given the sums of
one client that sends the mean with the round's weight. Metrics that compare clients, such as the error of aggregation, are
then those of that one client.

Stage change. What a channel keeps begins anew with each stage, on clients and on the server. The unsent part of a client's
changes belongs to the stage's representative layers. To carry it on, it would have to be mapped as the server maps its
adapter. But that may depend on the adapter itself (the rotations of `align`), fusion may multiply it (an anchor by
1 - beta (m - 1) in a group of m), and a client that returns stages later would send a change made for another model. What
is lost is what a client had not sent when the stage ended.

Randomness. A client's draws follow from its key of the round, which depends on the seed, the round and its id alone; those
of the server from the seed and the number of the round. Neither depends on `clients_per_step`, devices or other clients.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from devft_jax.developmental import LayerMap
from devft_jax.federated.aggregation import WeightedSum, weighted
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share, as_float32, own_traits, same_server
from devft_jax.federated.channels.channel import Channel
from devft_jax.federated.round.client import participant_shapes, uplink_shapes
from devft_jax.federated.round.server import broadcast_of
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.typing import PyTree

STREAM = np.uint32(0xC4A77E1)
"""Folded into a client's key, apart from what algorithms fold into it."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Shapes and dtypes of a pytree, hashable.

    Attributes:
      structure: structure of the tree.
      leaves: shapes and dtypes of its leaves.
    """

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: PyTree) -> Self:
        """Shapes of a tree of arrays or shapes.

        Args:
          tree: the tree.
        """
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))

    def tree(self) -> PyTree:
        """The tree of shapes."""
        return jax.tree.unflatten(self.structure, self.leaves)


class KeptByClient(struct.PyTreeNode):
    """A client's row.

    Attributes:
      own: the algorithm's row.
      channel: the channel's row, such as the part of the client's changes that has not been sent; empty at full depth.
      sent: i32[], number of messages that the client has sent.
      server: shapes of the algorithm's server at full depth, from which those of a stage's messages follow.
    """

    own: PyTree
    channel: PyTree
    sent: jax.Array
    server: Shapes = struct.field(pytree_node=False)


class KeptByServer(struct.PyTreeNode):
    """The server's state, if the channel acts on the mean.

    Attributes:
      own: the algorithm's state.
      channel: the channel's state in the stage; empty at full depth.
      key: data of the random key of the server's draws.
      rounds: i32[], number of rounds so far.
      row: shapes of a client's row at full depth.
    """

    own: PyTree
    channel: PyTree
    key: jax.Array
    rounds: jax.Array
    row: Shapes = struct.field(pytree_node=False)


def change_shapes(algorithm: Algorithm, server: PyTree, row: PyTree) -> PyTree:
    """Shapes of the change that a client sends without a channel, in float32.

    Args:
      algorithm: defines it.
      server: state of the stage, arrays or shapes.
      row: a client's row in the stage, arrays or shapes.
    """
    broadcast = jax.eval_shape(lambda server: broadcast_of(algorithm, server), server)
    up = uplink_shapes(algorithm, participant_shapes(algorithm, broadcast, row))
    return jax.eval_shape(as_float32, up)


def through(channel: Channel, algorithm: Algorithm) -> Algorithm:
    """The algorithm with its uplink messages sent through a channel.

    Args:
      channel: the channel.
      algorithm: one whose `averages` is true.
    """
    sending = _with_clients(channel, algorithm)
    return sending if channel.server is None else _with_server(channel, algorithm, sending)


def _with_clients(channel: Channel, algorithm: Algorithm) -> Algorithm:
    """The algorithm whose clients send through the channel."""
    kept_of_one, _ = jax.eval_shape(channel.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    if not jax.tree.leaves(kept_of_one):
        return _without_rows(channel, algorithm)

    def own(row: KeptByClient) -> PyTree:
        return row.own

    def init_row(server: PyTree, trait: PyTree) -> KeptByClient:
        return KeptByClient(algorithm.init_row(server, trait), {}, jnp.int32(0), Shapes.of(server))

    def submodel_row(row: KeptByClient, layer_map: LayerMap) -> KeptByClient:
        server = jax.eval_shape(lambda full: algorithm.submodel(full, layer_map), row.server.tree())
        mapped = algorithm.submodel_row(row.own, layer_map)
        return row.replace(own=mapped, channel=channel.init(change_shapes(algorithm, server, mapped))[0])

    def transfer_row(full: KeptByClient, stage: KeptByClient, layer_map: LayerMap, mode: str) -> KeptByClient:
        mapped = algorithm.transfer_row(full.own, stage.own, layer_map, mode)
        return stage.replace(own=mapped, channel={})

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, KeptByClient]:
        row = participant.row
        up, kept = algorithm.finish(participant.replace(row=row.own), train)
        message, unsent = channel.client(as_float32(up), row.channel, _key(participant))
        return message, row.replace(own=kept, channel=unsent, sent=row.sent + 1)

    personal, consensus = algorithm.personal, algorithm.consensus
    return dataclasses.replace(
        _without_rows(channel, algorithm),
        state=f"{algorithm.state}; clients: what the channel {channel.name} has not sent yet",
        init_row=init_row,
        submodel_row=submodel_row,
        transfer_row=transfer_row,
        address=lambda down, row: algorithm.address(down, own(row)),
        start=lambda participant: algorithm.start(participant.replace(row=own(participant.row))),
        finish=finish,
        personal=None if personal is None else lambda server, row: personal(server, own(row)),
        consensus=None if consensus is None else lambda server, rows: consensus(server, own(rows)),
    )


def _without_rows(channel: Channel, algorithm: Algorithm) -> Algorithm:
    """The algorithm whose clients send through the channel, which keeps nothing on clients."""

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        up, row = algorithm.finish(participant, train)
        change = as_float32(up)
        return channel.client(change, channel.init(change)[0], _key(participant))[0], row

    return dataclasses.replace(
        algorithm,
        message=f"{algorithm.message}; up through the channel {channel.name}",
        finish=finish,
        contribution=lambda message, share: algorithm.contribution(channel.combine(message), share),
    )


def _key(participant: Participant) -> jax.Array:
    """The random key of a client's channel."""
    return jax.random.fold_in(participant.key, STREAM)


def _with_server(channel: Channel, algorithm: Algorithm, sending: Algorithm) -> Algorithm:
    """The algorithm whose server applies the channel to the mean; its clients' part is that of `sending`."""
    act = channel.server
    assert act is not None

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> KeptByServer:
        own = algorithm.init_server(key, model, clients)
        traits = jax.eval_shape(lambda: jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], algorithm.traits(Clients(1))))
        row = jax.eval_shape(algorithm.init_row, own, traits)
        data = jax.random.key_data(jax.random.fold_in(key, STREAM))
        return KeptByServer(own, {}, data, jnp.int32(0), Shapes.of(row))

    def finalize(server: KeptByServer, sums: WeightedSum) -> tuple[KeptByServer, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(server.key, impl="threefry2x32"), server.rounds)
        mean, state, metrics = act(sums.mean(), server.channel, key)
        alone = algorithm.contribution(mean, Share(sums.weight, jnp.int32(0)))
        own, own_metrics = algorithm.finalize(server.own, alone)
        return server.replace(own=own, channel=state, rounds=server.rounds + 1), own_metrics | metrics

    def submodel(full: KeptByServer, layer_map: LayerMap) -> KeptByServer:
        own = algorithm.submodel(full.own, layer_map)
        row = jax.eval_shape(lambda row: algorithm.submodel_row(row, layer_map), full.row.tree())
        return full.replace(own=own, channel=channel.init(change_shapes(algorithm, own, row))[1])

    def transfer(full: KeptByServer, stage: KeptByServer, layer_map: LayerMap, mode: str) -> KeptByServer:
        return stage.replace(own=algorithm.transfer(full.own, stage.own, layer_map, mode), channel={})

    def enter(server: KeptByServer, base: Base) -> KeptByServer:
        return server.replace(own=algorithm.enter(server.own, base))

    orient, personal, consensus = algorithm.orient, sending.personal, sending.consensus
    return dataclasses.replace(
        sending,
        state=f"{sending.state}; server: the state of the channel {channel.name}",
        init_server=init_server,
        broadcast=lambda server: algorithm.broadcast(server.own),
        known=lambda server: algorithm.known(server.own),
        contribution=lambda message, share: weighted(channel.combine(message), share),
        finalize=finalize,
        view=lambda server: algorithm.view(server.own),
        submodel=submodel,
        transfer=transfer,
        enter=same_server if algorithm.enter is same_server else enter,
        orient=None if orient is None else lambda server, gradient: server.replace(own=orient(server.own, gradient)),
        start_from=lambda server, start: server.replace(own=algorithm.start_from(server.own, start)),
        init_row=own_traits if sending.init_row is own_traits else lambda server, trait: sending.init_row(server.own, trait),
        personal=None if personal is None else lambda server, row: personal(server.own, row),
        consensus=None if consensus is None else lambda server, rows: consensus(server.own, rows),
    )
