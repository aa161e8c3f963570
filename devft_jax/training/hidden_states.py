"""Whether a stage stores what its bare layers make, and the store while it does.

Every round adds its participants' examples. A resumed run makes the store again, round by round, before it goes on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from devft_jax.accounting import prefix_flops
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
from devft_jax.training.state import State


class HiddenStates:
    """The stored hidden states of the stage under way, if it has any.

    Args:
      config: `prefix_cache` decides.
      model: the architecture.
      compute: how it is run.
      examples: the training part.
      rounds: of the run.
      rows: examples run at once, a multiple of the devices of `mesh`.
      buckets: padded lengths, ascending.
      mesh: of the devices that train.
      programs: where compiled programs are kept and counted.
      progress: where it is said what is stored.
      folder: where; None for the system's temporary one.
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
        """How many of the stage's lowest layers are stored and not run again."""
        return 0 if self._store is None else self._store.layers

    def open(self, state: State, stage_rounds: int) -> None:
        """Begin the store of a stage of so many rounds, if there is to be one, and let that of another stage go."""
        self.close()
        bare, choice = state.layer_map.bare, self._config.prefix_cache
        if bare == 0 or choice == "off":
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
            f"the lowest {bare} layers run once for each of {visits.distinct:,} examples, not in {visits.total:,} visits; "
            f"their hidden states take {readable_bytes(visits.tokens * token_bytes)}"
        )

    def close(self) -> None:
        """Let the store go."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def restore(self, base: Base, state: State) -> None:
        """Store again, after a resume, what the stage's earlier rounds stored, in the same batches."""
        if self._store is None or self._store.rounds >= state.rounds_in_stage:
            return
        first = state.round - state.rounds_in_stage
        self._progress.say(f"  storing the hidden states of the stage's first {state.rounds_in_stage} rounds again")
        for index in range(first + self._store.rounds, state.round):
            self.fill(base, self._rounds.members(index))

    def fill(self, base: Base, members: Sequence[ClientWork]) -> int:
        """Store the hidden states of a round's examples, run on the stage's `base`; the operations that it took."""
        if self._store is None:
            return 0
        examples_by_length = self._store.fill(base, [member.examples for member in members])
        return sum(
            examples * length * prefix_flops(self._model, layers=self.layers, length=length)
            for length, examples in examples_by_length.items()
        )

    def gather(self, examples: np.ndarray, length: int) -> tuple[np.ndarray, ...]:
        """The stored states [..., T, D] of examples i64[...], -1 for padding; nothing where none are stored."""
        return () if self._store is None else (self._store.gather(examples, length),)
