"""The first state of a run that begins with an adapter, verified.

The law of a warm start is that the model before the first round, the global one as well as every client's own, is the base
with the given adapter. An algorithm whose record does not keep it, for example because other state follows from its
initialisation, is refused before anything is trained.
"""

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.errors import InputError
from devft_jax.federated.adapters import probe_vectors
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


def _responses(adapter: Adapter) -> dict[str, np.ndarray]:
    """x (delta + scale a b) f64[L, PROBES, out] of each projection for fixed vectors x, in host memory, layer by layer: an
    accelerator's usual products of matrices are less precise than the check."""
    depth = adapter.depth(otherwise=0)
    scales = layer_scales(adapter, depth)
    found = {}
    for name in {*adapter.lora, *adapter.delta}:
        layers = []
        for layer in range(depth):
            parts = []
            if name in adapter.lora:
                a, b = (np.asarray(each[layer], np.float64) for each in (adapter.lora[name].a, adapter.lora[name].b))
                parts.append(float(scales[name][layer]) * (np.asarray(probe_vectors(name, len(a)), np.float64) @ a) @ b)
            if name in adapter.delta:
                delta = np.asarray(adapter.delta[name][layer], np.float64)
                parts.append(np.asarray(probe_vectors(name, len(delta)), np.float64) @ delta)
            layers.append(sum(parts))
        found[name] = np.stack(layers)
    return found


def _equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    """Whether two updates are the same up to rounding; a projection that only one adapts must not be changed by it."""
    size = max((float(np.linalg.norm(each)) for each in wanted.values()), default=0.0)
    apart = [found.get(name, np.zeros(())) - wanted.get(name, np.zeros(())) for name in {*found, *wanted}]
    return all(float(np.linalg.norm(each)) <= ROUNDING * size for each in apart)
