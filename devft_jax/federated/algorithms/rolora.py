"""RoLoRA (Chen et al., Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA, NeurIPS 2025): the two
factors are trained in turn.

In even rounds of a stage, counted from 0, clients train and send b alone, in odd rounds a alone; the other factor is common:

    even    b <- sum_i w_i b_i,    sum_i w_i a b_i = a sum_i w_i b_i
    odd     a <- sum_i w_i a_i,    sum_i w_i a_i b = (sum_i w_i a_i) b

Every aggregate is the mean of the products, exactly, and an uplink is one factor. b comes first: while b = 0, the gradient
of a is zero, and a round of a would be lost.

A downlink is the factor that the previous round has changed, if the client took part in that round; else both, because the
other one may have changed too since the client last received it. A client needs to keep no more for this than the round
after which it is up to date (its row). In the first round of a stage both are sent.

The round's parity is a traced number, so that one compiled program serves both kinds of rounds: gradients of both factors
are computed, and those of the resting factor are zero, because the model uses the received one. A step costs as much as
FedIT's. The authors' implementation freezes the parameters.

With a growth the adapter is mapped over layers like FedIT's, and the count of rounds restarts.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.developmental import LayerMap
from devft_jax.federated.adapters import both_factors, one_factor, stage_adapter, with_returned_adapter
from devft_jax.federated.aggregation import WeightedSum, weighted
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share, as_float32, change_of
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.federated.messages import Due, Unsent
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.typing import PyTree

NEVER = -1
"""The row of a client that is not up to date in any round."""


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      adapter: the global adapter.
      age: i32[], rounds of the stage so far.
    """

    adapter: Adapter
    age: jax.Array


class Factors(struct.PyTreeNode):
    """A message: both factors, of which one may rest.

    Attributes:
      a: {projection: [L, in, r]}.
      b: {projection: [L, r, out]}.
      age: i32[], the round of the stage, which both sides know.
    """

    a: Due
    b: Due
    age: Unsent


def trains_a(age: jax.Array) -> jax.Array:
    """Whether a is trained in a round, bool[].

    Args:
      age: i32[], the round of the stage, from 0.
    """
    return age % 2 == 1


def addressed(down: tuple[dict[str, LoraFactors], Unsent], row: PyTree) -> Factors:
    """The message to one client: the factor that the previous round has changed, or both.

    Args:
      down: the factors, and the round.
      row: the client's row.
    """
    lora, age = down
    missed = row["current"] != age.value
    changed_a = trains_a(age.value - 1)
    return Factors(
        a=Due(one_factor(lora, "a"), missed | changed_a), b=Due(one_factor(lora, "b"), missed | ~changed_a), age=age
    )


def in_use(train: dict[str, LoraFactors], frozen: tuple[dict[str, LoraFactors], jax.Array]) -> dict[str, LoraFactors]:
    """The factors of a client's model: the one that is trained in this round, and the other as it was received.

    Args:
      train: both factors, as the optimiser has them.
      frozen: both factors as received, and the round.
    """
    received, age = frozen
    use_a = trains_a(age)

    def one(name: str, factors: LoraFactors) -> LoraFactors:
        return LoraFactors(a=jnp.where(use_a, factors.a, received[name].a), b=jnp.where(use_a, received[name].b, factors.b))

    return {name: one(name, factors) for name, factors in train.items()}


def rolora(config: MethodOptions) -> Algorithm:
    """RoLoRA with the configured adapters.

    A row is {"current": i32[]}, the round of the stage in which the client lacks only what the round before has changed.

    Args:
      config: the options of the run's methods.
    """
    averaging = fedit(config)

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        return Server(averaging.init_server(key, model, clients), jnp.int32(0))

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        down = participant.down
        lora = as_float32(both_factors(down.a.value, down.b.value))
        return lora, (lora, down.age.value)

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        down, age = participant.down, participant.down.age.value
        use_a = trains_a(age)

        def part(name: Literal["a", "b"], received: Due, due: jax.Array, first: int) -> Due:
            change = change_of(one_factor(train, name), received.value, config.message_dtype)
            return Due(jax.tree.map(lambda leaf: jnp.where(due, leaf, 0), change), due, every=2, first=first)

        up = Factors(a=part("a", down.a, use_a, 1), b=part("b", down.b, ~use_a, 0), age=down.age)
        return up, {"current": age + 1}

    def contribution(up: Factors, share: Share) -> WeightedSum:
        return weighted(both_factors(up.a.value, up.b.value), share)

    def finalize(server: Server, sums: WeightedSum) -> tuple[Server, dict[str, jax.Array]]:
        change = sums.mean()
        adapter = server.adapter.replace(lora=optax.tree.add(server.adapter.lora, change))
        return Server(adapter, server.age + 1), {"update_norm": optax.tree.norm(change)}

    def submodel(full: Server, layer_map: LayerMap) -> Server:
        return Server(stage_adapter(full.adapter, layer_map), jnp.zeros_like(full.age))

    return dataclasses.replace(
        averaging,
        **described("rolora"),
        init_server=init_server,
        broadcast=lambda server: (averaging.broadcast(server.adapter), Unsent(server.age)),
        address=addressed,
        start=start,
        adapter=lambda train, frozen: averaging.adapter(in_use(train, frozen), ()),
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=lambda server: server.adapter,
        submodel=submodel,
        transfer=with_returned_adapter,
        init_row=lambda server, trait: {"current": jnp.int32(NEVER)},
        submodel_row=lambda row, layer_map: {"current": jnp.full_like(row["current"], NEVER)},
    )
