"""Replay of one client's local training, a step at a time, to see where it breaks."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from devft_jax.federated.cohort import LocalTraining, broadcast_of, client_loss, frozen_rows, participant_of
from devft_jax.federated.local import local_step, make_optimizer, step_gradients
from devft_jax.models.llama import Base

PyTree = Any


@dataclass(frozen=True)
class StepReport:
    """One replayed step, numbered from 1: the loss before it, the norms of gradient and update, and what is not finite."""

    step: int
    loss: float
    gradient_norm: float
    update_norm: float
    nonfinite: tuple[str, ...]


def _nonfinite_leaves(tree: PyTree) -> tuple[str, ...]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return tuple(jax.tree_util.keystr(path) for path, leaf in leaves if not np.isfinite(leaf).all())


def replay_client(
    training: LocalTraining,
    *,
    base: Base,
    server: PyTree,
    row: PyTree,
    batches: tuple[np.ndarray, ...],
    lr: float,
    key: jax.Array,
    train_rows: np.ndarray,
) -> list[StepReport]:
    """Train one client in a plain loop exactly as a chunk would, reporting every step until one is not finite.

    Args:
      training: as in the round. server: the algorithm's state at the start of the round. row: the client's bank row.
      batches: tokens i32[S, B, T], mask bool[S, B, T] and, where they are stored, hidden states [S, B, T, D].
      lr, key, train_rows: as in the round.
    """
    algorithm, passes = training.algorithm, training.passes
    participant = participant_of(algorithm, broadcast_of(algorithm, server), row, key, jnp.float32(lr), len(batches[0]))
    train, frozen = algorithm.start(participant)
    compute = dataclasses.replace(training.compute, frozen_layers=frozen_rows(algorithm, train_rows))
    loss = client_loss(dataclasses.replace(training, compute=compute), base, frozen)
    optimizer = algorithm.optimizer(make_optimizer(training.optimizer, lr), frozen, jnp.float32(lr))
    gradients_of = jax.jit(lambda *arguments: step_gradients(loss, passes, *arguments)[1])
    learning = jnp.asarray(train_rows) if algorithm.layered else None
    advance = jax.jit(partial(local_step, loss, optimizer, learning, passes))
    carry = (train, optimizer.init(train))
    reports = []
    for index, batch in enumerate(zip(*batches, strict=True)):
        step_key = jax.random.fold_in(key, index)
        before = carry[0]
        gradients = jax.device_get(gradients_of(before, batch, step_key))
        carry, value = advance(carry, batch, step_key)
        change = jax.tree.map(jnp.subtract, carry[0], before)
        broken = (
            *(() if np.isfinite(value) else ("loss",)),
            *(f"gradient{name}" for name in _nonfinite_leaves(gradients)),
            *(f"adapter{name}" for name in _nonfinite_leaves(jax.device_get(carry[0]))),
        )
        reports.append(
            StepReport(
                step=index + 1,
                loss=float(value),
                gradient_norm=float(optax.tree.norm(gradients)),
                update_norm=float(optax.tree.norm(change)),
                nonfinite=broken,
            )
        )
        if broken:
            break
    return reports
