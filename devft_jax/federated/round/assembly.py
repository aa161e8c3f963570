"""Assembles chunks on the host: which participants train together, and the arrays that their program reads.

All devices wait for the chunk's client with the most tokens, and the clients of a device are padded alike. The participants
of `CHUNKS_SORTED` chunks at a time are therefore sorted by their tokens before they are divided into chunks, and each chunk
is then distributed over its devices. A last chunk that is not full is padded with clients of weight zero, never cut.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from devft_jax.federated.work import ClientWork
from devft_jax.runtime.processes import ALONE, Processes
from devft_jax.typing import PyTree

# Number of chunks whose participants are sorted together.
CHUNKS_SORTED = 8

Assemble = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""Examples i64[..., S, B], -1 for padding -> tokens and mask [..., S, B, T] and, if a round reads them, stored hidden
states [..., S, B, T, D]. Called on a background thread."""


class Bank(Protocol):
    """The clients' rows, as a round uses them.

    Attributes:
      row: shapes and dtypes of one row.
    """

    row: PyTree

    def take(self, positions: np.ndarray) -> PyTree:
        """Rows [C, ...] of the clients at `positions` i64[C]; called from a different thread than `put`."""

    def put(self, positions: np.ndarray, rows: PyTree) -> None:
        """Store rows [C, ...] for the clients at `positions` i64[C], which are not taken again in the round."""

    def move(self, positions: np.ndarray, to: np.ndarray) -> None:
        """Bring the rows of the clients at `positions` i64[K] to the processes `to` i64[K]; called before the round, by all
        of several processes."""


@dataclass(frozen=True)
class HostChunk:
    """The host's arrays of one chunk of C clients.

    Attributes:
      real: number of participants; the other clients, at the end, are padding.
      positions: i64[C], the clients' indices in the population.
      ids: u32[C], the clients' ids.
      weights: f32[C], weights of their messages; zero for padding.
      slots: i32[C], their places in the cohort.
      steps: i32[C], local steps that each takes; zero for padding.
      scales: f32[C], factors of their messages.
      rows: [C, ...], what they keep.
      batches: [C, S, B, ...], their examples.
      lengths: number of the participants' examples by length, of all processes.
    """

    real: int
    positions: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    slots: np.ndarray
    steps: np.ndarray
    scales: np.ndarray
    rows: PyTree
    batches: tuple[np.ndarray, ...]
    lengths: Counter[int]


def groups(cohort: Sequence[ClientWork], size: int, devices: int) -> Iterator[tuple[np.ndarray, list[ClientWork]]]:
    """Divide a cohort into chunks of similar work.

    Args:
      cohort: the participants of a round.
      size: clients per chunk, a multiple of the devices.
      devices: number of devices over which a chunk is divided.

    Yields:
      The participants of each chunk, after their places in the cohort i64[K]; K is `size` except for the last chunk.
    """
    for first in range(0, len(cohort), size * CHUNKS_SORTED):
        some = cohort[first : first + size * CHUNKS_SORTED]
        order = np.argsort([-int(member.lengths.sum()) for member in some], kind="stable")
        for begin in range(0, len(some), size):
            chosen = order[begin : begin + size]
            if len(chosen) == size:
                # A device trains neighbours in the chunk's array; in sorted order the first device would get all the
                # longest.
                chosen = chosen.reshape(-1, devices).T.ravel()
            yield first + chosen, [some[index] for index in chosen.tolist()]


def host_chunks(
    cohort: Sequence[ClientWork],
    bank: Bank,
    assemble: Assemble,
    *,
    size: int,
    devices: int,
    processes: Processes = ALONE,
) -> Iterator[HostChunk]:
    """The chunks of a cohort, each assembled when it is requested; of several processes, this one's part of each.

    Args:
      cohort: the participants of a round.
      bank: gives their rows.
      assemble: makes batches from their examples.
      size: clients per chunk, a multiple of the devices.
      devices: number of devices of all processes, over which a chunk is divided.
      processes: the processes that share the round.

    Raises:
      ValueError: a participant's weight is not positive and finite, so that a mean may have no weight.
    """
    width = size // processes.count
    part = slice(processes.index * width, (processes.index + 1) * width)
    return (_host_chunk(slots, members, bank, assemble, width, part) for slots, members in groups(cohort, size, devices))


def trained_by(cohort: Sequence[ClientWork], *, size: int, devices: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which process trains which participant of a round.

    Args:
      cohort: the participants.
      size: as in `host_chunks`.
      devices: as in `host_chunks`.
      count: number of processes.

    Returns:
      The participants' indices in the population i64[K], and the number of a process for each i64[K].
    """
    positions, found = [], []
    for _, members in groups(cohort, size, devices):
        positions += [member.position for member in members]
        found += [place // (size // count) for place in range(len(members))]
    return np.array(positions, np.int64), np.array(found, np.int64)


def _host_chunk(
    slots: np.ndarray, members: list[ClientWork], bank: Bank, assemble: Assemble, size: int, part: slice
) -> HostChunk:
    """A process's part of the chunk of the participants at `slots` of the cohort."""
    for member in members:
        if not 0 < member.weight < math.inf:
            raise ValueError(
                f"the weight {member.weight} of the client at position {member.position} is not positive and "
                "finite: give every participant a positive weight, or leave it out."
            )
    own = members[part]
    examples = np.full((size, *members[0].examples.shape), -1, np.int64)
    weights = np.zeros(size, np.float32)
    ids = np.zeros(size, np.uint32)
    steps, scales = np.zeros(size, np.int32), np.ones(size, np.float32)
    positions = np.full(size, members[0].position)
    for slot, member in enumerate(own):
        examples[slot], weights[slot] = member.examples, member.weight
        ids[slot], positions[slot] = member.id, member.position
        steps[slot], scales[slot] = member.steps, member.scale
    return HostChunk(
        real=len(own),
        positions=positions,
        ids=ids,
        weights=weights,
        # Padding has no slot of its own and adds zero to the slot that it names.
        slots=np.concatenate([slots[part], np.full(size - len(own), slots[-1])]).astype(np.int32),
        steps=steps,
        scales=scales,
        rows=bank.take(positions),
        batches=assemble(examples),
        lengths=Counter(np.concatenate([member.lengths.ravel() for member in members]).tolist()),
    )
