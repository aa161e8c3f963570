"""A client's part of a round: it receives a message, trains, and sends a message back.

    participant        address(down, row), known, row
    train, frozen      start(participant)
    each local step    minimises completion_loss(adapter(train, frozen)) + share * penalty(train, frozen)
    up, new row        finish(participant, trained)

All functions here are traced: inside the compiled chunk (`devft_jax.federated.round.chunk`), in a replay, or on shapes alone
(`jax.eval_shape`), by which messages are measured before anything is trained.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.maps import frozen_below
from devft_jax.federated.algorithm import Algorithm, Participant
from devft_jax.federated.local import Batch, Loss, Passes
from devft_jax.federated.options import OptimizerOptions
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_loss
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class LocalTraining:
    """What the program of a client's round is built from; hashable, so that equal ones share a compiled program.

    Attributes:
      algorithm: what is trained and sent.
      config: the base's architecture.
      compute: how the base is executed.
      optimizer: the optimiser of the local steps.
      passes: how the examples of a step are divided into passes.
    """

    algorithm: Algorithm
    config: ModelConfig
    compute: Compute
    optimizer: OptimizerOptions
    passes: Passes


def client_loss(training: LocalTraining, base: Base, frozen: PyTree) -> Loss:
    """The loss that a client's steps minimise.

    Args:
      training: what the client's program is built from.
      base: the stage's frozen model.
      frozen: the part of the client's message that it does not train.

    Returns:
      A function that returns the loss with the algorithm's penalty, f32[], and the loss without it, which is reported.
    """
    algorithm = training.algorithm

    def loss(train: PyTree, batch: Batch, keys: jax.Array, count: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
        tokens, mask, *stored = batch
        adapter = algorithm.adapter(train, frozen)
        options: dict[str, Any] = {"prefix": stored[0] if stored else None, "count": count, "axis": training.passes.axis}
        value = completion_loss(training.config, base, adapter, tokens, mask, compute=training.compute, key=keys, **options)
        return value + share * algorithm.penalty(train, frozen), value

    return loss


def participant_of(
    algorithm: Algorithm,
    broadcast: tuple[PyTree, PyTree],
    row: PyTree,
    key: jax.Array,
    lr: jax.Array,
    steps: int | jax.Array,
) -> Participant:
    """One client at the beginning of its round.

    Args:
      algorithm: addresses the message.
      broadcast: what the server sends, and what clients know without a message.
      row: what the client has kept of earlier rounds.
      key: the client's random key in the round.
      lr: f32[], the round's learning rate.
      steps: number of local steps that it takes; traced, i32[], where clients may take fewer than others.
    """
    down, known = broadcast
    # A separate stream: training folds the step's number into the same key.
    own_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
    return Participant(algorithm.address(down, row), known, row, own_key, lr, steps)


def frozen_rows(algorithm: Algorithm, train_rows: np.ndarray) -> int:
    """Number of a stage's lowest layers that need no gradient; 0 for an algorithm that cannot freeze layers."""
    return frozen_below(train_rows) if algorithm.layered else 0


def participant_shapes(algorithm: Algorithm, broadcast: tuple[PyTree, PyTree], row: PyTree) -> Participant:
    """Shapes and dtypes of one client at the beginning of its round; the arguments are those of `participant_of`."""
    return jax.eval_shape(
        lambda broadcast, row: participant_of(
            algorithm, broadcast, row, jax.random.key(0, impl="threefry2x32"), jnp.float32(0), 1
        ),
        broadcast,
        row,
    )


def uplink_shapes(algorithm: Algorithm, participant: Participant) -> PyTree:
    """Shapes and dtypes of the message that a client sends up."""

    def untrained(participant: Participant) -> PyTree:
        train, _ = algorithm.start(participant)
        return algorithm.finish(participant, train)[0]

    return jax.eval_shape(untrained, participant)
