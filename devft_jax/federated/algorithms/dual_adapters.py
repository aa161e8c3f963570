"""A shared and a personal adapter, applied together, after FedDPA (Yang et al., Dual-Personalizing Adapter for Federated
Foundation Models, NeurIPS 2024), without its weighting of single instances.

Client i has factors (a_i, b_i) of its own beside the factors (a, b) that all clients share. Its model is

    W + s (omega a_i b_i + (1 - omega) a b),

with omega = `own_share`. In its local steps it trains both pairs; only the shared one is sent and averaged,

    a <- sum_i w_i a_(i),    b <- sum_i w_i b_(i),    w_i = n_i / sum_j n_j over the round's participants,

where (a_(i), b_(i)) are the shared factors after client i's training. Both pairs begin like LoRA's, from different random
a, because from equal ones the two would get the same gradients and learn as one. In a run that begins with an adapter both
begin at it, and the model is the base with it, because the weights add up to one.

Departures: in the authors' code (FedDPA-T) a participant first trains its own pair beside the frozen shared pair, then the
shared pair without its own, from the second round on, for as many epochs each, and the server takes the plain mean. Here
both are trained in the same steps and in the model that is evaluated, so that a participant takes as many steps as with any
other method; the shared pair is therefore trained beside personal ones, and is no model by itself. FedDPA-F, which trains
own pairs only after the last round, is not built. In FedDPA the weight of the shared pair is chosen for each test instance,
by the similarity of its hidden state to those of a few of the client's examples; here it is one number, so that a client's
model is a low-rank adapter (of rank 2 r) that can be exported.

Messages are FedIT's. The evaluated models are the personal ones, all on the same held-out data; there is no global model.
With a growth, a client maps its own pair over layers as the server maps the shared one; the server groups layers by the base
and the shared pair. `aggregation_error` is that of the shared pair, as in FedIT.
"""

import dataclasses

import jax
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.adapters import adapter_of, aligned, initial_adapter, stage_adapter, with_returned_adapter
from devft_jax.federated.aggregation import WeightedSum
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, as_float32, change_of
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import OwnShareOptions
from devft_jax.federated.algorithms.rest_of_world import mixed
from devft_jax.federated.warm_start import WarmStart
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.options import lora_scale
from devft_jax.typing import PyTree

Lora = dict[str, LoraFactors]
OWN = 1
"""Folded into the key of the first factors, for those of the personal pairs."""


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      adapter: the shared pair.
      own: the factors at which every client's own pair begins.
    """

    adapter: Adapter
    own: Lora


class Pairs(struct.PyTreeNode):
    """What a client trains.

    Attributes:
      own: its own factors.
      shared: those of all clients.
    """

    own: Lora
    shared: Lora


def dual_adapters(config: OwnShareOptions) -> Algorithm:
    """A shared and a personal adapter, with the configured adapters and `own_share`; a client keeps its own factors.

    Args:
      config: the options of the run's methods.
    """
    averaging, share = fedit(config), config.own_share

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        own = initial_adapter(jax.random.fold_in(key, OWN), model, config).lora
        return Server(initial_adapter(key, model, config), own)

    def start_from(server: Server, start: WarmStart) -> Server:
        scale = lora_scale(config)
        shared = start.factors(server.adapter.lora, scale)
        return Server(server.adapter.replace(lora=shared), start.factors(server.own, scale))

    def finish(participant: Participant, train: Pairs) -> tuple[PyTree, Lora]:
        return change_of(train.shared, participant.down, config.message_dtype), train.own

    def finalize(server: Server, sums: WeightedSum) -> tuple[Server, dict[str, jax.Array]]:
        adapter, metrics = averaging.finalize(server.adapter, sums)
        return server.replace(adapter=adapter), metrics

    def submodel(full: Server, layer_map: LayerMap) -> Server:
        return Server(stage_adapter(full.adapter, layer_map), submodel_row(full.own, layer_map))

    def submodel_row(row: Lora, layer_map: LayerMap) -> Lora:
        fused: Lora = fuse(layer_map, aligned(row, layer_map))
        return fused

    return dataclasses.replace(
        averaging,
        **described("dual-adapters"),
        init_server=init_server,
        broadcast=lambda server: averaging.broadcast(server.adapter),
        start=lambda participant: (Pairs(participant.row, as_float32(participant.down)), ()),
        adapter=lambda train, frozen: adapter_of(mixed(train.own, train.shared, share), config),
        finish=finish,
        finalize=finalize,
        view=lambda server: server.adapter,
        submodel=submodel,
        transfer=with_returned_adapter,
        start_from=start_from,
        init_row=lambda server, trait: server.own,
        submodel_row=submodel_row,
        transfer_row=lambda full, stage, layer_map, mode: inherit(layer_map, stage, full, mode=mode),
        personal=lambda server, row: adapter_of(mixed(row, server.adapter.lora, share), config),
    )
