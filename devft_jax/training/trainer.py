"""One run's machinery: stages, rounds and transfer over one `State`.

    for every stage:   the growth gives a LayerMap; its submodel is fused; LoRA enters it
        for every round:   a cohort trains and is aggregated
        what the submodel learned returns to every layer of its group

The trainer knows nothing of folders, progress files or signals; `devft_jax.training.run` does.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from devft_jax.accounting import Adaptation, EnergyMeter, MemoryMeter, energy_summary, training_flops
from devft_jax.accounting.communication import picked_layers_bytes
from devft_jax.config.execution import local_devices, resolve_clients_per_step, resolve_compute
from devft_jax.config.methods import algorithm_of, growth_of
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data import FederatedData, build_federated_data, check_data_found, gather_batch, length_buckets, pool
from devft_jax.developmental import (
    Growth,
    LayerMap,
    StageShape,
    Transition,
    next_stage,
)
from devft_jax.errors import InputError, RunError
from devft_jax.evaluation import HeldOut, Judgement
from devft_jax.evaluation.judging import Judge
from devft_jax.federated.algorithm import Algorithm, Clients, same_server
from devft_jax.federated.bank import ClientBank
from devft_jax.federated.local import OptimizerOptions, choose_passes
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.options import learning_rate_at, validate_learning_rate
from devft_jax.federated.profiles import profiled_clients
from devft_jax.federated.round.chunk_size import Trial, choose, next_smaller
from devft_jax.federated.round.client import LocalTraining, frozen_rows, participant_shapes
from devft_jax.federated.round.cohort import ChunkTooLargeError, Cohort, RoundResult
from devft_jax.federated.sampling import Purpose, client_keys, run_key
from devft_jax.federated.work import ClientWork, Participants, Rounds
from devft_jax.models.adapter import Adapter
from devft_jax.models.base import Base, parameter_count
from devft_jax.models.huggingface.model import Model
from devft_jax.models.lora import adapter_norms
from devft_jax.models.quantization import base_shapes
from devft_jax.models.sharding import part_bytes, undivided, whole
from devft_jax.options import room_of
from devft_jax.reporting import Progress
from devft_jax.reporting.layers import is_negative
from devft_jax.reporting.progress import readable_bytes
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import device_memory, host_device, shapes_on, versions
from devft_jax.storage import RunFolder
from devft_jax.storage.records import CheckpointRecord, CompiledAheadRecord, RoundRecord, RunRecord, RunTotals
from devft_jax.training.checkpoints import read_state, save_state
from devft_jax.training.checks import check_cohort, check_ranks, check_tokens
from devft_jax.training.fingerprints import base_fingerprint, data_fingerprint
from devft_jax.training.given import check_given_growth
from devft_jax.training.hidden_states import HiddenStates
from devft_jax.training.probe import block_influence, probe_examples
from devft_jax.training.stages import after_round, check_composition, plan_stages
from devft_jax.training.state import State, add_round, missed_bytes, new_stage_record
from devft_jax.training.submodels import Submodels, open_model
from devft_jax.typing import PyTree

_PROGRAMS = {
    "chunk": "what clients train",
    "evaluate": "what judges held-out data",
    "prefix": "the layers below",
    "finalize": "the server's step",
}
"""Compiled programs that take a while, in words."""


@shared_programs
def jit_norms(algorithm: Algorithm) -> jax.stages.Wrapped:
    """Norms of the layers' updates: server -> f32[G], or (server, rows [C, ...]) -> f32[C, G] where models are personal."""
    personal = algorithm.personal
    if personal is None:
        return jax.jit(lambda server: adapter_norms(algorithm.view(server)))
    return jax.jit(lambda server, rows: jax.vmap(lambda row: adapter_norms(personal(server, row)))(rows))


def _above(base: Base, layer_map: LayerMap) -> Base:
    """The base with the layers alone that have an adapter."""
    return base.replace(blocks=jax.tree.map(lambda leaf: leaf[layer_map.bare :], base.blocks))


class Trainer:
    """One run's machinery: fixed parts built once, and the `State` that its methods advance.

    Args:
      config: validated here. model, data, algorithm, growth: objects that take the place of what the config names.
      progress: where progress is told.
      scratch: folder for what is too large for memory while a stage lasts; None for the system's temporary one.

    Raises:
      InputError: anything about the request that cannot work; nothing has been compiled or written by then.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        model: Model | None = None,
        data: FederatedData | None = None,
        algorithm: Algorithm | None = None,
        growth: Growth | None = None,
        progress: Progress,
        scratch: Path | None = None,
    ):
        validate(config)
        if data is None:
            check_data_found(config)
        self.config = config
        self.progress = progress
        self.devices = local_devices(config)
        self.compute = resolve_compute(config)
        self._compiled_for = ""
        self.programs = CompiledPrograms(
            lambda name: progress.doing(f"compiling {_PROGRAMS.get(name, name)}{self._compiled_for}")
        )
        self.energy = EnergyMeter(config, self.devices)
        self.memory = MemoryMeter()
        with progress.doing("reading the model"):
            self.model, original_blocks = open_model(config, self.compute, model)
        layers = self.model.config.layers
        if growth is not None:
            check_given_growth(growth)
        self.growth = growth or growth_of(config, layers)
        self.depths = self.growth.depths(layers)
        self.stage_rounds = plan_stages(config, self.growth, layers)
        validate_learning_rate(config, len(self.stage_rounds))
        if algorithm is None:
            check_ranks(config, self.model.config)
        self.algorithm = algorithm or algorithm_of(config)
        check_composition(self.algorithm, self.growth.shapes(layers) or ())
        self._probe = probe_examples(config, self.model.tokenizer) if not self.growth.measured else None
        with progress.doing("reading and splitting the data"):
            self.data = data or build_federated_data(config, self.model.tokenizer, seed=config.seed)
        check_cohort(self.data, config.clients_per_round)
        check_tokens(self.data, self.model.config, config.max_length, progress)
        participants, local_steps = config.clients_per_round, config.local_steps
        if self.algorithm.pools:
            self.data = pool(self.data)
            participants, local_steps = 1, config.clients_per_round * config.local_steps
        self.rounds = Rounds(
            self.data,
            seed=config.seed,
            participants=participants,
            steps=local_steps,
            batch_size=config.batch_size,
            weighting=self.algorithm.weighting if config.weighting == "method" else config.weighting,
        )
        # Beyond the participants there would only be padding, which costs as much as a client.
        shards = config.model_shards
        training_devices = self.devices[: -(-participants // shards) * shards]
        self._most_per_step = -(-participants // len(training_devices)) * len(training_devices)
        at_once = min(resolve_clients_per_step(config, training_devices), self._most_per_step)
        self.buckets = length_buckets(config.max_length)
        self.passes = choose_passes(
            self.data.train.lengths,
            batch_size=config.batch_size,
            examples=config.examples_per_pass,
            most_lengths=config.length_buckets,
            platform=training_devices[0].platform,
        )
        optimizer = room_of(OptimizerOptions, config)
        self.training = LocalTraining(self.algorithm, self.model.config, self.compute, optimizer, self.passes)
        self.cohort = Cohort(
            self.training,
            devices=training_devices,
            model_shards=shards,
            clients_per_step=at_once,
            assemble=self.assemble,
            programs=self.programs,
        )
        self.submodels = Submodels(
            config,
            self.model,
            original_blocks,
            dtype=self.compute.dtype,
            depths=self.depths,
            mesh=self.cohort.mesh,
        )
        self.base = self.submodels.base
        if shards > 1:
            self._tell_shards()
        held_out = None
        if self.data.test is not None:
            held_out = HeldOut(
                self.model.config,
                self.compute,
                self.data.test,
                buckets=self.buckets,
                batch_size=config.evaluation_batch,
                devices=self.devices,
                model_shards=shards,
                programs=self.programs,
            )
        self.judge = Judge(self.algorithm, held_out, self.programs)
        self.hidden_states = HiddenStates(
            config,
            self.model.config,
            self.compute,
            self.data.train,
            self.rounds,
            rows=at_once * config.batch_size,
            buckets=self.buckets,
            mesh=self.cohort.mesh,
            programs=self.programs,
            progress=progress,
            folder=scratch,
        )
        self.clients = profiled_clients(self.data, self.model.base.embed, config.seed)
        self.stage_base: Base = self.base
        # The stage during which the next one's programs were last begun.
        self._ahead_of = -1
        self.scratch = scratch
        self.versions = versions(self.devices[0])
        self._norms = jit_norms(self.algorithm)

    @property
    def clients_per_step(self) -> int:
        """Clients trained at once."""
        return self.cohort.clients_per_step

    def block_influence(self) -> list[float]:
        """How much each layer of the untuned base changes what passes through it, on the growth's probe."""
        assert self._probe is not None
        return block_influence(
            self.model.config, self.base, self.compute, self._probe, self.config, self.cohort.mesh, self.programs
        )

    def _tell_shards(self) -> None:
        """Say how much of the base each device holds, and which large weights could not be divided."""
        shards = self.config.model_shards
        held = readable_bytes(part_bytes(self.base, shards))
        self.progress.say(
            f"{shards} devices hold the base together: {held} of {readable_bytes(message_bytes(self.base))} each"
        )
        if names := undivided(self.base):
            self.progress.warn(
                f"model_shards {shards} divides no dimension of {', '.join(names)}, which every device holds whole; "
                "another number of shards may."
            )

    # ---- beginning and resuming ----------------------------------------------------------------------------------

    def begin(self) -> State:
        """The state before the first round, with the untuned base evaluated."""
        full = self._init_server(self.clients)
        identity = LayerMap.identity(self.model.config.layers)
        # What clients tell apart is made of all of them at once, in host memory.
        with jax.default_device(host_device()):
            traits = jax.device_get(self.algorithm.traits(self.clients))
        bank = self._bank(lambda: full, traits)
        last_round = np.zeros(len(self.data.clients), np.int32)
        totals = RunTotals(
            stage_rounds=list(self.stage_rounds),
            clients_per_step=self.clients_per_step,
            devices=len(self.devices),
            model_shards=self.config.model_shards,
            data=data_fingerprint(self.data),
            base=base_fingerprint(self.model.base),
        )
        state = State(full=full, bank=bank, layer_map=identity, last_round=last_round, totals=totals)
        self._compile_ahead(state, 0)
        with self.progress.doing("judging the untuned base on held-out data"):
            base = self.judge.evaluate(self.base, None, state.totals.seconds)
        state.totals.compile_before = state.totals.seconds.compile
        state.totals.base_loss = None if base is None else base.loss
        state.totals.base_accuracy = None if base is None else base.accuracy
        return state

    def _compile_ahead(self, state: State, stage: int) -> None:
        """Have a stage's programs compiled while something else runs, where its shape is known before it begins."""
        layers = self.model.config.layers
        planned = self.growth.shapes(layers) or ()
        wanted = self.config.compile_ahead == "on" or (
            self.config.compile_ahead == "auto" and self.devices[0].platform != "cpu"
        )
        if not wanted or stage >= min(len(planned), len(self.stage_rounds)):
            return
        layer_map = planned[stage].some_map(layers)
        stored = layer_map.bare > 0 and self.config.prefix_cache != "off"
        if stored and self.config.prefix_cache == "auto":
            # Whether hidden states are stored is decided when the stage begins.
            return
        base = self.submodels.shapes(layer_map)
        server = jax.eval_shape(
            lambda full, base: self.algorithm.enter(self.algorithm.submodel(full, layer_map), _above(base, layer_map)),
            state.full,
            whole(base),
        )
        row = state.bank.stage_row(layer_map)
        shape = self.rounds.steps, self.rounds.batch_size, self.passes.lengths[-1]
        batch = [jax.ShapeDtypeStruct(shape, np.int32), jax.ShapeDtypeStruct(shape, bool)]
        if stored:
            batch.append(jax.ShapeDtypeStruct((*shape, self.model.config.width), self.compute.dtype))
        self.cohort.prepare(base, server, row, tuple(batch), np.asarray(layer_map.train))
        self.judge.prepare(base, server, row)
        rows = () if self.algorithm.personal is None else (shapes_on(None, row, self.clients_per_step),)
        self.programs.prepare("adapter_norms", self._norms, shapes_on(None, server), *rows)

    def _bank(self, origin: Callable[[], PyTree], traits: PyTree) -> ClientBank:
        """The bank in which no client has a row yet."""
        return ClientBank(
            self.algorithm,
            origin,
            traits,
            clients=len(self.data.clients),
            mode=self.config.transfer,
            in_memory=self.config.bank_in_memory,
            folder=self.scratch,
        )

    def _init_server(self, clients: Clients) -> PyTree:
        key = run_key(self.config.seed, Purpose.INITIALISATION)
        return self.algorithm.init_server(key, self.model.config, clients)

    def resume(self, folder: RunFolder, round_index: int) -> State:
        """The state of a checkpoint, with the stage's submodel rebuilt from its LayerMap."""
        folder.checkpoints.check(round_index)
        record = folder.checkpoints.read_record(round_index)
        totals, done = record.totals, record.round
        found = {"data": data_fingerprint(self.data), "base": base_fingerprint(self.model.base)}
        for name, before in (("data", totals.data), ("base", totals.base)):
            if before != found[name]:
                raise InputError(
                    f"the {name} of the run in {folder.path} has changed since it was started; "
                    "restore it, or start a new run in another folder."
                )
        planned = tuple(totals.stage_rounds)
        self.stage_rounds = self._extended(planned, folder)
        if self.stage_rounds != planned:
            rate = self._rate_at(totals, record.stage, record.rounds_in_stage - 1, planned)
            totals.stage_rounds = list(self.stage_rounds)
            totals.lengthened_after = done
            self._choose_lengthened_rate(record, planned, rate)
        unfinished = done < sum(self.stage_rounds)
        if unfinished:
            totals.resumed_after.append(done)
        devices = len(self.devices), self.config.model_shards
        if self.config.clients_per_step == "auto" and (totals.devices, totals.model_shards) == devices:
            self.cohort.clients_per_step = totals.clients_per_step
        now = dataclasses.replace(
            totals, clients_per_step=self.clients_per_step, devices=devices[0], model_shards=devices[1]
        )
        if unfinished:
            for name in ("clients_per_step", "devices", "model_shards"):
                if (was := getattr(totals, name)) != (value := getattr(now, name)):
                    self.progress.warn(
                        f"{name} was {was} and is {value}: the run goes on, equal up to rounding but not bit for bit."
                    )
            record.totals = now
        state = read_state(
            folder,
            record,
            self.algorithm,
            self._init_server,
            self._bank(lambda: self._init_server(self.clients), self.algorithm.traits(Clients(len(self.data.clients)))),
            clients=len(self.data.clients),
            layers=self.model.config.layers,
            align=self.config.gauge_alignment,
        )
        self.stage_base = self.submodels.fused(state.layer_map, self.submodels.layers_to_fuse(state.stage))
        if state.rounds_in_stage < self.stage_rounds[state.stage]:
            self.hidden_states.open(state, self.stage_rounds[state.stage])
        return state

    def _extended(self, planned: tuple[int, ...], folder: RunFolder) -> tuple[int, ...]:
        """The stages of the interrupted run; a larger `rounds` lengthens the last of them."""
        wanted = sum(self.stage_rounds)
        if wanted < sum(planned):
            raise InputError(
                f"rounds {wanted} is fewer than the {sum(planned)} of the run in {folder.path}; "
                "a run can be lengthened, not shortened."
            )
        return (*planned[:-1], planned[-1] + wanted - sum(planned))

    def _choose_lengthened_rate(self, record: CheckpointRecord, planned: tuple[int, ...], before: float) -> None:
        """Decide by what schedule a lengthened run goes on, and say what that makes of its rate.

        Args:
          record: of the run, with its new stages.
          planned: the old ones.
          before: the rate of the last round.
        """
        totals = record.totals
        if self.config.lengthened_rate == "end":
            if totals.rate_ends_after is None:
                totals.rate_ends_after = sum(planned)
        else:
            totals.rate_ends_after = None
        stage, done = record.stage, record.rounds_in_stage
        stage, done = (stage, done) if done < self.stage_rounds[stage] else (stage + 1, 0)
        after = self._rate_at(totals, stage, done, self.stage_rounds)
        if after == before:
            return
        ends = dataclasses.replace(totals, rate_ends_after=sum(planned))
        end = self._rate_at(ends, len(planned) - 1, planned[-1], self.stage_rounds)
        total, last = sum(self.stage_rounds), record.round
        told = (
            f"lengthened from {sum(planned)} to {total} rounds: the learning rate is {before:.3g} in round {last} and "
            f"{after:.3g} in round {last + 1}"
        )
        if after > before and self.config.lengthened_rate == "schedule":
            self.progress.warn(
                f"{told}, as schedule {self.config.schedule} has it for a run of {total}; --lengthened-rate end goes on at "
                f"{end:.3g}, where it had come down to."
            )
        else:
            self.progress.say(told)

    def save(self, folder: RunFolder, state: State) -> None:
        """One checkpoint of everything."""
        save_state(folder, state)

    # ---- stages --------------------------------------------------------------------------------------------------

    def begin_stage(self, state: State, history: Sequence[RoundRecord]) -> bool:
        """Ask the growth for the next stage and enter it; False when there is none."""
        stage = state.stage + 1
        if stage >= len(self.stage_rounds):
            return False
        began = time.perf_counter()
        self._compiled_for = f" in stage {stage + 1}"
        with self.progress.doing(f"building stage {stage + 1}'s model"):
            transition = self._enter(state, stage, history)
        if transition is None:
            return False
        layer_map = state.layer_map
        record = new_stage_record(
            transition,
            layer_map,
            planned_rounds=self.stage_rounds[stage],
            submodel_bytes=0 if self.algorithm.pools else self._submodel_bytes(layer_map),
            cached_layers=self.hidden_states.layers,
        )
        state.totals.stages.append(record)
        state.totals.seconds.build += time.perf_counter() - began
        judged = self.judge_stage(state)
        record.loss_start = None if judged is None else judged.loss
        self.progress.stage(stage, len(self.stage_rounds), record, self._loss_before(state))
        trained = self._trained_parameters(state)
        share = trained / parameter_count(base_shapes(self.model.config, dtype=self.compute.dtype))
        self.progress.say(f"  {trained:,} parameters are trained, {share:.2%} of the model's")
        negative = [value for value in record.anchor_coefficients or () if value is not None and is_negative(value)]
        if negative:
            self.progress.warn(
                f"an anchor's weight is negative ({min(negative):.2f}), as Eq. 5 has it for a group this large; "
                "--beta auto avoids it."
            )
        return True

    def _enter(self, state: State, stage: int, history: Sequence[RoundRecord]) -> Transition | None:
        """Choose the stage's submodel and make it the state's; None where the growth has no further stage."""
        blocks = self.submodels.layers_to_fuse(stage)
        adapter = self.algorithm.view(state.full)
        tree = (blocks, *self.submodels.brought_home((adapter.lora, adapter.delta)))
        key = jax.random.fold_in(run_key(self.config.seed, Purpose.GROWTH), stage)
        if self._probe is not None:
            if state.totals.block_influence is None:
                state.totals.block_influence = self.block_influence()
            # Kept, so that a resumed run chooses by the same figures wherever it goes on.
            self.growth = self.growth.prepared(lambda: np.asarray(state.totals.block_influence))
        try:
            with jax.default_device(self.submodels.home):
                transition = next_stage(self.growth, stage, tree, history, key)
        except ValueError as error:
            raise RunError(f"stage {stage + 1} could not be built: {error}") from error
        if transition is None:
            return None
        check_composition(self.algorithm, [StageShape.of(transition.layer_map)])
        layer_map = dataclasses.replace(transition.layer_map, align=self.config.gauge_alignment)
        state.layer_map, state.stage, state.rounds_in_stage = layer_map, stage, 0
        state.bank.enter(layer_map)
        self.stage_base = self.submodels.fused(layer_map, blocks)
        state.server = self.algorithm.submodel(state.full, layer_map)
        if self.algorithm.enter is not same_server:
            state.server = self._entered(state.server, layer_map)
        jax.block_until_ready((self.stage_base, state.server))
        self.hidden_states.open(state, self.stage_rounds[stage])
        return transition

    def _entered(self, server: PyTree, layer_map: LayerMap) -> PyTree:
        """A stage's state, completed from the frozen weights of the layers that have an adapter."""
        base = _above(self.submodels.at_home(self.stage_base), layer_map)
        if self.submodels.home is None:
            return self.algorithm.enter(server, base)
        with jax.default_device(self.submodels.home):
            entered = jax.device_get(self.algorithm.enter(jax.device_get(server), base))
        return jax.device_put(entered)

    def _trained_parameters(self, state: State) -> int:
        """Numbers that a participant of the stage optimises, without those of layers that are kept from learning."""
        row = state.bank.stage_row(state.layer_map)
        broadcast = jax.eval_shape(
            lambda server: (self.algorithm.broadcast(server), self.algorithm.known(server)), state.server
        )
        train, _ = jax.eval_shape(self.algorithm.start, participant_shapes(self.algorithm, broadcast, row))
        rows = np.asarray(state.layer_map.train)
        learning = np.count_nonzero(rows) / len(rows) if self.algorithm.layered else 1
        return round(sum(leaf.size for leaf in jax.tree.leaves(train)) * learning)

    def _loss_before(self, state: State) -> float | None:
        """Held-out loss of the full model before the stage that has just begun."""
        earlier = state.totals.stages[:-1]
        return earlier[-1].loss_full_after_transfer if earlier else state.totals.base_loss

    def _submodel_bytes(self, layer_map: LayerMap) -> int:
        """What a client that holds the base needs besides: nothing, the numbers of the layers picked, or fused layers."""
        if layer_map.runs_base:
            return 0
        if layer_map.selected() is not None:
            return picked_layers_bytes(layer_map.num_groups)
        return message_bytes(self.stage_base.blocks)

    def shorten_stage(self, state: State, history: Sequence[RoundRecord]) -> None:
        """End the stage here if its loss has flattened; the rounds that it leaves go to the last stage."""
        losses = [row.loss for row in history if row.stage == state.stage]
        planned, self.stage_rounds = self.stage_rounds, after_round(self.config, self.stage_rounds, state.stage, losses)
        if self.stage_rounds != planned:
            state.totals.stage_rounds = list(self.stage_rounds)
            self.progress.say(
                f"  the mean loss has flattened: stage {state.stage + 1} ends after {len(losses)} of "
                f"{planned[state.stage]} rounds, the rest goes to the last stage"
            )

    def end_stage(self, state: State) -> None:
        """Return what the stage learned to every layer, and record whether it survived."""
        self.hidden_states.close()
        record = state.totals.stages[-1]
        submodel = self.judge_stage(state)
        began = time.perf_counter()
        with self.progress.doing(f"carrying what stage {state.stage + 1} learned to all layers"):
            state.full = jax.block_until_ready(self.transferred(state))
            state.bank.leave()
        state.totals.seconds.build += time.perf_counter() - began
        judged = submodel
        if not state.layer_map.is_identity:
            judged = self._judge_full(state, state.full)
        if judged is not None and self.algorithm.consensus is not None and state.stage + 1 == len(self.stage_rounds):
            # At the run's end each client's own model, too, beside the one that stands for all of them.
            with self.progress.doing("judging every client's own model on held-out data"):
                own = self.judge.own_models(self.base, state.full, state.bank.view(full=True), state.totals.seconds)
            judged = None if own is None else dataclasses.replace(judged, personal=own.personal)
        record.loss_end = None if submodel is None else submodel.loss
        record.loss_full_after_transfer = None if judged is None else judged.loss
        record.accuracy_full_after_transfer = None if judged is None else judged.accuracy
        record.personal = None if judged is None else judged.personal
        self.progress.stage_end(record)

    def transferred(self, state: State) -> PyTree:
        """The full-depth state with what the stage under way has learned so far."""
        return self.algorithm.transfer(state.full, state.server, state.layer_map, self.config.transfer)

    # ---- rounds --------------------------------------------------------------------------------------------------

    def assemble(self, examples: np.ndarray) -> tuple[np.ndarray, ...]:
        """Padded rows of the training examples, all as long as the longest; -1 gives padding.

        Tokens and mask, and stored hidden states where the stage has them.
        """
        length = self.passes.lengths[-1]
        batch = gather_batch(self.data.train, examples, length)
        return *batch, *self.hidden_states.gather(examples, length)

    def learning_rate(self, state: State) -> float:
        """The rate of the next round."""
        return self._rate_at(state.totals, state.stage, state.rounds_in_stage, self.stage_rounds)

    def _rate_at(self, totals: RunTotals, stage: int, round_in_stage: int, stage_rounds: tuple[int, ...]) -> float:
        """The rate of a round in these stages; past the end of a schedule that was not lengthened with the run, its last."""
        planned = sum(stage_rounds)
        beyond = max(0, planned - (planned if totals.rate_ends_after is None else totals.rate_ends_after))
        scheduled = (*stage_rounds[:-1], stage_rounds[-1] - beyond)
        return learning_rate_at(self.config, scheduled, stage, min(round_in_stage, scheduled[stage]))

    def prepare_client(self, state: State, position: int) -> tuple[ClientWork, tuple[np.ndarray, ...]]:
        """What one client does in the next round, of which it need be no participant, and the batches that it trains on."""
        member = self.rounds.work(position, state.round)
        self.hidden_states.restore(self.stage_base, state)
        # First in the batches of the round itself, so that the client has the same hidden states as in it.
        for members in (self.rounds.members(state.round), [member]):
            self.hidden_states.fill(self.stage_base, members)
        return member, self.assemble(member.examples)

    def round(self, state: State) -> RoundRecord:
        """One round; advances the state and returns its line of metrics."""
        self.hidden_states.restore(self.stage_base, state)
        began, compiled = time.perf_counter(), self.programs.seconds
        self.programs.peak_bytes = 0
        counters = self.energy.read()
        members = self.rounds.members(state.round)
        fill_flops = self.hidden_states.fill(self.stage_base, members)
        rate = self.learning_rate(state)
        result = self._train(state, members, rate)
        self._report_nonfinite(state, members, result)
        state.server = jax.block_until_ready(result.server)
        seconds = time.perf_counter() - began - (self.programs.seconds - compiled)
        program_bytes = self.programs.peak_bytes
        norms = self._adapter_norms(state, members.positions)
        state.round += 1
        state.rounds_in_stage += 1
        kept = result.finite
        missed = 0
        if self.algorithm.cumulative is not None:
            missed = missed_bytes(state, members.positions, result.bytes_cumulative)
        tokens = sum(length * examples for length, examples in result.examples_by_length.items())
        row = RoundRecord(
            round=state.round,
            stage=state.stage,
            layers=state.layer_map.num_groups,
            loss=float(result.losses[kept].mean()),
            learning_rate=rate,
            metrics={name: value if np.isfinite(value) else None for name, value in result.metrics.items()},
            client_update_norm=float(result.update_norms[kept].mean()),
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=tokens / seconds,
            bytes_up=0 if self.algorithm.pools else result.bytes_up,
            bytes_down=0 if self.algorithm.pools else result.bytes_down,
            bytes_missed=missed,
            train_flops=fill_flops + self._flops(state, result),
            program_bytes=program_bytes,
            adapter_norms=[float(f"{norm:.6g}") if np.isfinite(norm) else None for norm in norms],
            dropped=int(np.count_nonzero(~kept)),
            clients=members.positions.tolist(),
        )
        row_compile = self.programs.seconds - compiled
        add_round(state, row, row_compile)
        if self.config.clients_per_step == "auto" and not state.totals.clients_per_step_settled:
            # Also where nobody has waited for it: a larger size would be waited for.
            compile_seconds = self.programs.compile_seconds["chunk"]
            self._settle_clients_per_step(state, members, Trial(seconds / len(members), compile_seconds, program_bytes))
        if self._ahead_of != state.stage:
            self._ahead_of = state.stage
            began = time.perf_counter()
            self._compile_ahead(state, state.stage + 1)
            state.totals.seconds.build += time.perf_counter() - began
        source, joules = self.energy.spent_since(counters, row.train_flops)
        state.totals.joules[source] = state.totals.joules.get(source, 0.0) + joules
        return row

    def _train(self, state: State, members: Participants, rate: float) -> RoundResult:
        """A round of the cohort; where its chunks do not fit into memory and their size is free, in smaller ones."""
        while True:
            try:
                return self.cohort.run(self.stage_base, state.server, state.bank, members, **self._round_inputs(state, rate))
            except ChunkTooLargeError as error:
                smaller = next_smaller(error.size, self.cohort.mesh.size)
                if smaller is None:
                    raise RunError(
                        "one client at a time on each device does not fit into memory; lower batch_size or max_length, set "
                        "remat to full, or use a quantised base."
                    ) from error
                if self.config.clients_per_step != "auto" or error.begun:
                    raise RunError(
                        f"clients_per_step {error.size} does not fit into memory; run again with clients_per_step {smaller}."
                    ) from error
                self.progress.warn(f"{error.size} clients at once do not fit into memory; going on with {smaller}")
                self.cohort.clients_per_step = smaller
                state.totals.clients_per_step, state.totals.clients_per_step_settled = smaller, True

    def _round_inputs(self, state: State, rate: float) -> dict[str, Any]:
        round_index = np.uint32(state.round)
        return {
            "lr": rate,
            "keys": lambda ids: client_keys(self.config.seed, round_index, ids),
            "train_rows": np.asarray(state.layer_map.train),
        }

    def _settle_clients_per_step(self, state: State, members: Participants, first: Trial) -> None:
        """Choose how many clients are trained at once from here on, by what the round just run of `members` has cost."""
        left = len(members) * (sum(self.stage_rounds) - state.round)
        if state.rounds_in_stage == self.stage_rounds[state.stage]:
            return
        began, compiled = time.perf_counter(), self.programs.seconds
        rate = self.learning_rate(state)

        def trial(smaller: int, larger: int) -> tuple[Trial, Trial] | None:
            inputs = self._round_inputs(state, rate)
            sizes = smaller, larger
            return self.cohort.trials(self.stage_base, state.server, state.bank, members, sizes=sizes, **inputs)

        devices = list(self.cohort.mesh.devices.flat)
        size = choose(
            trial,
            start=self.clients_per_step,
            most=self._most_per_step,
            clients=left,
            first=first,
            memory=device_memory(devices),
        )
        compile_seconds = self.programs.seconds - compiled
        state.totals.seconds.compile += compile_seconds
        state.totals.seconds.build += time.perf_counter() - began - compile_seconds
        state.totals.clients_per_step, state.totals.clients_per_step_settled = size, True
        if size != self.clients_per_step:
            self.progress.say(f"  {size} clients are trained at once from here on: faster than {self.clients_per_step}")
            self.cohort.clients_per_step = size

    def _adapter_norms(self, state: State, positions: np.ndarray) -> np.ndarray:
        """Norms f64[G] of the global model's update, or their means over the participants' own models."""
        if self.algorithm.personal is None:
            return np.asarray(self.programs.call("adapter_norms", self._norms, state.server), float)
        total = np.zeros(state.layer_map.num_groups)
        for first in range(0, len(positions), self.clients_per_step):
            some = positions[first : first + self.clients_per_step]
            padded = np.pad(some, (0, self.clients_per_step - len(some)), "edge")
            norms = self.programs.call("adapter_norms", self._norms, state.server, state.bank.take(padded))
            total += np.asarray(norms, float)[: len(some)].sum(axis=0)
        return total / len(positions)

    def _flops(self, state: State, result: RoundResult) -> int:
        """Operations of a round's training, over all participants; without layers whose hidden states were stored before."""
        layers = state.layer_map.depth - self.hidden_states.layers
        return sum(
            examples
            * length
            * training_flops(
                self.model.config,
                layers=layers,
                adaptation=Adaptation.of(result.adapter, result.train, layers),
                frozen=frozen_rows(self.algorithm, np.asarray(state.layer_map.train)),
                length=length,
            )
            for length, examples in result.examples_by_length.items()
        )

    def _report_nonfinite(self, state: State, members: Sequence[ClientWork], result: RoundResult) -> None:
        """Name every participant whose update was dropped; too many of them end the run."""
        broken = [
            self._broken_client(state, members[index], result.losses[index])
            for index in np.flatnonzero(~result.finite).tolist()
        ]
        for sentence in broken:
            self.progress.warn(f"{sentence}; its update is dropped")
        if len(broken) / len(members) > self.config.max_nonfinite:
            name = self.data.clients[members[int(np.argmin(result.finite))].position].name
            raise RunError(
                f"{len(broken)} of {len(members)} updates are not finite, more than max_nonfinite "
                f"{self.config.max_nonfinite} allows ({broken[0]}); lower learning_rate in a new folder, or look "
                f"closer: devft replay {self.config.out} --client {name} --round {state.round + 1}"
            )

    def _broken_client(self, state: State, member: ClientWork, losses: np.ndarray) -> str:
        bad = np.flatnonzero(~np.isfinite(losses))
        step = int(bad[0]) + 1 if len(bad) else len(losses)
        what = f"the loss is {losses[bad[0]]}" if len(bad) else "the update is not finite"
        name = self.data.clients[member.position].name
        return f"client '{name}', stage {state.stage + 1}, round {state.round + 1}, step {step}: {what}"

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def judge_stage(self, state: State) -> Judgement | None:
        """The stage's model, or the clients' own models, on held-out data; None without it."""
        judged = self._judged(f"stage {state.stage + 1}'s model")
        with self.progress.doing(f"judging {judged} on held-out data"):
            return self.judge.models(self.stage_base, state.server, state.bank.view(full=False), state.totals.seconds)

    def judge_transferred(self, state: State) -> Judgement | None:
        """The full model as if the stage under way, of a submodel, ended now; None without held-out data."""
        began = time.perf_counter()
        full = jax.block_until_ready(self.transferred(state))
        state.totals.seconds.evaluate += time.perf_counter() - began
        return self._judge_full(state, full)

    def _judge_full(self, state: State, full: PyTree) -> Judgement | None:
        with self.progress.doing(f"judging {self._judged('the full model')} on held-out data"):
            return self.judge.models(self.base, full, state.bank.view(full=True), state.totals.seconds)

    def _judged(self, model: str) -> str:
        """What is judged, in words: of methods without a global model, what every client has of its own."""
        return model if self.algorithm.has_global_model else "every client's own model"

    def global_adapter(self, state: State) -> Adapter | None:
        """The adapter of all clients at full depth, with what was learned so far; None where each only has its own."""
        if not self.algorithm.has_global_model:
            return None
        return self.algorithm.global_model(self.transferred(state), state.bank.view(full=True).of_trained())

    def summary(self, state: State) -> RunRecord:
        """The figures of a run, finished or as it stands, as `summary.json` and `record.json` hold them."""
        totals = state.totals
        peak, source = self.memory.peak()
        last = totals.stages[-1]
        return RunRecord(
            final_loss=last.loss_full_after_transfer,
            base_loss=totals.base_loss,
            accuracy=last.accuracy_full_after_transfer,
            base_accuracy=totals.base_accuracy,
            personal=last.personal,
            personal_models=not self.algorithm.has_global_model,
            held_out_examples=0 if self.data.test is None else len(self.data.test),
            rounds=state.round,
            stage_rounds=list(self.stage_rounds),
            lengthened_after=totals.lengthened_after,
            resumed_after=totals.resumed_after,
            seconds=dataclasses.replace(totals.seconds),
            programs_compiled=self.programs.count,
            compiled_ahead=CompiledAheadRecord(**self.programs.ahead),
            bytes_up=totals.bytes_up,
            bytes_down=totals.bytes_down,
            bytes_stage=totals.bytes_stage,
            bytes_missed=totals.bytes_missed,
            base_bytes=message_bytes(self.model.base),
            message_dtype=self.config.message_dtype,
            train_flops=totals.train_flops,
            energy=energy_summary(totals.joules, self.config, self.energy.joules_per_flop),
            peak_memory_bytes=peak,
            peak_memory_source=source,
            progress_lost=self.progress.lost,
            scratch_bytes=self.programs.scratch_bytes,
            updates_dropped=totals.dropped,
            clients=len(self.data.clients),
            devices=len(self.devices),
            clients_per_step=self.clients_per_step,
            block_influence=totals.block_influence,
            versions=self.versions,
            stages=[dataclasses.replace(stage) for stage in totals.stages],
        )
