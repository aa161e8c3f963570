"""The registry: what the command line's `--algorithm` may name.

`local-only` and `central` are controls, between which a federated algorithm should end: what clients reach without each
other, and what could be reached if their data lay in one place.
"""

from collections.abc import Callable

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms.c2a import c2a
from devft_jax.federated.algorithms.central import central
from devft_jax.federated.algorithms.dofit import dofit
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.local_only import local_only

# Each takes the run's configuration.
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "fedit": fedit,
    "dofit": dofit,
    "c2a": c2a,
    "local-only": local_only,
    "central": central,
}
