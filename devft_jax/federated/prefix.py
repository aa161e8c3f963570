"""The hidden states below a stage's adapters, computed once for each example and cached during the stage.

A stage that runs the base's lowest layers without an adapter computes the same hidden states each time that it visits an
example. With u the cost of a layer's forward pass per token, m such layers and v visits of each example, that costs v m u
per token; with stored states m u, and D values are read in every visit. Storing saves work from the second visit on, and
`worth_storing` requires two visits per example on average.

The cache is one flat array [tokens, D] in the compute dtype, in the order of the examples' own tokens. Only the parts that
are written take disk space. It is a temporary, memory-mapped file without a name: it is deleted with the stage or the
process, and is not part of a checkpoint. Every round adds its examples. A resumed run fills the cache again, round by round
in the same batches, and so gets the same bits.
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

# The limits of `auto`: least visits per distinct example, most bytes on disk, and most bytes on a device for one chunk.
LEAST_VISITS = 2.0
MOST_STORED = 8 * 2**30
MOST_IN_CHUNK = 2**30


@dataclass(frozen=True)
class Visits:
    """How often a stage trains on its examples.

    Attributes:
      total: number of visits.
      distinct: number of different examples.
      tokens: tokens of these examples together.
    """

    total: int
    distinct: int
    tokens: int

    @classmethod
    def count(cls, draws: Iterable[np.ndarray], examples: Examples) -> "Visits":
        """Count the visits of draws.

        Args:
          draws: indices of examples, integers of any shape.
          examples: the training examples.
        """
        counts = np.zeros(len(examples), np.int64)
        for draw in draws:
            np.add.at(counts, draw.ravel(), 1)
        seen = counts > 0
        return cls(int(counts.sum()), int(seen.sum()), int(examples.lengths[seen].sum()))


def worth_storing(visits: Visits, *, token_bytes: int, chunk_tokens: int) -> bool:
    """Whether storing hidden states pays and fits.

    Args:
      visits: the visits of the stage.
      token_bytes: bytes of the hidden state of one token.
      chunk_tokens: tokens of one chunk on one device, padding included.
    """
    return (
        visits.total >= LEAST_VISITS * visits.distinct
        and visits.tokens * token_bytes <= MOST_STORED
        and chunk_tokens * token_bytes <= MOST_IN_CHUNK
    )


@shared_programs
def jit_states(config: ModelConfig, compute: Compute, layers: int, mesh: Mesh) -> jax.stages.Wrapped:
    """(base, tokens i32[B, T]) -> the hidden states [B, T, D] above the lowest `layers` layers."""

    # Every device runs its own rows; devices that hold the base together only exchange parts of it.
    def states(base: Base, tokens: jax.Array) -> jax.Array:
        run = partial(prefix_states, config, layers=layers, compute=compute)
        specs = (partition_specs(base), OVER_DEVICES)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=OVER_DEVICES, check_vma=False)(base, tokens)

    return jax.jit(states)


class PrefixCache:
    """The stored states of one stage.

    Args:
      config: the model's architecture.
      compute: how the model is executed.
      examples: the training examples.
      layers: number of the lowest layers that are run here.
      rows: examples run at once, a multiple of the devices.
      buckets: padded lengths, ascending.
      mesh: the devices.
      programs: keeps and counts compiled programs.
      folder: folder of the file; None for the system's temporary folder.

    Attributes:
      rounds: rounds of the stage whose examples have been filled in.

    Raises:
      RunError: the file cannot be created.
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
            # Written through the file, because a write to a mapping on a full disk would kill the process.
            self._stored = np.memmap(self._file, self._dtype, "r", shape=shape)
        except OSError as error:
            raise self._no_room(error) from error

    @property
    def _token_bytes(self) -> int:
        return self._width * self._dtype.itemsize

    def _no_room(self, error: OSError) -> RunError:
        where = "the system's temporary folder" if self._folder is None else str(self._folder)
        return RunError(
            f"prefix_cache could not store hidden states in {where} ({error.strerror}); free space there, or run again with "
            "prefix_cache off."
        )

    def fill(self, base: Base, draws: Sequence[np.ndarray]) -> dict[int, int]:
        """Run the examples of one round that have not been run yet.

        Args:
          base: the model, placed on the devices.
          draws: every participant's examples, integers [S, B] each.

        Returns:
          The number of examples of each length that were run.

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
            # The device computes this batch while the host writes the previous one.
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
        """Stored states of examples.

        Args:
          index: i64[...], numbers of examples; -1 for padding.
          length: T.

        Returns:
          States [..., T, D], zero after an example's end and for -1.

        Raises:
          ValueError: an example was in no round of `fill`.
        """
        flat = index.ravel()
        if not self._filled[flat[flat >= 0]].all():
            raise ValueError("the hidden states of an example are not stored: fill its round first.")
        states = np.zeros((flat.size, length, self._width), self._dtype)
        for row, example in zip(states, flat.tolist(), strict=True):
            if example >= 0:
                start, count = self._examples.starts[example], self._examples.lengths[example]
                row[:count] = self._stored[start : start + count]
        return states.reshape(*index.shape, length, self._width)

    def close(self) -> None:
        """Delete the file."""
        self._file.close()
        del self._stored
