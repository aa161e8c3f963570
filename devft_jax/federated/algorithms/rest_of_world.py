"""Personal adapters beside the mean of everybody else's, after FedALT (Bian et al., FedALT: Federated Fine-Tuning through
Adaptive Local Training with Rest-of-World LoRA, AAAI 2026), without its mixer.

Client i has factors (a_i, b_i) of its own, which it trains whenever it takes part, beside frozen factors that summarise the
other clients, the rest of the world:

    W + s (omega a_i b_i + (1 - omega) a_-i b_-i),    a_-i = mean_{j != i} a_j,    b_-i = mean_{j != i} b_j,

with omega = `own_share`. The means are plain ones of the factors, as in the authors' code. They are of the clients that have
taken part so far; before there is another one, the rest of the world is the common initialisation, in which b = 0 unless the
run begins with an adapter.

Departures: in FedALT omega is chosen for each token by a learned mixer, softmax(x G) with a matrix G of each client's own
for every projection; here it is one number, so that a client's model is a low-rank adapter (of rank 2 r) that can be
exported. FedALT's clients all take part in every round; here the server keeps the sum over all clients' latest factors, so
that any part of them may.

The server sends the mean over the clients that have taken part, from which a client subtracts itself, and how many these
are; a client sends the change of its own factors. Messages have the size of FedIT's, and 4 bytes down. Factors are sent as
differences from the common initialisation, which everybody knows: it follows from the seed, or is the adapter with which the
run begins.

The evaluated models are the personal ones, all on the same held-out data; there is no global model. With a growth, own
factors and sums are mapped over layers alike, without rotating factors towards each other, and the server groups layers by
the base and the clients' mean.
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.adapters import adapter_of, initial_adapter
from devft_jax.federated.algorithm import (
    Algorithm,
    Clients,
    Participant,
    Share,
    as_float32,
    change_of,
    in_message_dtype,
)
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.options import OwnShareOptions
from devft_jax.federated.messages import Unsent
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.options import lora_scale
from devft_jax.typing import PyTree

Lora = dict[str, LoraFactors]


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      initial: the common initialisation.
      total: sum over all clients of the change of their factors since then.
      seen: i32[], number of clients that have taken part.
    """

    initial: Lora
    total: Lora
    seen: jax.Array


class Row(struct.PyTreeNode):
    """What a client keeps.

    Attributes:
      change: change of its own factors since the common initialisation.
      seen: bool[], whether it has taken part.
    """

    change: Lora
    seen: jax.Array


class Sums(struct.PyTreeNode):
    """Sums over a round's participants.

    Attributes:
      change: of the changes of their factors in the round.
      new: f32[], number of those that take part for the first time.
      count: f32[], number of participants.
    """

    change: Lora
    new: jax.Array
    count: jax.Array


def mean_change(server: Server) -> Lora:
    """The mean change of the clients that have taken part; zero before there are any.

    Args:
      server: the server's state.
    """
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(server.seen, 1), server.total)


def of_others(mean: Lora, seen: jax.Array, row: Row) -> Lora:
    """The mean change of the other clients; zero if there are none.

    Args:
      mean: the mean change of all clients that have taken part, in float32.
      seen: i32[], their number.
      row: the client's row.
    """
    others = seen - jnp.where(row.seen, 1, 0)

    def one(all_of_them: jax.Array, own: jax.Array) -> jax.Array:
        rest = seen * all_of_them - jnp.where(row.seen, own, 0.0)
        return jnp.where(others > 0, rest / jnp.maximum(others, 1), 0.0)

    return jax.tree.map(one, mean, row.change)


def mixed(own: Lora, rest: Lora, share: float) -> Lora:
    """Factors of omega a_i b_i + (1 - omega) a b, of twice the rank.

    Args:
      own: a client's own factors.
      rest: a and b, those beside them.
      share: omega.
    """

    def one(mine: LoraFactors, others: LoraFactors) -> LoraFactors:
        return LoraFactors(
            a=jnp.concatenate([mine.a, others.a], axis=-1),
            b=jnp.concatenate([share * mine.b, (1 - share) * others.b], axis=-2),
        )

    return {name: one(factors, rest[name]) for name, factors in own.items()}


def transfer(full: Server, stage: Server, layer_map: LayerMap, mode: str) -> Server:
    """The state at full depth after a stage.

    Args:
      full: the server at full depth before the stage.
      stage: the stage's server after training.
      layer_map: the stage's map.
      mode: mode of `inherit`.
    """
    initial, total = inherit(layer_map, (stage.initial, stage.total), (full.initial, full.total), mode=mode)
    return Server(initial, total, stage.seen)


def rest_of_world(config: OwnShareOptions) -> Algorithm:
    """Personal adapters beside the mean of the others, with the configured adapters and `own_share`.

    Args:
      config: the options of the run's methods.
    """

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        initial = initial_adapter(key, model, config).lora
        return Server(initial, optax.tree.zeros_like(initial), jnp.int32(0))

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        (mean, seen), initial, row = participant.down, participant.known, participant.row
        rest = optax.tree.add(initial, of_others(as_float32(mean), seen, row))
        return optax.tree.add(initial, row.change), rest

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, Row]:
        row = participant.row
        change = change_of(train, optax.tree.add(participant.known, row.change), config.message_dtype)
        # What the server adds, so that both have the same sum.
        own = optax.tree.add(row.change, as_float32(change))
        return (change, Unsent(~row.seen)), Row(own, jnp.ones_like(row.seen))

    def contribution(up: tuple[Lora, Unsent], share: Share) -> Sums:
        change, new = up
        counted = jax.tree.map(lambda leaf: share.count * leaf, as_float32(change))
        return Sums(counted, jnp.where(new.value, share.count, 0.0), share.count)

    def finalize(server: Server, sums: Sums) -> tuple[Server, dict[str, jax.Array]]:
        total = optax.tree.add(server.total, sums.change)
        seen = server.seen + jnp.round(sums.new).astype(jnp.int32)
        return Server(server.initial, total, seen), {"update_norm": optax.tree.norm(sums.change) / sums.count}

    def personal(server: Server, row: Row) -> Adapter:
        rest = optax.tree.add(server.initial, of_others(mean_change(server), server.seen, row))
        return adapter_of(mixed(optax.tree.add(server.initial, row.change), rest, config.own_share), config)

    def submodel(full: Server, layer_map: LayerMap) -> Server:
        initial, total = fuse(layer_map, (full.initial, full.total))
        return Server(initial, total, full.seen)

    return Algorithm(
        **described("rest-of-world"),
        init_server=init_server,
        broadcast=lambda server: (in_message_dtype(mean_change(server), config.message_dtype), server.seen),
        start=start,
        adapter=lambda train, frozen: adapter_of(mixed(train, frozen, config.own_share), config),
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=lambda server: adapter_of(optax.tree.add(server.initial, mean_change(server)), config),
        submodel=submodel,
        transfer=transfer,
        start_from=lambda server, start: server.replace(initial=start.factors(server.initial, lora_scale(config))),
        known=lambda server: server.initial,
        init_row=lambda server, trait: Row(optax.tree.zeros_like(server.initial), jnp.zeros((), bool)),
        submodel_row=lambda row, layer_map: Row(fuse(layer_map, row.change), row.seen),
        transfer_row=lambda full, stage, layer_map, mode: Row(
            inherit(layer_map, stage.change, full.change, mode=mode), stage.seen
        ),
        personal=personal,
    )
