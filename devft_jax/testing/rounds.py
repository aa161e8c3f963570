"""Runs an algorithm's record without a trainer: its first state, its stages, and rounds of clients that change at random."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import LayerMap, fuse
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share
from devft_jax.federated.round.client import participant_of
from devft_jax.federated.round.server import broadcast_of
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base, init_base
from devft_jax.typing import PyTree

TINY = ModelConfig(vocabulary=24, width=16, feed_forward=24, layers=4, heads=4, kv_heads=2, head_size=4, max_length=16)
"""Four layers in which only the projections q and o are square."""

MOVE = 0.2
"""Largest change of an entry by training."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The algorithm, model and clients of a check.

    Attributes:
      algorithm: the record.
      model: the architecture of the model.
      participants: K, clients of a round, at most the number for which the algorithm was made.
    """

    algorithm: Algorithm
    model: ModelConfig = TINY
    participants: int = 3

    @property
    def clients(self) -> Clients:
        """A population with some clients that never take part."""
        return Clients(self.participants + 2)

    @property
    def identity(self) -> LayerMap:
        """The stage of the full model."""
        return LayerMap.identity(self.model.layers)

    @property
    def fused(self) -> LayerMap:
        """A stage of two groups for four layers: one of the first two layers, one of a single layer; the last layer is
        absent."""
        return LayerMap(jnp.array([[0.9, 0.1, 0, 0], [0, 0, 1, 0]], jnp.float32), jnp.array([0, 0, 1, -1], jnp.int32))

    @property
    def weights(self) -> jax.Array:
        """Weights f32[K], all different."""
        return jnp.arange(self.participants, 0, -1, dtype=jnp.float32) * 1.5

    @functools.cached_property
    def base(self) -> Base:
        """Random frozen weights."""
        return random_base(self.model)

    def full(self) -> PyTree:
        """The server's first state, at full depth."""
        return self.algorithm.init_server(jax.random.key(3), self.model, self.clients)

    def rows(self, full: PyTree) -> PyTree:
        """The participants' first rows at full depth, [K, ...].

        Args:
          full: the server at full depth.
        """
        return jax.tree.map(lambda leaf: leaf[: self.participants], self.algorithm.init_bank(self.clients, full))

    @functools.cached_property
    def start(self) -> tuple[PyTree, PyTree, PyTree]:
        """The server and the rows at the beginning of the first stage, at full depth, after the server's first state."""
        full = self.full()
        return full, *self.stage(full, self.rows(full), self.identity)

    def stage(self, full: PyTree, rows: PyTree, layer_map: LayerMap) -> tuple[PyTree, PyTree]:
        """The server and the rows [K, ...] at the beginning of a stage.

        Args:
          full: the server at full depth.
          rows: [K, ...] at full depth.
          layer_map: the stage's map.
        """
        base = self.base.replace(blocks=fuse(layer_map, self.base.blocks))
        server = self.algorithm.enter(self.algorithm.submodel(full, layer_map), base)
        return server, self.each(lambda row: self.algorithm.submodel_row(row, layer_map), rows)

    def finished(
        self, full: PyTree, rows: PyTree, server: PyTree, after: PyTree, layer_map: LayerMap
    ) -> tuple[PyTree, PyTree]:
        """The server and the rows [K, ...] at full depth after a stage.

        Args:
          full: the server before the stage, at full depth.
          rows: [K, ...] before the stage.
          server: the server's state in the stage.
          after: the rows of the stage, [K, ...].
          layer_map: the stage's map.
        """
        pairs = (jax.tree.map(lambda leaf, which=index: leaf[which], (rows, after)) for index in range(self.participants))
        returned = [self.algorithm.transfer_row(old, new, layer_map, "copy") for old, new in pairs]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *returned)
        return self.algorithm.transfer(full, server, layer_map, "copy"), stacked

    def each(self, function: Any, rows: PyTree) -> PyTree:
        """Apply a function of one row to all rows [K, ...]; results [K, ...].

        Args:
          function: row -> any tree.
          rows: [K, ...].
        """
        results = [function(self.row(rows, index)) for index in range(self.participants)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    def row(self, rows: PyTree, index: int = 0) -> PyTree:
        """One client's row.

        Args:
          rows: [K, ...].
          index: of the client in the cohort.
        """
        return jax.tree.map(lambda leaf: leaf[index], rows)

    def trained(self, server: PyTree, rows: PyTree, *, seed: int = 0, move: float = MOVE, learn: Any = None) -> Any:
        """The messages and new rows [K, ...] of clients that change at random.

        Args:
          server: the server's state in the stage.
          rows: [K, ...].
          seed: seed of the changes.
          move: size of the changes; 0 for clients that learn nothing.
          learn: bool[G], the layers that change; None for all.
        """
        return jit_clients(self.algorithm, self.participants)(server, rows, seed, move, learn)

    def aggregated(self, server: PyTree, ups: PyTree, weights: Any = None, slots: Any = None) -> Any:
        """The server after a round, and its metrics.

        Args:
          server: the server before the round.
          ups: messages [K, ...].
          weights: f32[K]; by default `weights` of the case.
          slots: i32[K], the clients' places in the cohort; by default in order.
        """
        slots = jnp.arange(self.participants, dtype=jnp.int32) if slots is None else slots
        return jit_aggregate(self.algorithm)(server, ups, self.weights if weights is None else weights, slots)

    def after_rounds(self, server: PyTree, rows: PyTree, *, rounds: int = 2, **how: Any) -> Any:
        """The server and the rows after some rounds.

        Args:
          server: the server's state in the stage.
          rows: [K, ...].
          rounds: number of rounds.
          how: as in `trained`, without the seed.
        """
        for seed in range(1, rounds + 1):
            ups, rows = self.trained(server, rows, seed=seed, **how)
            server, _ = self.aggregated(server, ups)
        return server, rows


def client(algorithm: Algorithm, server: PyTree, row: PyTree, key: jax.Array) -> Participant:
    """A client with its message at the start of its round.

    Args:
      algorithm: the record.
      server: the server's state in the stage.
      row: the client's row.
      key: the client's random key.
    """
    return participant_of(algorithm, broadcast_of(algorithm, server), row, key, jnp.float32(0.3), 3)


def random_base(model: ModelConfig) -> Base:
    """Random frozen weights, large enough that an adapter visibly changes what a model computes.

    Args:
      model: the architecture of the model.
    """
    draw = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: init_base(jax.random.key(0), model))
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * draw.standard_normal(leaf.shape), leaf.dtype), shapes)


def moved(leaf: jax.Array, shift: Any, move: Any, learn: Any = None) -> jax.Array:
    """A leaf changed as by training, in a way that looks random and needs almost no compilation.

    Args:
      leaf: a trained leaf.
      shift: a number that differs between clients and leaves.
      move: size of the change.
      learn: bool[G], the layers that change; None for all.
    """
    places = jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape)
    noise = move * jnp.sin(12.9898 * places + shift) * jnp.cos(4.1414 * places - 3 * shift)
    if learn is not None:
        noise = jnp.where(learn.reshape(-1, *[1] * (leaf.ndim - 1)), noise, 0.0)
    return leaf + noise.astype(leaf.dtype)


def clients_round(algorithm: Algorithm, count: int, server: PyTree, rows: PyTree, seed: Any, move: Any, learn: Any) -> Any:
    """See `Case.trained`; traceable, clients under `vmap`.

    Args:
      algorithm: the record.
      count: K.
      server: the server's state in the stage.
      rows: [K, ...].
      seed: seed of the changes.
      move: size of the changes.
      learn: bool[G], the layers that change; None for all.
    """
    key = jax.random.key(seed, impl="threefry2x32")

    def one(row: PyTree, index: jax.Array) -> tuple[PyTree, PyTree]:
        participant = client(algorithm, server, row, jax.random.fold_in(key, index))
        train, _ = algorithm.start(participant)
        leaves, structure = jax.tree.flatten(train)
        shifts = [37.7 * place + 5.3 * index + 1.7 * seed for place in range(len(leaves))]
        changed = [moved(leaf, shift, move, learn) for leaf, shift in zip(leaves, shifts, strict=True)]
        return algorithm.finish(participant, jax.tree.unflatten(structure, changed))

    return jax.vmap(one, axis_size=count)(rows, jnp.arange(count, dtype=jnp.int32))


def sums_of(algorithm: Algorithm, ups: PyTree, weights: jax.Array, slots: jax.Array) -> PyTree:
    """The sum of the contributions of messages.

    Args:
      algorithm: the record.
      ups: messages [K, ...].
      weights: f32[K].
      slots: i32[K], the clients' places in the cohort.
    """
    parts = jax.vmap(lambda up, weight, slot: algorithm.contribution(up, Share(weight, slot)))(ups, weights, slots)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), parts)


@functools.lru_cache(maxsize=64)
def jit_clients(algorithm: Algorithm, count: int) -> Any:
    """`clients_round` of an algorithm and a number of clients, jitted.

    Args:
      algorithm: the record.
      count: K.
    """
    return jax.jit(functools.partial(clients_round, algorithm, count))


@functools.lru_cache(maxsize=64)
def jit_aggregate(algorithm: Algorithm) -> Any:
    """(server, messages [K, ...], weights, slots) -> the server's round, jitted.

    Args:
      algorithm: the record.
    """
    return jax.jit(lambda server, ups, weights, slots: algorithm.finalize(server, sums_of(algorithm, ups, weights, slots)))
