"""Central training, a control: what could be reached if all clients' examples lay in one place.

One participant holds the examples of all clients and takes as many optimiser steps in a round as a cohort does together,

    (a, b) <- K S steps of local training of (a, b) on the pool,    K clients per round, S local steps,

each on a batch drawn uniformly from the pool, without replacement within the round. So it sees as many examples as FedIT
and does as many steps, but one after the other instead of S of them in parallel K times. Its optimiser is rebuilt in every
round, as a client's is, and the learning rates are those of the rounds: what is left to compare is where the data lies.
A rate that suits clients whose updates are averaged may be too high for steps that nothing averages; as an upper bound,
central training needs a rate of its own.

Nothing travels. The server state is FedIT's, so that any growth works on it in the same way, and central training with
DevFT shows what growing costs or brings without federation.
"""

import dataclasses

import jax

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.typing import PyTree


def central(config: MethodOptions) -> Algorithm:
    """Central training with adapters as the configuration says; `message_dtype` does not matter, as there is no message.

    Args:
      config: options of the run's methods.
    """
    federated = fedit(dataclasses.replace(config, message_dtype="float32"))

    def finalize(server: PyTree, sums: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        server, metrics = federated.finalize(server, sums)
        # One participant has no aggregation error.
        return server, {"update_norm": metrics["update_norm"]}

    return dataclasses.replace(
        federated,
        name="central",
        reference="control: all examples in one place, as many steps a round as a cohort has",
        ignores=("weighting", "message_dtype"),
        because="sends no message",
        message="nothing",
        finalize=finalize,
        pools=True,
    )
