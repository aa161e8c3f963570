"""Sampling of participants, and the source of every random draw of a run.

All keys are threefry keys, folded from (seed, purpose, global round, client id, ...) and never split in sequence. Every
algorithm and growth therefore has the same cohorts, and adding, removing or reordering clients never changes another
client's draw. The seed is an argument of compiled programs: a run with another seed compiles nothing.
"""

from enum import IntEnum
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from devft_jax.runtime.devices import host_device

MOST_PRIORITIES = 2**20
"""Most priorities drawn at once, for many rounds."""


class Purpose(IntEnum):
    """What a key is used for; folded first, so that purposes never share a stream.

    Attributes:
      INITIALISATION: of adapters and the server's state.
      COHORT: the participants of a round.
      TRAINING: a client's order of examples and dropout.
      GROWTH: k-means and other draws of a stage.
      PROFILES: what describes clients before training.
      FLEET: the clients' simulated devices, and their failures.
      CLASSES: the clients' classes.
      LAYERS: the layers that a client or class draws in a round.
    """

    INITIALISATION = 0
    COHORT = 1
    TRAINING = 2
    GROWTH = 3
    PROFILES = 4
    FLEET = 5
    CLASSES = 6
    LAYERS = 7


def run_key(seed: int | np.uint32, purpose: Purpose) -> jax.Array:
    """The key of one purpose of a run."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose)


@jax.jit
def _priorities(seed: np.uint32, round_index: jax.Array, ids: jax.Array) -> jax.Array:
    key = jax.random.fold_in(run_key(seed, Purpose.COHORT), round_index)
    return jax.vmap(lambda client: jax.random.bits(jax.random.fold_in(key, client)))(ids)


@jax.jit
def _priorities_of_rounds(seed: np.uint32, round_indices: jax.Array, ids: jax.Array) -> jax.Array:
    return jax.vmap(lambda index: _priorities(seed, index, ids))(round_indices)


def sample_cohort(seed: int, round_index: int, ids: np.ndarray, size: int, among: np.ndarray | None = None) -> np.ndarray:
    """Indices i64[size] of the round's participants, ascending: uniform without replacement.

    Every client draws a priority from (seed, round, client id) and the `size` smallest take part, so a client's
    draw does not depend on the other clients.

    Args:
      seed: seed of the run.
      round_index: global round, counted from 0 over all stages.
      ids: u32[N], client ids.
      size: number of participants, at most N.
      among: i64[K], ascending indices of the clients that can take part; None for all.
    """
    priorities = np.asarray(_priorities(np.uint32(seed), jnp.uint32(round_index), jnp.asarray(ids)))
    if among is None:
        return _smallest(priorities, ids, size)
    return among[_smallest(priorities[among], ids[among], size)]


def sample_cohorts(seed: int, rounds: int, ids: np.ndarray, size: int) -> list[np.ndarray]:
    """`sample_cohort` for each of the first `rounds` rounds; many are drawn at once."""
    some = max(1, MOST_PRIORITIES // len(ids))
    cohorts: list[np.ndarray] = []
    for first in range(0, rounds, some):
        # Always the same number of rounds, so that one compiled program serves all calls.
        indices = jnp.arange(first, first + min(some, rounds), dtype=jnp.uint32)
        drawn = np.asarray(_priorities_of_rounds(np.uint32(seed), indices, jnp.asarray(ids)))
        cohorts += [_smallest(priorities, ids, size) for priorities in drawn[: rounds - first]]
    return cohorts


def _smallest(priorities: np.ndarray, ids: np.ndarray, size: int) -> np.ndarray:
    """Indices of the `size` smallest priorities, ascending."""
    last = np.partition(priorities, size - 1)[size - 1]
    below, equal = np.flatnonzero(priorities < last), np.flatnonzero(priorities == last)
    # Of equal priorities the smaller id is preferred.
    equal = equal[np.argsort(ids[equal], kind="stable")][: size - len(below)]
    return np.sort(np.concatenate([below, equal]))


def client_keys(seed: int, round_index: ArrayLike, ids: ArrayLike) -> jax.Array:
    """One key per client of a round for its random draws while training (dropout).

    Args:
      seed: seed of the run.
      round_index: global round, u32[].
      ids: u32[C], client ids.

    Returns:
      key[C].
    """
    return _client_keys(np.uint32(seed), round_index, ids)


@jax.jit
def _client_keys(seed: np.uint32, round_index: ArrayLike, ids: ArrayLike) -> jax.Array:
    key = jax.random.fold_in(run_key(seed, Purpose.TRAINING), round_index)
    return jax.vmap(lambda client: jax.random.fold_in(key, client))(ids)


@partial(jax.jit, static_argnums=(1, 4))
def _bits(seed: np.uint32, purpose: Purpose, index: jax.Array, ids: jax.Array, number: int) -> jax.Array:
    key = jax.random.fold_in(run_key(seed, purpose), index)
    return jax.vmap(lambda client: jax.random.bits(jax.random.fold_in(key, client), (number,)))(ids)


def uniform_draws(seed: int, purpose: Purpose, index: int, ids: np.ndarray, number: int) -> np.ndarray:
    """Numbers in (0, 1) for every client, f64[K, number].

    Args:
      seed: seed of the run.
      purpose: what they are for.
      index: number of the draw, such as the round.
      ids: u32[K], the clients' ids.
      number: draws of each client.
    """
    with jax.default_device(host_device()):
        bits = np.asarray(_bits(np.uint32(seed), purpose, jnp.uint32(index), jnp.asarray(ids, jnp.uint32), number))
    return (bits.astype(float) + 0.5) / 2.0**32
