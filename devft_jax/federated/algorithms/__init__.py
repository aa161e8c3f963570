"""The registry: what the command line's `--algorithm` may name."""

from collections.abc import Callable

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms.fedit import fedit

# Each takes the adapter's options and the dtype in which messages travel.
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {"fedit": fedit}
