"""Central training, a control: what could be reached if all clients' examples were in one place.

One participant holds the examples of all clients and takes as many optimiser steps in a round as a cohort does together,

    (a, b) <- K S steps of local training of (a, b) on the pool,    K clients per round, S local steps,

each on a batch drawn uniformly from the pool, without replacement within the round. It therefore sees as many examples as
FedIT and takes as many steps, but one after the other instead of S of them in parallel K times. Its optimiser is rebuilt in
every round, like a client's, and the learning rates are those of the rounds, so the only difference is where the data is. A
rate that suits clients whose updates are averaged may be too high for steps that are not averaged; as an upper bound,
central training needs its own rate.

Nothing is sent. The server state is FedIT's, so that any growth works on it in the same way; central training with DevFT
shows what growing costs or gains without federation.
"""

import dataclasses

import jax

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.typing import PyTree


def central(config: MethodOptions) -> Algorithm:
    """Central training with the configured adapters; `message_dtype` has no effect, because there is no message.

    Args:
      config: the options of the run's methods.
    """
    federated = fedit(dataclasses.replace(config, message_dtype="float32"))

    def finalize(server: PyTree, sums: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        server, metrics = federated.finalize(server, sums)
        # One participant has no aggregation error.
        return server, {"update_norm": metrics["update_norm"]}

    return dataclasses.replace(
        federated,
        **described("central"),
        finalize=finalize,
        pools=True,
    )
