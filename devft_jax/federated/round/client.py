"""A client's part of a round: it receives a message, trains its leaves, and sends a message back.

    participant        address(down, row), known, row
    train, frozen      start(participant)
    each local step    reduces completion_loss(adapter(train, frozen)) + share * penalty(train, frozen)
    up, new row        finish(participant, trained)

All functions here are traced: inside the compiled chunk (`devft_jax.federated.round.chunk`), in a replay, or on shapes alone
(`jax.eval_shape`), which is how messages are measured before anything is trained.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.layer_map import frozen_below
from devft_jax.federated.algorithm import Algorithm, Participant
from devft_jax.federated.local import Batch, Loss, OptimizerOptions, Passes
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.models.loss import completion_loss
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class LocalTraining:
    """What the program of a client's round is made of; hashable, so that equal ones may share a compiled program.

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
    """The loss that a client's steps reduce.

    Args:
      training: what the client trains.
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
    algorithm: Algorithm, broadcast: tuple[PyTree, PyTree], row: PyTree, key: jax.Array, lr: jax.Array, steps: int
) -> Participant:
    """One client at the start of its round.

    Args:
      algorithm: addresses the message.
      broadcast: what the server sends, and what is known without a message.
      row: what the client kept of earlier rounds.
      key: the client's key of the round.
      lr: the round's learning rate, f32[].
      steps: how many local steps it takes.
    """
    down, known = broadcast
    # A stream of its own: training folds the step's number into the same key.
    own_key = jax.random.fold_in(key, np.uint32(2**32 - 1))
    return Participant(algorithm.address(down, row), known, row, own_key, lr, steps)


def frozen_rows(algorithm: Algorithm, train_rows: np.ndarray) -> int:
    """How many of a stage's lowest layers need no gradient; 0 for an algorithm that cannot keep layers from learning."""
    return frozen_below(train_rows) if algorithm.layered else 0


def participant_shapes(algorithm: Algorithm, broadcast: tuple[PyTree, PyTree], row: PyTree) -> Participant:
    """Shapes and dtypes of one client at the start of its round; arguments as of `participant_of`."""
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
