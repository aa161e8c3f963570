"""FLoRA (Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations,
NeurIPS 2024): clients' factors are stacked instead of averaged.

In every round each participant i draws a new a_i of its own rank r_i, b_i = 0, and trains both beside the corrected base
W + D. The server stacks the returned factors and everyone adds the stack's product to their correction:

    a = [w_1 s a_1, ..., w_K s a_K],    b = [b_1; ...; b_K],    a b = sum_i w_i s a_i b_i,    D <- D + a b.

The aggregation is exact for any weights and ranks. The weight is applied to one factor only, because on both it would enter
squared; so is the scale s = alpha / r, which is the same for all clients, of whatever rank.

The downlink is the stack of the previous round, sum_i r_i directions, and is empty at first. It is an increment of what
clients have, so a client that missed rounds needs every stack of them. Clients of different ranks (`client_ranks`, assigned
to the clients in turn by their index in the population) are padded with zeros, which training leaves zero: a gradient that
reaches a padded direction is multiplied by a zero in the other factor. Padding is not sent; a message with padding includes
its rank.

Because every round begins at b = 0, its first local step moves only b; with few steps that is a large share.

The authors merge the stack into the weights. Here D stays in float32 beside them, because repacking the weights would lose
changes that are small relative to their precision. Their server is made for the ranks of all clients together, so their code
works only if all clients take part.

A run that begins with an adapter has its product in D from the beginning.

With a growth, D is fused like the layers that it corrects, and each of them gets the change of the stage back. Nothing else
is kept between rounds: there is no adapter to map.
"""

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.developmental import LayerMap
from devft_jax.federated.adapters import adapter_of
from devft_jax.federated.aggregation import ClientRanks, Slots, first_directions, in_slot, stacked, zero_factors
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share, as_float32, empty, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.options import ClientRankOptions
from devft_jax.federated.corrections import (
    Correction,
    corrected,
    keeps_increment,
    no_delta,
    returned_correction,
    stage_correction,
)
from devft_jax.federated.messages import Ranked
from devft_jax.federated.warm_start import WarmStart
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.lora import adapter_norms, initial_a
from devft_jax.models.options import lora_scale
from devft_jax.typing import PyTree


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      correction: its increment is the last stack.
      rank: i32[], number of directions in that stack.
    """

    correction: Correction
    rank: jax.Array


def fresh_factors(key: jax.Array, delta: dict[str, jax.Array], rank: int) -> dict[str, LoraFactors]:
    """The factors with which a client begins a round: a newly drawn, b = 0.

    Args:
      key: the client's random key.
      delta: the corrections [L, in, out] of every projection.
      rank: rank of the factors.
    """

    def one(name: str, leaf: jax.Array) -> LoraFactors:
        layers, fan_in, fan_out = leaf.shape
        a = initial_a(key, name, (layers, fan_in, rank))
        return LoraFactors(a=a, b=jnp.zeros((layers, rank, fan_out), jnp.float32))

    return {name: one(name, leaf) for name, leaf in delta.items()}


def submodel(full: Server, layer_map: LayerMap) -> Server:
    """The stage's state: the stack is still sent if the stage's layers are the model's own.

    Args:
      full: the server at full depth.
      layer_map: the stage's map.
    """
    rank = full.rank if keeps_increment(layer_map) else jnp.zeros_like(full.rank)
    return Server(stage_correction(full.correction, layer_map), rank)


def transfer(full: Server, stage: Server, layer_map: LayerMap, mode: str) -> Server:
    """The state at full depth after a stage; the mode has no effect, because no adapter is kept between rounds.

    Args:
      full: the server at full depth before the stage.
      stage: the stage's server after training.
      layer_map: the stage's map.
      mode: mode of `inherit`.
    """
    return Server(returned_correction(full.correction, stage.correction, layer_map), stage.rank)


def flora(config: ClientRankOptions) -> Algorithm:
    """FLoRA with clients of the configured rank, or of `client_ranks` in turn; then row: {"rank": i32[]}.

    `message_dtype` is the dtype of factors in messages, of the stack as well as of a client's own.

    Args:
      config: the options of the run's methods.
    """
    targets = tuple(sorted(config.targets, key=PROJECTIONS.index))
    given = config.client_ranks or (config.rank,)
    ranks, slots, scale = ClientRanks(given, most=max(given)), config.clients_per_round, lora_scale(config)

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        delta = no_delta(model, targets)
        stack = {name: zero_factors(leaf.shape, slots * ranks.most) for name, leaf in delta.items()}
        return Server(Correction(delta, in_message_dtype(stack, config.message_dtype)), jnp.int32(0))

    def start_from(server: Server, start: WarmStart) -> Server:
        delta = start.products(server.correction.delta)
        return server.replace(correction=server.correction.replace(delta=delta))

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        lora = fresh_factors(participant.key, participant.known, ranks.most)
        if ranks.differ:
            lora = first_directions(lora, participant.row["rank"])
        return lora, corrected(participant.known, participant.down.lora)

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        sent = in_message_dtype(train, config.message_dtype)
        return ranks.message(sent, participant.row["rank"]) if ranks.differ else sent, participant.row

    def contribution(up: PyTree, share: Share) -> Slots:
        return in_slot((up.lora, up.rank) if ranks.differ else (up, jnp.int32(ranks.most)), share, slots)

    def finalize(server: Server, sums: Slots) -> tuple[Server, dict[str, jax.Array]]:
        (lora, taken), shares = sums.apart()
        stack = {name: stacked(factors, scale * shares) for name, factors in lora.items()}
        stack = in_message_dtype(stack, config.message_dtype)
        norms = adapter_norms(Adapter(lora=as_float32(stack), scale=jnp.float32(1.0)))
        rank = jnp.sum(jnp.round(taken)).astype(jnp.int32)
        return Server(server.correction.followed_by(stack), rank), {"update_norm": jnp.linalg.norm(norms)}

    return Algorithm(
        **described("flora"),
        principal=False,
        init_server=init_server,
        broadcast=lambda server: Ranked(server.correction.increment, server.rank, most=slots * ranks.most),
        start=start,
        adapter=lambda train, frozen: adapter_of(train, config, frozen),
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=lambda server: adapter_of({}, config, server.correction.total()),
        submodel=submodel,
        transfer=transfer,
        start_from=start_from,
        known=lambda server: server.correction.delta,
        traits=ranks.traits if ranks.differ else empty,
        cumulative=lambda down: down,
    )
