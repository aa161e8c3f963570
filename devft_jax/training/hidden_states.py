"""Decides whether a stage stores the outputs of its layers without adapters, and holds the store for that stage.

Every round adds its participants' examples. A resumed run fills the store again, round by round, before it continues.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from devft_jax.accounting.flops import prefix_flops
from devft_jax.config.run_config import RunConfig
from devft_jax.data import Examples
from devft_jax.federated.prefix import PrefixCache, Visits, worth_storing
from devft_jax.federated.work import ClientWork, Rounds
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.llama import Compute
from devft_jax.reporting import Progress
from devft_jax.reporting.progress import readable_bytes
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.processes import several
from devft_jax.training.state import State


class HiddenStates:
    """The stored hidden states of the current stage, if it has any.

    Args:
      config: `prefix_cache` decides whether states are stored.
      model: the architecture.
      compute: how the model is executed.
      examples: the training examples.
      rounds: the run's rounds.
      rows: examples run at once, a multiple of the devices of `mesh`.
      buckets: padded lengths, ascending.
      mesh: the devices that train.
      programs: keeps and counts compiled programs.
      progress: reports what is stored.
      folder: where to store; None for the system's temporary folder.
    """

    def __init__(
        self,
        config: RunConfig,
        model: ModelConfig,
        compute: Compute,
        examples: Examples,
        rounds: Rounds,
        *,
        rows: int,
        buckets: Sequence[int],
        mesh: Mesh,
        programs: CompiledPrograms,
        progress: Progress,
        folder: Path | None,
    ):
        self._config, self._model, self._compute, self._examples = config, model, compute, examples
        self._rounds, self._rows, self._buckets, self._mesh = rounds, rows, buckets, mesh
        self._programs, self._progress, self._folder = programs, progress, folder
        self._store: PrefixCache | None = None

    @property
    def layers(self) -> int:
        """Number of the stage's lowest layers whose outputs are stored, so that they do not run again."""
        return 0 if self._store is None else self._store.layers

    def open(self, state: State, stage_rounds: int) -> None:
        """Start the store of a stage with `stage_rounds` rounds, if it is to have one, and delete the previous stage's
        store."""
        self.close()
        bare, choice = state.layer_map.bare, self._config.prefix_cache
        # With a fleet it is not known before a round who takes part, nor after a resume who did; and of several processes
        # each would store what all of them train on.
        if bare == 0 or choice == "off" or self._config.fleet is not None or several():
            return
        first = state.round - state.rounds_in_stage
        draws = (member.examples for index in range(first, first + stage_rounds) for member in self._rounds.members(index))
        visits = Visits.count(draws, self._examples)
        token_bytes = self._model.width * np.dtype(self._compute.dtype).itemsize
        chunk_tokens = self._rows // self._mesh.size * self._rounds.steps * self._buckets[-1]
        if choice == "auto" and not worth_storing(visits, token_bytes=token_bytes, chunk_tokens=chunk_tokens):
            return
        self._store = PrefixCache(
            self._model,
            self._compute,
            self._examples,
            layers=bare,
            rows=self._rows,
            buckets=self._buckets,
            mesh=self._mesh,
            programs=self._programs,
            folder=self._folder,
        )
        self._progress.say(
            f"the lowest {bare} layers run once for each of {visits.distinct:,} examples, not {visits.total:,} times; "
            f"their hidden states take {readable_bytes(visits.tokens * token_bytes)}"
        )

    def close(self) -> None:
        """Delete the store."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def restore(self, base: Base, state: State) -> None:
        """After a resume, store again what the stage's earlier rounds stored, in the same batches."""
        if self._store is None or self._store.rounds >= state.rounds_in_stage:
            return
        first = state.round - state.rounds_in_stage
        self._progress.say(f"  storing the hidden states of the stage's first {state.rounds_in_stage} rounds again")
        for index in range(first + self._store.rounds, state.round):
            self.fill(base, self._rounds.members(index))

    def fill(self, base: Base, members: Sequence[ClientWork]) -> int:
        """Run a round's examples on the stage's `base` and store their hidden states; returns the operations that it
        took."""
        if self._store is None:
            return 0
        examples_by_length = self._store.fill(base, [member.examples for member in members])
        return sum(
            examples * length * prefix_flops(self._model, layers=self.layers, length=length)
            for length, examples in examples_by_length.items()
        )

    def gather(self, examples: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
        """The stored states [..., T, D] of examples i64[...], -1 for padding; an empty tuple if none are stored."""
        return () if self._store is None else (self._store.gather(examples, length),)
