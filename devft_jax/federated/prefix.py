"""The hidden states below a stage's adapters, made once for each example and stored while the stage lasts.

A stage that runs the base's lowest layers without an adapter computes the same hidden states of an example every time that
one is visited. With u the cost of a layer's forward pass per token, m such layers and v visits of each example, that is
v m u per token; with the states stored it is m u, and in every visit D values are read. Storing them saves work from the
second visit on, and `worth_storing` asks for two per example on average.

The store is one flat array [tokens, D] in the compute dtype, laid out like the examples' own tokens. Only what is written
of it takes room. It is a file without a name, mapped into memory: it goes with the stage or with the process, whichever ends
first, and is no part of a checkpoint. Every round adds its examples. A resumed run makes the store again, round by round
and so in the same batches, whence the same bits.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from devft_jax.data import Examples, evaluation_batches
from devft_jax.errors import RunError
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute, prefix_states
from devft_jax.models.sharding import partition_specs
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import OVER_DEVICES

# What `auto` asks for: visits per distinct example, at most so many bytes on disk, and on a device for one chunk of clients.
LEAST_VISITS = 2.0
MOST_STORED = 8 * 2**30
MOST_IN_CHUNK = 2**30


@dataclass(frozen=True)
class Visits:
    """How often a stage trains on its examples: `total` visits of `distinct` examples, which have `tokens` tokens."""

    total: int
    distinct: int
    tokens: int

    @classmethod
    def count(cls, draws: Iterable[np.ndarray], examples: Examples) -> "Visits":
        """Of draws of examples, integers of any shape."""
        counts = np.zeros(len(examples), np.int64)
        for draw in draws:
            np.add.at(counts, draw.ravel(), 1)
        seen = counts > 0
        return cls(int(counts.sum()), int(seen.sum()), int(examples.lengths[seen].sum()))


def worth_storing(visits: Visits, *, token_bytes: int, chunk_tokens: int) -> bool:
    """Whether storing hidden states pays and fits.

    Args:
      token_bytes: of the hidden state of one token. chunk_tokens: of one chunk on one device, padding included.
    """
    return (
        visits.total >= LEAST_VISITS * visits.distinct
        and visits.tokens * token_bytes <= MOST_STORED
        and chunk_tokens * token_bytes <= MOST_IN_CHUNK
    )


@shared_programs
def jit_states(config: ModelConfig, compute: Compute, layers: int, mesh: Mesh) -> jax.stages.Wrapped:
    """(base, tokens i32[B, T]) -> the hidden states [B, T, D] that the lowest `layers` layers make."""

    # Rows are run apart: devices need of each other parts of the base alone, where they hold it together.
    def states(base: Base, tokens: jax.Array) -> jax.Array:
        run = partial(prefix_states, config, layers=layers, compute=compute)
        specs = (partition_specs(base), OVER_DEVICES)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=OVER_DEVICES, check_vma=False)(base, tokens)

    return jax.jit(states)


class PrefixCache:
    """The stored states of one stage.

    Args:
      config, compute: the model. layers: how many of its lowest are run here.
      examples: the training part. buckets: padded lengths, ascending. rows: examples run at once, a multiple of the devices.
      mesh: of the devices. programs: where compiled programs are kept and counted.
      folder: where the file lies; None for the system's temporary folder.

    Attributes:
      rounds: rounds of the stage whose examples have been filled in.

    Raises:
      RunError: the file cannot be made.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute: Compute,
        examples: Examples,
        *,
        layers: int,
        rows: int,
        buckets: Sequence[int],
        mesh: Mesh,
        programs: CompiledPrograms,
        folder: Path | None,
    ):
        self.layers = layers
        self.rounds = 0
        self._examples, self._buckets, self._rows = examples, buckets, rows
        self._programs, self._folder = programs, folder
        self._dtype = np.dtype(compute.dtype)
        self._width = config.width
        self._filled = np.zeros(len(examples), bool)
        self._split = NamedSharding(mesh, OVER_DEVICES)
        self._states = jit_states(config, compute, layers, mesh)
        shape = (len(examples.tokens), config.width)
        try:
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            self._file.truncate(shape[0] * self._token_bytes)
            # Written through the file, since a write to a mapping that finds the disk full kills the process.
            self._stored = np.memmap(self._file, self._dtype, "r", shape=shape)
        except OSError as error:
            raise self._no_room(error) from error

    @property
    def _token_bytes(self) -> int:
        return self._width * self._dtype.itemsize

    def _no_room(self, error: OSError) -> RunError:
        where = "the system's temporary folder" if self._folder is None else str(self._folder)
        return RunError(
            f"prefix_cache could not store hidden states in {where} ({error.strerror}); make room there, or run again with "
            "prefix_cache off."
        )

    def fill(self, base: Base, draws: Sequence[np.ndarray]) -> dict[int, int]:
        """Run the examples of one round that have not been run yet.

        Args:
          base: placed on the devices. draws: of every participant, integers [S, B].

        Returns:
          How many examples of each length were run.

        Raises:
          RunError: the file cannot be written.
        """
        self.rounds += 1
        drawn = np.unique(np.concatenate([draw.ravel() for draw in draws]))
        new = drawn[~self._filled[drawn]]
        waiting = None
        for index, tokens, _ in evaluation_batches(self._examples.take(new), self._rows, self._buckets):
            batch = jax.device_put(tokens, self._split)
            states = self._programs.call("prefix", self._states, base, batch)
            # The device works on this batch while the host writes the one before.
            if waiting is not None:
                self._write(*waiting)
            real = index >= 0
            waiting = new[index[real]], states
        if waiting is not None:
            self._write(*waiting)
        return dict(Counter(self._examples.lengths[new].tolist()))

    def _write(self, index: np.ndarray, states: jax.Array) -> None:
        rows = np.asarray(states)
        try:
            for example, row in zip(index.tolist(), rows, strict=False):
                self._file.seek(int(self._examples.starts[example]) * self._token_bytes)
                self._file.write(row[: self._examples.lengths[example]].tobytes())
            self._file.flush()
        except OSError as error:
            raise self._no_room(error) from error
        self._filled[index] = True

    def gather(self, index: np.ndarray, length: int) -> np.ndarray:
        """Stored states [..., T, D] of examples i64[...] of earlier `fill`s, T = `length`; zero at padding and for -1."""
        flat = index.ravel()
        if not self._filled[flat[flat >= 0]].all():
            raise ValueError("hidden states of an example are asked for that was not filled in: fill its round first.")
        states = np.zeros((flat.size, length, self._width), self._dtype)
        for row, example in zip(states, flat.tolist(), strict=True):
            if example >= 0:
                start, count = self._examples.starts[example], self._examples.lengths[example]
                row[:count] = self._stored[start : start + count]
        return states.reshape(*index.shape, length, self._width)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()
        del self._stored
