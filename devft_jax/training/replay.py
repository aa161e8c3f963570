"""Replay of one client's local training, a step at a time, to see where it breaks."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from devft_jax.federated.local import local_step, make_optimizer, step_gradients
from devft_jax.federated.round.client import LocalTraining, client_loss, frozen_rows, participant_of
from devft_jax.federated.round.server import broadcast_of
from devft_jax.models.base import Base
from devft_jax.models.sharding import partition_specs, place
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class StepReport:
    """One replayed step, numbered from 1: the loss before it, the norms of gradient and update, and what is not finite.

    Attributes:
      step: its number, from 1.
      loss: before the step, nats a token.
      gradient_norm: of the gradient.
      update_norm: of the optimiser's update.
      nonfinite: names of what is not finite.
    """

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
    mesh: Mesh,
) -> list[StepReport]:
    """Train one client in a plain loop exactly as a chunk would, reporting every step until one is not finite.

    Args:
      training: as in the round.
      base: the stage's frozen weights.
      server: the algorithm's state at the start of the round.
      row: the client's bank row.
      batches: tokens i32[S, B, T], mask bool[S, B, T] and, where they are stored, hidden states [S, B, T, D].
      lr: learning rate of the round.
      key: the client's, in this round.
      train_rows: bool[G], which rows learn.
      mesh: of the devices that `base` lies on.
    """
    algorithm = training.algorithm
    participant = participant_of(algorithm, broadcast_of(algorithm, server), row, key, jnp.float32(lr), len(batches[0]))
    train, frozen = place(algorithm.start(participant), mesh)
    key = place(key, mesh)
    compute = dataclasses.replace(training.compute, frozen_layers=frozen_rows(algorithm, train_rows))
    training = dataclasses.replace(training, compute=compute)
    learning = jnp.asarray(train_rows) if algorithm.layered else None

    def rule_of(frozen: PyTree) -> optax.GradientTransformation:
        return algorithm.optimizer(make_optimizer(training.optimizer, lr), frozen, jnp.float32(lr))

    def gradients_on_device(base: Base, frozen: PyTree, *arguments: Any) -> PyTree:
        return step_gradients(client_loss(training, base, frozen), training.passes, *arguments)[1]

    def step_on_device(base: Base, frozen: PyTree, *arguments: Any) -> PyTree:
        loss = client_loss(training, base, frozen)
        return local_step(loss, rule_of(frozen), learning, training.passes, *arguments)

    # Every device computes the same, since each may hold a part of the base alone.
    def on_all_devices(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        specs = (partition_specs(base), *[PartitionSpec()] * 4)
        run = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return partial(jax.jit(run), base, frozen)

    gradients_of, advance = (on_all_devices(each) for each in (gradients_on_device, step_on_device))
    carry = (train, rule_of(frozen).init(train))
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
