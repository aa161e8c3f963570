"""FedIT (Zhang et al., ICASSP 2024): federated averaging of the two low-rank factors.

Every participant i starts from the global (a, b), trains both on its own examples and sends them back; the server takes

    a <- sum_i w_i a_i,    b <- sum_i w_i b_i,    w_i = n_i / sum_j n_j over the round's participants,

where a_i and b_i are sent as their differences from the global ones.

The mean of products is not the product of means: with a_m, b_m the weighted means,

    sum_i w_i a_i b_i - a_m b_m = sum_i w_i (a_i - a_m)(b_i - b_m).

The relative size of that error in the mean product is reported every round. Its Frobenius norms are estimated from
a few fixed Gaussian vectors x per projection (`probe`), and from the differences, because a shift that all clients share
does not change the covariance.
"""

import jax
import jax.numpy as jnp
import optax

from devft_jax.federated.adapters import adapter_of, initial_adapter, probe, returned_adapter, stage_adapter
from devft_jax.federated.aggregation import WeightedSum, weighted
from devft_jax.federated.algorithm import Algorithm, Participant, Share, as_float32, change_of, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.typing import PyTree


def mean_change(sums: WeightedSum) -> tuple[dict[str, LoraFactors], dict[str, jax.Array]]:
    """The clients' mean change of the factors, and the probed covariance that the product of means does not contain.

    Args:
      sums: of the factors' changes and their products with the probes, [G, PROBES, out], as in FedIT's contributions.
    """
    change, probed = sums.mean()
    return change, jax.tree.map(jnp.subtract, probed, probe(change))


def fedit(config: MethodOptions) -> Algorithm:
    """FedIT with the configured adapters.

    `message_dtype` is the dtype of factors in messages, both ways; they train and accumulate in float32. Scale and dropout
    are known to everyone in advance and are not part of a message.

    Args:
      config: the options of the run's methods.
    """

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return as_float32(participant.down), ()

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        return change_of(train, participant.down, config.message_dtype), participant.row

    def contribution(up: PyTree, share: Share) -> WeightedSum:
        lora = as_float32(up)
        return weighted((lora, probe(lora)), share)

    def finalize(server: Adapter, sums: WeightedSum) -> tuple[Adapter, dict[str, jax.Array]]:
        change, error = mean_change(sums)
        lora = optax.tree.add(server.lora, change)
        product = optax.tree.norm(optax.tree.add(probe(lora), error))
        metrics = {
            "update_norm": optax.tree.norm(change),
            "aggregation_error": jnp.where(product > 0, optax.tree.norm(error) / product, 0.0),
        }
        return server.replace(lora=lora), metrics

    return Algorithm(
        **described("fedit"),
        init_server=lambda key, model, clients: initial_adapter(key, model, config),
        broadcast=lambda server: in_message_dtype(server.lora, config.message_dtype),
        start=start,
        adapter=lambda train, frozen: adapter_of(train, config),
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=lambda server: server,
        submodel=stage_adapter,
        transfer=returned_adapter,
    )
