"""The first state of a run that begins with an adapter, verified.

The law of a warm start is that the model before the first round, the global one as well as every client's own, is the base
with the given adapter. An algorithm whose record does not keep it, for example because other state follows from its
initialisation, is refused before anything is trained.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.errors import InputError
from devft_jax.federated.adapters import probe, probe_vectors
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.federated.warm_start import NoAdapterError, WarmStart
from devft_jax.models.adapter import Adapter, layer_scales
from devft_jax.typing import PyTree

ROUNDING = 1e-4
"""Largest difference between the first model's update and the adapter's, relative to the latter."""


def first_state(algorithm: Algorithm, server: PyTree, start: WarmStart | None) -> PyTree:
    """The state with which a run begins at full depth; may be traced.

    Args:
      algorithm: the algorithm.
      server: its own first state at full depth.
      start: the adapter with which the run begins; None for the algorithm's own.

    Raises:
      InputError: the adapter does not fit the run, or the algorithm's state has no place for one.
    """
    if start is None:
        return server
    try:
        return algorithm.start_from(server, start)
    except NoAdapterError as error:
        raise InputError(
            f"algorithm {algorithm.name} has no low-rank adapter or correction in its first state, so that it cannot begin "
            f"with {start.what}; choose another --algorithm, or begin without it."
        ) from error


def check_first_state(algorithm: Algorithm, server: PyTree, clients: Clients, start: WarmStart) -> None:
    """Raise `InputError` unless the first models are the base with the given adapter.

    Args:
      algorithm: the algorithm.
      server: the state of `first_state`.
      clients: the population.
      start: the adapter with which the run begins.
    """
    wanted = _responses(start.adapter)
    for adapter in _first_models(algorithm, server, clients):
        if not _equal(_responses(adapter), wanted):
            raise InputError(
                f"algorithm {algorithm.name} derives its first model from more than an adapter, so that it cannot begin "
                f"with {start.what} exactly; choose another --algorithm, or begin without it."
            )


def _first_models(algorithm: Algorithm, server: PyTree, clients: Clients) -> list[Adapter]:
    """The global model before the first round, and the own model of the first client."""
    if algorithm.personal is None:
        return [algorithm.view(server)]
    trait = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), algorithm.traits(clients))
    row = algorithm.init_row(server, trait)
    models = [algorithm.personal(server, row)]
    if algorithm.consensus is not None:
        models.append(algorithm.consensus(server, jax.tree.map(lambda leaf: leaf[None], row)))
    return models


def _responses(adapter: Adapter) -> dict[str, Any]:
    """x (delta + scale a b) f32[L, PROBES, out] of each projection for fixed vectors x."""
    found = {name: jnp.zeros(()) for name in (*adapter.lora, *adapter.delta)}
    for name, each in probe(adapter.lora).items():
        scales = layer_scales(adapter, each.shape[0])[name]
        found[name] = found[name] + scales[:, None, None] * each
    for name, delta in adapter.delta.items():
        found[name] = found[name] + jnp.einsum("pi,lio->lpo", probe_vectors(name, delta.shape[1]), delta)
    return {name: np.asarray(each) for name, each in found.items()}


def _equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether two updates are the same up to rounding; a projection that only one adapts must not be changed by it."""
    size = max((float(np.linalg.norm(each)) for each in wanted.values()), default=0.0)
    apart = [found.get(name, np.zeros(())) - wanted.get(name, np.zeros(())) for name in {*found, *wanted}]
    return all(float(np.linalg.norm(each)) <= ROUNDING * size for each in apart)
