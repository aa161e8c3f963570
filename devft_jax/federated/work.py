"""The work of a round's participants: who they are, which examples they draw, and the weights of their messages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from devft_jax.data import FederatedData, draw_examples
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.sampling import sample_cohort


@dataclass(frozen=True)
class ClientWork:
    """One participant of a round.

    Attributes:
      position: index in the population, for the bank.
      id: u32, the same in every run, for random draws.
      weight: weight of its message, such as its number of examples.
      examples: i64[S, B], numbers of the examples that it drew; -1 for those of steps that it does not take.
      lengths: integers [s, B], tokens of each example of the s <= S steps that it takes.
      scale: factor of its message, below 1 for one that began from an earlier state of the server.
    """

    position: int
    id: int
    weight: float
    examples: np.ndarray
    lengths: np.ndarray
    scale: float = 1.0

    @property
    def steps(self) -> int:
        """Local steps that it takes."""
        return len(self.lengths)


def round_work(algorithm: Algorithm, clients_per_round: int, local_steps: int) -> tuple[int, int]:
    """The number of participants of a round, and the local steps of each.

    If an algorithm pools the clients' examples, one participant trains the steps of all clients of the round.

    Args:
      algorithm: whether it pools examples.
      clients_per_round: as the option of that name.
      local_steps: as the option of that name.
    """
    return (1, clients_per_round * local_steps) if algorithm.pools else (clients_per_round, local_steps)


class Participants(Sequence[ClientWork]):
    """The participants of a round in their order; the work of each is computed when it is read.

    A cohort of thousands is therefore drawn a few chunks at a time while earlier ones train, and is never in memory as a
    whole.

    Args:
      positions: i64[K], indices of the participants in the population.
      work: returns the work of the client with an index.
    """

    def __init__(self, positions: np.ndarray, work: Callable[[int], ClientWork]):
        self.positions, self._work = positions, work

    def __len__(self) -> int:
        """K."""
        return len(self.positions)

    @overload
    def __getitem__(self, which: int) -> ClientWork: ...
    @overload
    def __getitem__(self, which: slice) -> list[ClientWork]: ...
    def __getitem__(self, which: int | slice) -> ClientWork | list[ClientWork]:
        """The work of one participant, or of several."""
        if isinstance(which, slice):
            return [self._work(position) for position in self.positions[which].tolist()]
        return self._work(int(self.positions[which]))


class Rounds:
    """The rounds of a run, determined by its seed.

    Args:
      data: the clients and their examples.
      seed: seed of the run.
      participants: number of participants of a round.
      steps: local steps of a participant.
      batch_size: examples of a step.
      weighting: weight of a message: "examples" for the number of its client's examples, or "uniform".
    """

    def __init__(
        self,
        data: FederatedData,
        *,
        seed: int,
        participants: int,
        steps: int,
        batch_size: int,
        weighting: str,
    ):
        self.data, self.seed, self.participants = data, seed, participants
        self.steps, self.batch_size, self.weighting = steps, batch_size, weighting
        self._ids = np.array([client.id for client in data.clients], np.uint32)

    def members(self, round_index: int) -> Participants:
        """The participants of a round (from 0), in ascending order of index."""
        positions = sample_cohort(self.seed, round_index, self._ids, self.participants)
        return Participants(positions, lambda position: self.work(position, round_index))

    def some(self, positions: np.ndarray, steps: np.ndarray, round_index: int) -> Participants:
        """Given participants of a round (from 0), some of which may take fewer local steps.

        Args:
          positions: i64[K], their indices, ascending.
          steps: i64[K], local steps of each, from 1 to S.
          round_index: the round.
        """
        taken = dict(zip(positions.tolist(), steps.tolist(), strict=True))
        return Participants(positions, lambda position: self.work(position, round_index, taken[position]))

    def work(self, position: int, round_index: int, steps: int | None = None) -> ClientWork:
        """What one client does in a round.

        Args:
          position: index of the client.
          round_index: the round, from 0.
          steps: local steps that it takes, from 1 to S; None for all.
        """
        client = self.data.clients[position]
        examples = draw_examples(
            client.indices,
            seed=self.seed,
            round=round_index,
            client_id=client.id,
            steps=self.steps,
            batch_size=self.batch_size,
        )
        weight = float(len(client.indices)) if self.weighting == "examples" else 1.0
        lengths = self.data.train.lengths[examples[:steps]]
        if steps is not None and steps < self.steps:
            examples = np.concatenate([examples[:steps], np.full_like(examples[steps:], -1)])
        return ClientWork(position, client.id, weight, examples, lengths)
