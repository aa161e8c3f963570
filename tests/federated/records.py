"""An algorithm's record by hand: its first stage, clients that move, and what a model computes.

Models are compared by what they compute: `update` is what an adapter adds to each projection, scale a b + delta, written out
in float64. Shapes are not square, nothing is symmetric, weights differ.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import LayerMap, fuse
from devft_jax.federated.algorithm import Clients
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.models.adapter import Adapter
from tests.federated.harness import BASE, aggregated, assert_close, init, trained_messages
from tests.tiny import CONFIG

K = 3
WEIGHTS = (5.0, 1.0, 2.5)
OPTIONS = MethodConfig(
    rank=4, alpha=6.0, dropout=0.0, targets=("q", "v", "down"), clients_per_round=K, domain_top=40, server_tau=0.1
)


@functools.cache
def made(name: str, **changes: Any) -> Any:
    """The algorithm under the tests' options."""
    return ALGORITHMS[name](dataclasses.replace(OPTIONS, **changes))


@functools.cache
def started(name: str, **changes: Any) -> tuple[Any, Any, list[Any]]:
    """The algorithm in a first stage at full depth, and the rows of its participants."""
    algorithm = made(name, **changes)
    full, rows = first(algorithm)
    return algorithm, *stage_of(algorithm, full, rows, LayerMap.identity(CONFIG.layers))


def first(algorithm: Any) -> tuple[Any, list[Any]]:
    """The state at full depth before any stage, and the rows of the participants."""
    clients = Clients(K + 2)
    full = init(algorithm, clients=clients.size)
    bank = jax.device_get(algorithm.init_bank(clients, full))
    return full, [jax.tree.map(lambda leaf, where=index: leaf[where], bank) for index in range(K)]


def stage_of(algorithm: Any, full: Any, rows: list[Any], layer_map: LayerMap) -> tuple[Any, list[Any]]:
    """A stage as it begins: the server's state and the participants' rows."""
    base = BASE.replace(blocks=fuse(layer_map, BASE.blocks))
    server = algorithm.enter(algorithm.submodel(full, layer_map), base)
    return server, [algorithm.submodel_row(row, layer_map) for row in rows]


def trained(algorithm: Any, server: Any, rows: list[Any], *, rounds: int = 2, learn: np.ndarray | None = None) -> Any:
    """The server's state after rounds in which every client moved at random, in the layers that `learn` bool[G] alone."""
    for seed in range(rounds):

        def move(index: int, leaf: jax.Array, seed: int = seed) -> jax.Array:
            moved = noise(seed)(index, leaf)
            return moved if learn is None else jnp.where(learn.reshape(-1, *[1] * (leaf.ndim - 1)), moved, leaf)

        ups, rows = trained_messages(algorithm, server, rows, move=move)
        server, _ = aggregated(algorithm, server, ups, WEIGHTS)
    return server


def update(adapter: Adapter) -> dict[str, np.ndarray]:
    """What an adapter adds to each projection, f64[L, in, out]."""
    total: dict[str, np.ndarray] = {name: np.asarray(delta, np.float64) for name, delta in adapter.delta.items()}
    for name, factors in adapter.lora.items():
        product = np.asarray(factors.a, np.float64) @ np.asarray(factors.b, np.float64)
        total[name] = total.get(name, 0.0) + float(adapter.scale) * product
    return total


def assert_same_model(one: Adapter, other: Adapter, atol: float = 1e-5) -> None:
    """Two adapters compute the same."""
    found, wanted = update(one), update(other)
    for name in {*found, *wanted}:
        np.testing.assert_allclose(found.get(name, 0.0) + 0.0, wanted.get(name, 0.0) + 0.0, atol=atol)
    assert_close(one.hyper, other.hyper, atol=atol)


def noise(seed: int, size: float = 0.1) -> Callable[[int, jax.Array], jax.Array]:
    """A movement that differs from client to client and leaf to leaf."""

    def move(index: int, leaf: jax.Array) -> jax.Array:
        rng = np.random.default_rng([seed, index, leaf.size])
        return leaf + jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return move


def alike(index: int, leaf: jax.Array) -> jax.Array:
    """A movement that all clients make."""
    return noise(3)(0, leaf)


def still(index: int, leaf: jax.Array) -> jax.Array:
    """No movement."""
    return leaf
