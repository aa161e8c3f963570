"""FedSA-LoRA (Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, ICLR 2025).

The factor a, which multiplies the input, is common to all clients; every client i keeps its own b_i:

    (a_i, b_i) <- local training from (a, b_i),    a <- sum_i w_i a_i.

Only a is sent. A client's b_i begins at zero, or at the b of the adapter with which the run begins, and is unchanged between
the rounds in which the client takes part.

The evaluated models are the personal models (a, b_i), all on the same held-out data, and their consensus: with one a for
all, the mean of the personal models' weights is

    mean_i (W + s a b_i) = W + s a mean_i b_i,

where the mean is over the clients that have trained so far. It is one adapter of the common rank.

In the authors' configuration files the server and all clients share one model object, so that all use the same b,
trained by the clients in turn; implemented is the method of the paper. Their framework weights a message by the examples
that the client processed in the round. All clients take equally many steps here, so this is `weighting` uniform; by
default the weight is the size of the client's data, as in FedIT.

With a growth, each client's b_i is mapped over layers like other LoRA factors, while the server groups layers by the base
and a only, because it does not know any b_i. Factors are not rotated towards each other before they are fused: the rotation
of a would have to be applied to every client's b_i.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.adapters import adapter_of, both_factors, initial_adapter, one_factor, returned_adapter
from devft_jax.federated.aggregation import WeightedSum, weighted
from devft_jax.federated.algorithm import Algorithm, Participant, as_float32, change_of, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.models.adapter import Adapter
from devft_jax.typing import PyTree


class Row(struct.PyTreeNode):
    """What a client keeps.

    Attributes:
      b: {projection: f32[G, r, out]}.
      seen: bool[], whether it has trained.
    """

    b: dict[str, jax.Array]
    seen: jax.Array


def fedsa_lora(config: MethodOptions) -> Algorithm:
    """FedSA-LoRA with the configured adapters; `message_dtype` is the dtype of a in messages.

    Server: an adapter with the common a, and the b with which clients begin, which it never changes: zero, or that of the
    adapter with which the run begins.

    Args:
      config: the options of the run's methods.
    """

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return both_factors(as_float32(participant.down), participant.row.b), ()

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, Row]:
        row = Row(b=one_factor(train, "b"), seen=jnp.ones_like(participant.row.seen))
        return change_of(one_factor(train, "a"), participant.down, config.message_dtype), row

    def finalize(server: Adapter, sums: WeightedSum) -> tuple[Adapter, dict[str, jax.Array]]:
        change = sums.mean()
        a = optax.tree.add(one_factor(server.lora, "a"), change)
        lora = both_factors(a, one_factor(server.lora, "b"))
        return server.replace(lora=lora), {"update_norm": optax.tree.norm(change)}

    def init_row(server: Adapter, trait: PyTree) -> Row:
        return Row(b=one_factor(server.lora, "b"), seen=jnp.zeros((), bool))

    def transfer_row(full: Row, stage: Row, layer_map: LayerMap, mode: str) -> Row:
        return Row(b=inherit(layer_map, stage.b, full.b, mode=mode), seen=stage.seen)

    def personal(server: Adapter, row: Row) -> Adapter:
        return server.replace(lora=both_factors(one_factor(server.lora, "a"), row.b))

    def consensus(server: Adapter, bank: Row) -> Adapter:
        seen = np.asarray(bank.seen)
        # Before any client has trained, all have the same b.
        trained = np.flatnonzero(seen) if seen.any() else np.arange(len(seen))
        mean = jax.tree.map(lambda leaf: jnp.asarray(np.mean(np.asarray(leaf)[trained], axis=0)), bank.b)
        return server.replace(lora=both_factors(one_factor(server.lora, "a"), mean))

    return Algorithm(
        **described("fedsa-lora"),
        init_server=lambda key, model, clients: initial_adapter(key, model, config),
        broadcast=lambda server: in_message_dtype(one_factor(server.lora, "a"), config.message_dtype),
        start=start,
        adapter=lambda train, frozen: adapter_of(train, config),
        finish=finish,
        contribution=weighted,
        finalize=finalize,
        view=lambda server: server,
        submodel=lambda server, layer_map: server.replace(lora=fuse(layer_map, server.lora)),
        transfer=returned_adapter,
        init_row=init_row,
        submodel_row=lambda row, layer_map: row.replace(b=fuse(layer_map, row.b)),
        transfer_row=transfer_row,
        personal=personal,
        consensus=consensus,
    )
