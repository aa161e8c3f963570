"""Communication between the server and its clients, from shapes: messages, dense submodels, group lists, catch-up.

No method has a byte formula here. The messages are those that the algorithm's own `broadcast` and `finish` produce, traced
on shapes (`jax.eval_shape`). Their sizes are therefore exact for any algorithm, depth and message dtype, and computing them
takes milliseconds even at 70 billion parameters. Bytes are the sizes of their leaves.

At a stage change a client needs the stage's representative layers. Either the server fuses them and every client that
takes part in the stage receives them once, in the form in which they are stored (`submodel_bytes`); or clients hold the
whole base model, fuse the layers themselves, and receive only the data from which the fusion matrix is built
(`fusion_recipe_bytes`). At full depth nothing is fused and nothing more is sent; the base model itself, which every method
distributes once, is not counted.

There are two kinds of catch-up. A newcomer takes part for the first time in the middle of a stage and receives the
stage's submodel then. An absentee returns after rounds without it. If messages carry the whole state, as FedIT's do, the
next message is enough; if messages are increments of what clients hold (a changed base, stacked adapters), the absentee
must also receive every message that it missed (`missed_bytes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Algorithm, Clients, Participant
from devft_jax.federated.messages import message_bytes, sent_parts
from devft_jax.federated.round.client import participant_shapes, uplink_shapes
from devft_jax.federated.round.server import broadcast_of
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.quantization import base_shapes
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class Messages:
    """What one client receives and sends in a round, as pytrees of `jax.ShapeDtypeStruct`.

    Attributes:
      broadcast: what the server sends to all clients, and what clients know without a message.
      participant: one client at the start of its round; `down` is the message that it received.
      up: the message that it sends.
    """

    broadcast: tuple[PyTree, PyTree]
    participant: Participant
    up: PyTree

    @property
    def bytes_down(self) -> int:
        """Bytes of the server's message to one client; of the largest message if clients differ in rank."""
        return message_bytes(self.participant.down)

    @property
    def bytes_up(self) -> int:
        """Bytes of one client's message; of the largest message if clients differ in rank."""
        return message_bytes(self.up)


def round_messages(algorithm: Algorithm, config: ModelConfig, layers: int) -> Messages:
    """The messages of one client and round at a depth.

    Args:
      algorithm: defines the messages.
      config: the base's architecture at full depth.
      layers: of the stage's submodel.
    """
    clients = Clients(1)
    full = jax.eval_shape(lambda: algorithm.init_server(jax.random.key(0), config, clients))
    layer_map = LayerMap.shapes(layers, config.layers)
    server = jax.eval_shape(algorithm.submodel, full, layer_map)
    bank = jax.eval_shape(lambda full: algorithm.init_bank(clients, full), full)
    row = jax.eval_shape(lambda bank: jax.tree.map(lambda leaf: leaf[0], bank), bank)
    row = jax.eval_shape(algorithm.submodel_row, row, layer_map)
    broadcast = jax.eval_shape(partial(broadcast_of, algorithm), server)
    participant = participant_shapes(algorithm, broadcast, row)
    return Messages(broadcast, participant, uplink_shapes(algorithm, participant))


def message_elements(message: PyTree) -> int:
    """Number of elements of a message (arrays or shapes); at full rank if ranks differ."""
    return sum(leaf.size for leaf in jax.tree.leaves(sent_parts(message)))


def submodel_bytes(config: ModelConfig, layers: int, *, dtype: str, quantization: str = "none") -> int:
    """Bytes of a stage's dense layers as they are stored and would be sent; 0 at full depth, where nothing is fused.

    Args:
      config: the base's architecture at full depth.
      layers: of the stage's submodel.
      dtype: of the layers, if they are not quantised.
      quantization: as the option of that name.
    """
    if layers == config.layers:
        return 0
    return message_bytes(base_shapes(config.with_layers(layers), dtype=dtype, quantization=quantization).blocks)


def fusion_recipe_bytes(config: ModelConfig, layers: int) -> int:
    """Bytes of each layer's group and beta, from which a client with the base model fuses a stage itself; 0 at full
    depth."""
    groups, beta = jax.ShapeDtypeStruct((config.layers,), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
    return 0 if layers == config.layers else message_bytes((groups, beta))


def picked_layers_bytes(layers: int) -> int:
    """Bytes of the layers' numbers, i32[G], from which a client with the base builds a stage that only selects layers."""
    return message_bytes(jax.ShapeDtypeStruct((layers,), jnp.int32))


def newcomers(cohorts: Sequence[np.ndarray]) -> list[int]:
    """For each round of a stage, the number of participants that were not in an earlier round of the stage."""
    seen: set[int] = set()
    counts = []
    for cohort in cohorts:
        new = set(cohort.tolist()) - seen
        seen |= new
        counts.append(len(new))
    return counts


def missed_bytes(cohorts: Sequence[np.ndarray], sizes: Sequence[int]) -> list[int]:
    """For each round of a run, bytes of the earlier rounds' messages that its participants have not received yet.

    Args:
      cohorts: indices of each round's participants.
      sizes: bytes of each round's message to one client.
    """
    sent = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    last: dict[int, int] = {}
    owed = []
    for index, cohort in enumerate(cohorts):
        owed.append(sum(int(sent[index] - sent[last.get(client, -1) + 1]) for client in cohort.tolist()))
        last.update(dict.fromkeys(cohort.tolist(), index))
    return owed
