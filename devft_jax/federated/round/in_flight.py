"""The chunks that run on the devices at the same time as the host prepares others, and what happens if they do not fit."""

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np

from devft_jax.federated.round.assembly import Bank, HostChunk
from devft_jax.federated.round.chunk import ClientOutputs

# Chunks whose inputs may be on the device at once: one running and one waiting.
CHUNKS_IN_FLIGHT = 2


class InFlight:
    """The chunks that are still running on the devices, and the outputs of those that have finished.

    Args:
      bank: the clients' rows.
      size: clients of a chunk.

    Attributes:
      bank: the clients' rows.
      stored: whether rows of participants have been replaced in the bank.
      places: clients of all chunks so far, including padding.
    """

    def __init__(self, bank: Bank, size: int):
        self.stored, self.places = False, 0
        self.bank = bank
        self._size = size
        self._running: deque[tuple[HostChunk, ClientOutputs]] = deque()
        self._ended: list[tuple[np.ndarray, ClientOutputs]] = []

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Raises a `ChunkTooLargeError` if what runs in this context needs more memory than there is."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise if_too_large(error, self._size, begun=self.stored) from error

    def add(self, chunk: HostChunk, outputs: ClientOutputs) -> None:
        """Add a launched chunk; wait until at most `CHUNKS_IN_FLIGHT` run."""
        # From here on the host needs the places of the chunk's rows, not its inputs.
        self._running.append((replace(chunk, rows=None, batches=()), outputs))
        self.places += len(chunk.positions)
        if len(self._running) > CHUNKS_IN_FLIGHT:
            self._end_first()

    def finish(self) -> tuple[np.ndarray, ClientOutputs]:
        """Wait for all chunks; returns the participants' places in the cohort, and their outputs except their rows."""
        with self.checked():
            while self._running:
                self._end_first()
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._ended)

    def _end_first(self) -> None:
        chunk, outputs = self._running.popleft()
        outputs = jax.tree.map(lambda leaf: leaf[: chunk.real], jax.device_get(outputs))
        kept = np.flatnonzero(outputs.statistics.finite)
        self.bank.put(chunk.positions[kept], jax.tree.map(lambda leaf: leaf[kept], outputs.rows))
        self.stored |= bool(jax.tree.leaves(self.bank.row))
        self._ended.append((chunk.slots[: chunk.real], outputs.replace(rows=None)))


def in_order(slots: np.ndarray, outputs: ClientOutputs) -> ClientOutputs:
    """The outputs in the cohort's order.

    Args:
      slots: i32[K], the participants' places in the cohort.
      outputs: of the participants, [K, ...].
    """
    return jax.tree.map(lambda leaf: leaf[np.argsort(slots)], outputs)


class ChunkTooLargeError(Exception):
    """A chunk does not fit into memory.

    Attributes:
      size: clients of the chunk.
      begun: whether rows of participants had already been replaced.
    """

    def __init__(self, size: int, begun: bool):
        super().__init__(size, begun)
        self.size, self.begun = size, begun


def if_too_large(error: BaseException, size: int, *, begun: bool) -> BaseException:
    """The error as a `ChunkTooLargeError` if it means that memory ran out; otherwise the error itself."""
    full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
    return ChunkTooLargeError(size, begun) if full else error
