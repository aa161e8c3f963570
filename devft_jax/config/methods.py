"""The algorithm and the growth that a configuration names, and what they say of themselves.

A record, `Algorithm` or `NamedGrowth`, says where a method comes from, what it sends and keeps, and which options it reads.
"""

from collections.abc import Iterable

from devft_jax.developmental import GROWTHS, NamedGrowth
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig, algorithm_of

METHODS: dict[str, Iterable[str]] = {"algorithm": ALGORITHMS, "growth": GROWTHS}
"""The options that name a method, with the names of the package."""


def record_of(kind: str, name: str) -> Algorithm | NamedGrowth:
    """What a method of the package says of itself, an algorithm at its default options.

    Args:
      kind: "algorithm" or "growth".
      name: of the method.
    """
    return GROWTHS[name] if kind == "growth" else algorithm_of(MethodConfig(algorithm=name))


def readers(kind: str, name: str) -> list[str]:
    """The methods of the package, algorithms or growths, that read an option of single methods."""
    return [each for each in METHODS[kind] if name in record_of(kind, each).reads]
