"""The registry: what the command line's `--algorithm` may name.

`local-only` and `central` are controls, between which a federated algorithm should end: what clients reach without each
other, and what could be reached if their data lay in one place.
"""

from collections.abc import Callable

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms.central import central
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.fedprox import fedprox
from devft_jax.federated.algorithms.flasc import flasc
from devft_jax.federated.algorithms.hetlora import hetlora
from devft_jax.federated.algorithms.local_only import local_only
from devft_jax.federated.algorithms.scaffold import scaffold
from devft_jax.federated.algorithms.server_optimizers import fedadagrad, fedadam, fedavgm, fedyogi

# Each takes the run's configuration.
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "fedit": fedit,
    "hetlora": hetlora,
    "flasc": flasc,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "fedavgm": fedavgm,
    "fedadagrad": fedadagrad,
    "fedyogi": fedyogi,
    "fedadam": fedadam,
    "local-only": local_only,
    "central": central,
}
