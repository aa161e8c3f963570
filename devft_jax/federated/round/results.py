"""What goes into a round and what comes out of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from devft_jax.federated.round.chunk import ClientOutputs
from devft_jax.federated.work import ClientWork
from devft_jax.models.adapter import Adapter
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class RoundResult:
    """The results of a round, except the participants' new rows, which are in the bank. K participants, S steps.

    Attributes:
      server: the server's state after aggregation.
      losses: f32[K, S], per participant and step; 0 for steps that a participant does not take.
      update_norms: f32[K], per participant.
      finite: bool[K], which participants' losses and updates are finite.
      metrics: the algorithm's own metrics.
      bytes_up: bytes of all participants' messages to the server together.
      bytes_down: bytes of all messages to the participants together.
      examples_by_length: number of examples trained on, by length.
      bytes_cumulative: bytes of the part of one client's downlink that it would also need of rounds that it missed.
      adapter: shapes of one client's adapter.
      train: shapes of its trained leaves.
    """

    server: PyTree
    losses: np.ndarray
    update_norms: np.ndarray
    finite: np.ndarray
    metrics: dict[str, float]
    bytes_up: int
    bytes_down: int
    examples_by_length: dict[int, int]
    bytes_cumulative: int
    adapter: Adapter
    train: PyTree


@dataclass(frozen=True)
class Group:
    """Participants that begin from the same state of the server.

    Attributes:
      server: the algorithm's state.
      cohort: the participants, each once.
      lr: their learning rate.
      keys: ids u32[C] -> key[C], the clients' random keys.
    """

    server: PyTree
    cohort: Sequence[ClientWork]
    lr: float
    keys: Callable[[np.ndarray], jax.Array]


@dataclass(frozen=True)
class Part:
    """What participants that hold the same part of the model returned. K participants.

    Attributes:
      sums: of their contributions.
      outputs: their reports, without rows.
      examples_by_length: number of examples trained on, by length.
      down: shapes of the message to one client.
      up: shapes of one client's message.
      adapter: shapes of one client's adapter.
      train: shapes of its trained leaves.
    """

    sums: PyTree
    outputs: ClientOutputs
    examples_by_length: dict[int, int]
    down: PyTree
    up: PyTree
    adapter: Adapter
    train: PyTree
