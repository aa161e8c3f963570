"""A run's trainer: stages, rounds and transfer over one `State`.

    for every stage:       the growth returns a LayerMap; its submodel is fused; the adapter is mapped to it
        for every round:   a cohort trains and is aggregated
        what the submodel learned is transferred to every layer of its group

The trainer does not write files during the run, print progress or handle signals; `devft_jax.training.loop` does.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from devft_jax.accounting.energy import energy_summary
from devft_jax.developmental import LayerMap
from devft_jax.federated.beginning import check_first_state
from devft_jax.federated.messages import message_bytes
from devft_jax.models.adapter import Adapter
from devft_jax.runtime.devices import host_device
from devft_jax.storage.records import CompiledAheadRecord, RoundRecord, RunRecord, RunTotals
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.checkpoints import read_state, resume, save_state
from devft_jax.training.compile_ahead import compile_stage_ahead
from devft_jax.training.evaluate import evaluate_full, transferred
from devft_jax.training.fingerprints import base_fingerprint, data_fingerprint, text_fingerprint
from devft_jax.training.fleet import new_fleet
from devft_jax.training.parts import Parts
from devft_jax.training.round import run_round
from devft_jax.training.stage import begin_stage, end_stage, shorten_stage
from devft_jax.training.state import State
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class Trainer:
    """Trains a run: its methods advance a `State`, using parts that are built once.

    Attributes:
      parts: what the run is built from, see `devft_jax.training.parts.build_parts`.
    """

    parts: Parts

    def begin(self) -> State:
        """The state before the first round, with the untuned base and the adapter with which the run begins evaluated.

        Raises:
          InputError: the run begins with an adapter that does not fit it.
        """
        parts = self.parts
        full = parts.first_state()
        if parts.warm_start is not None:
            check_first_state(parts.algorithm, full, parts.clients, parts.warm_start)
            parts.progress.say(f"the run begins with {parts.warm_start.what}, rank {parts.warm_start.rank}")
        # The clients' properties are computed for all of them at once, in host memory.
        with jax.default_device(host_device()):
            traits = jax.device_get(parts.algorithm.traits(parts.clients))
        totals = RunTotals(
            stage_rounds=list(parts.stage_rounds),
            clients_per_step=parts.cohort.clients_per_step,
            devices=parts.device_count,
            model_shards=parts.config.model_shards,
            data=data_fingerprint(parts.data),
            base=base_fingerprint(parts.model.base),
            public_text=text_fingerprint(parts.config, parts.probe),
            fleet=new_fleet(parts.fleet_rounds),
        )
        state = State(
            full=full,
            bank=parts.new_bank(lambda: full, traits),
            layer_map=LayerMap.identity(parts.model.config.layers),
            last_round=np.zeros(len(parts.data.clients), np.int32),
            totals=totals,
            base=parts.base,
        )
        compile_stage_ahead(parts, state, 0)
        with parts.progress.doing("evaluating the untuned base on held-out data"):
            judged = parts.evaluator.untuned(parts.base, full, state.bank.view(full=True), totals.seconds)
        if judged is not None:
            totals.base_loss, totals.base_accuracy = judged.loss, judged.accuracy
        if parts.warm_start is not None:
            began = evaluate_full(parts, state, full)
            if began is not None:
                totals.start_loss, totals.start_accuracy = began.loss, began.accuracy
        totals.compile_before = totals.seconds.compile
        return state

    def resume(self, folder: RunFolder, round_index: int) -> State:
        """The state of a checkpoint; see `devft_jax.training.checkpoints.resume`."""
        return resume(self.parts, folder, round_index)

    def state_at(self, folder: RunFolder, round_index: int) -> State:
        """The state of a checkpoint as it is, only to read it."""
        return read_state(self.parts, folder, folder.checkpoints.read_record(round_index))

    def save(self, folder: RunFolder, state: State) -> None:
        """Write one checkpoint of the whole state."""
        save_state(folder, state)

    def advance(self, state: State, history: Sequence[RoundRecord]) -> bool:
        """Advance the state until a round can run, entering the next stage if one is due; False at the end of the run.

        Args:
          state: the state before the first round, or after any round.
          history: the records of the rounds so far.
        """
        if state.stage >= 0:
            if state.rounds_in_stage < state.totals.stage_rounds[state.stage]:
                return True
            self.end_stage(state)
        return self.begin_stage(state, history)

    def step(self, state: State, history: list[RoundRecord]) -> RoundRecord:
        """Run one round and add it to the history; the stage may end early after it."""
        row = self.round(state)
        history.append(row)
        shorten_stage(self.parts, state, history)
        return row

    def begin_stage(self, state: State, history: Sequence[RoundRecord]) -> bool:
        """Enter the next stage; False if there is none."""
        return begin_stage(self.parts, state, history)

    def round(self, state: State) -> RoundRecord:
        """Run one round of the current stage."""
        return run_round(self.parts, state)

    def end_stage(self, state: State) -> None:
        """Transfer what the stage learned to every layer."""
        end_stage(self.parts, state)

    def transferred(self, state: State) -> PyTree:
        """The full-depth state with what the current stage has learned so far."""
        return transferred(self.parts, state)

    def global_adapter(self, state: State, *, ended: bool = False) -> Adapter | None:
        """The adapter of all clients at full depth; None if every client has its own.

        Args:
          state: the run's state.
          ended: whether the last stage has ended, so that the full-depth state holds everything.
        """
        algorithm = self.parts.algorithm
        if not algorithm.has_global_model:
            return None
        full = state.full if ended else self.transferred(state)
        return algorithm.global_model(full, state.bank.view(full=True).of_trained())

    def summary(self, state: State) -> RunRecord:
        """The record of a run, finished or not; at least one stage must have begun."""
        parts, totals, last = self.parts, state.totals, state.totals.stages[-1]
        config, programs = parts.config, parts.programs
        peak, source = parts.memory.peak()
        return RunRecord(
            final_loss=last.loss_full_after_transfer,
            base_loss=totals.base_loss,
            accuracy=last.accuracy_full_after_transfer,
            base_accuracy=totals.base_accuracy,
            start_loss=totals.start_loss,
            start_accuracy=totals.start_accuracy,
            personal=last.personal,
            personal_models=not parts.algorithm.has_global_model,
            held_out_examples=0 if parts.data.test is None else len(parts.data.test),
            rounds=state.round,
            stage_rounds=list(totals.stage_rounds),
            lengthened_after=totals.lengthened_after,
            resumed_after=list(totals.resumed_after),
            seconds=dataclasses.replace(totals.seconds),
            programs_compiled=programs.count,
            compiled_ahead=CompiledAheadRecord(**programs.ahead),
            bytes_up=totals.bytes_up,
            bytes_down=totals.bytes_down,
            bytes_stage=totals.bytes_stage,
            bytes_missed=totals.bytes_missed,
            base_bytes=message_bytes(parts.model.base),
            message_dtype=config.message_dtype,
            train_flops=totals.train_flops,
            energy=energy_summary(totals.joules, config, parts.energy.joules_per_flop),
            peak_memory_bytes=peak,
            peak_memory_source=source,
            progress_lost=parts.progress.lost,
            scratch_bytes=programs.scratch_bytes,
            updates_dropped=totals.dropped,
            clients=len(parts.data.clients),
            devices=parts.device_count,
            clients_per_step=parts.cohort.clients_per_step,
            block_influence=totals.block_influence,
            versions=parts.versions,
            stages=[dataclasses.replace(stage) for stage in totals.stages],
            base_scores=totals.base_scores,
            final_scores=totals.final_scores,
            best=None if totals.best is None else dataclasses.replace(totals.best),
            fleet=None if totals.fleet is None else dataclasses.replace(totals.fleet, flights=None, begun=None),
        )
