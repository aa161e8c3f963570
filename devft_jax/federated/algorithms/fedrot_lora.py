"""FedRot-LoRA (Zhang et al., FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA, ICML 2026).

(a R)(R^T b) = a b for any orthogonal R [r, r], so clients may end with factors that differ by a rotation and cancel in
the mean. Before a client sends its factors, it rotates those of every layer and projection towards the ones that it
received, a_ref and b_ref, aligning one factor in odd rounds and the other in even rounds:

    odd    a_i^T a_ref = U S V^T    R = U V^T minimises ||a_i R - a_ref||
    even   b_i b_ref^T = U S V^T    R = U V^T minimises ||R^T b_i - b_ref||

R must be a rotation: if U V^T is a reflection, the direction of the least singular value is reversed. A full rotation is too
much; with lambda (`rotation`),

    R_lambda = the rotation nearest to (1 - lambda) I + lambda R,

the client sends (a_i R_lambda, R_lambda^T b_i), and the server averages as FedIT does. lambda = 0 is FedIT. Rounds are
counted from 0 at the beginning of each stage. A reference that is zero, like b in the first round, gives no rotation.

This order is that of the authors' code: if a reflection were mixed with I first, the mixture could be a singular matrix.
The mixture of I with a rotation has no negative determinant, so the nearest orthogonal matrix, which they take, is a
rotation. If the singular values do not determine R (a reference of lower rank), theirs depends on their decomposition, ours
on `nearest_rotation`, which rotates as little as necessary.

The authors' released configuration has a lambda above 1, which selects a variant that adds lambda I to a_i^T a_ref; its
results are below those that they report for lambda 0.4 to 0.6. Their framework weights a message by the examples that the
client processed in the round, which is `weighting` uniform if all clients take equally many steps; by default the weight is
the size of the client's data, as in FedIT.

The round's number is known to everyone, so messages are FedIT's. With a growth, the adapter is mapped over layers
like FedIT's, and the count restarts.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.developmental import LayerMap, nearest_rotation
from devft_jax.federated.adapters import stage_adapter, with_returned_adapter
from devft_jax.federated.aggregation import WeightedSum
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, as_float32
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import FedRotLoraOptions
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.typing import PyTree


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      adapter: FedIT's adapter.
      age: i32[], rounds of the stage so far.
    """

    adapter: Adapter
    age: jax.Array


def towards(factors: LoraFactors, reference: LoraFactors, age: jax.Array, share: float) -> LoraFactors:
    """A client's factors [G, ...] rotated towards the round's reference; their product does not change.

    Args:
      factors: the client's factors, [G, ...].
      reference: the factors that it received.
      age: i32[], rounds of the stage so far.
      share: lambda.
    """
    of_a = jnp.einsum("gir,gis->grs", factors.a, reference.a, precision="highest")
    of_b = jnp.einsum("gro,gso->grs", factors.b, reference.b, precision="highest")
    turn = nearest_rotation(jnp.where(age % 2 == 1, of_a, of_b))
    if share != 1:
        turn = nearest_rotation((1 - share) * jnp.eye(turn.shape[-1], dtype=jnp.float32)[None] + share * turn)
    return LoraFactors(
        a=jnp.einsum("gir,grs->gis", factors.a, turn, precision="highest"),
        b=jnp.einsum("grs,gro->gso", turn, factors.b, precision="highest"),
    )


def fedrot_lora(config: FedRotLoraOptions) -> Algorithm:
    """FedRot-LoRA with the configured adapters; messages are FedIT's.

    Args:
      config: the options of the run's methods.
    """
    averaging = fedit(config)

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        return Server(averaging.init_server(key, model, clients), jnp.int32(0))

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        reference = as_float32(participant.down)
        age = participant.known["age"]
        rotated = {name: towards(factors, reference[name], age, config.rotation) for name, factors in train.items()}
        return averaging.finish(participant, rotated)

    def finalize(server: Server, sums: WeightedSum) -> tuple[Server, dict[str, jax.Array]]:
        adapter, metrics = averaging.finalize(server.adapter, sums)
        return Server(adapter, server.age + 1), metrics

    def submodel(full: Server, layer_map: LayerMap) -> Server:
        return Server(stage_adapter(full.adapter, layer_map), jnp.zeros_like(full.age))

    return dataclasses.replace(
        averaging,
        **described("fedrot-lora"),
        init_server=init_server,
        broadcast=lambda server: averaging.broadcast(server.adapter),
        finish=finish,
        finalize=finalize,
        view=lambda server: server.adapter,
        submodel=submodel,
        transfer=with_returned_adapter,
        known=lambda server: {"age": server.age},
    )
