"""FedProx (Li et al., MLSys 2020): FedIT whose clients are kept close to the round's starting point.

Every participant i starts from the global adapter x = (a, b) and minimises

    f_i(x_i) + (mu / 2) ||x_i - x||^2,    mu = `prox_mu`,

over all entries of both factors; messages and the server's mean are FedIT's, and mu = 0 is FedIT. The reported loss is f_i
alone.

The term's gradient mu (x_i - x) is added to that of f_i before the run's optimiser, as in OpenFedLLM. With AdamW it passes
through the preconditioner, so mu is not the proximal weight of the paper's analysis; with its usual 0.01 and a few
local steps it changes little.

There is no state, so a stage is FedIT's; a layer that does not learn is unchanged and adds nothing to the term.
"""

import dataclasses

import jax
import optax

from devft_jax.federated.algorithm import Algorithm, Participant
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import FedProxOptions
from devft_jax.typing import PyTree


def fedprox(config: FedProxOptions) -> Algorithm:
    """FedProx with the configured adapters and `prox_mu`.

    Args:
      config: the options of the run's methods.
    """
    federated = fedit(config)

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        train, _ = federated.start(participant)
        return train, train

    def penalty(train: PyTree, frozen: PyTree) -> jax.Array:
        return config.prox_mu / 2 * optax.tree.norm(optax.tree.sub(train, frozen), squared=True)

    return dataclasses.replace(
        federated,
        **described("fedprox"),
        start=start,
        adapter=lambda train, frozen: federated.adapter(train, ()),
        penalty=penalty,
    )
