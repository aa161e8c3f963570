"""What a run is built from, once: model, data, algorithm, growth and the programs of its rounds.

    config, or objects in place of what it names  ->  Parts

Every error in the request is raised here, before anything is compiled or written. What changes during the run is in
`devft_jax.training.state.State`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from devft_jax.accounting.energy import EnergyMeter
from devft_jax.accounting.memory import MemoryMeter
from devft_jax.config.execution import local_devices, resolve_compute
from devft_jax.config.methods import growth_of, imports, method_of, sent_through
from devft_jax.config.run_config import RunConfig
from devft_jax.data import (
    Examples,
    FederatedData,
    build_federated_data,
    check_data_found,
    pool,
)
from devft_jax.developmental import Growth
from devft_jax.evaluation.evaluator import Evaluator
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.federated.bank import ClientBank
from devft_jax.federated.beginning import first_state
from devft_jax.federated.messages import message_bytes
from devft_jax.federated.options import validate_learning_rate
from devft_jax.federated.profiles import profiled_clients
from devft_jax.federated.round.chunk_size import SizeSearch
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.round.cohort import Cohort
from devft_jax.federated.sampling import Purpose, run_key
from devft_jax.federated.warm_start import WarmStart
from devft_jax.federated.work import Rounds, round_work
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base, Block
from devft_jax.models.huggingface.model import Model
from devft_jax.models.lora import adapter_norms
from devft_jax.models.sharding import part_bytes, undivided
from devft_jax.reporting import Progress
from devft_jax.reporting.progress import readable_bytes
from devft_jax.runtime.compiled import CompiledPrograms, shared_programs
from devft_jax.runtime.devices import versions
from devft_jax.runtime.processes import ALONE, Processes
from devft_jax.training.checks import check_cohort, check_held_out, check_ranks, check_tokens
from devft_jax.training.classes import ClientClasses
from devft_jax.training.fisher import layer_fisher
from devft_jax.training.fleet import FleetRounds, open_participation
from devft_jax.training.given import check_given_algorithm, check_given_growth
from devft_jax.training.gradients import Slopes, public_slopes, reads_text
from devft_jax.training.hidden_states import HiddenStates
from devft_jax.training.machine import Machine, open_cohort, open_held_out
from devft_jax.training.notice import CompilationNotice
from devft_jax.training.probe import block_influence, probe_examples, text_similarity
from devft_jax.training.stages import check_composition, check_stage_end, plan_stages
from devft_jax.training.submodels import Submodels, open_model
from devft_jax.training.warm_start import read_warm_start
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class Parts:
    """Everything that a run is built from, fixed while it runs.

    Attributes:
      config: a valid configuration.
      progress: the progress output.
      programs: all compiled programs.
      notice: reports that a program is being compiled.
      energy: meter of the rounds' energy.
      memory: meter of the run's peak memory.
      processes: those that train the run together.
      devices: all devices in use in this process.
      model: the model, with its base as it was read.
      growth: chooses the stages.
      depths: number of layers of every stage, if the growth knows them in advance; else None.
      stage_rounds: rounds of every stage as configured; a resumed or shortened run may have others, see `RunTotals`.
      algorithm: what clients train and send, and how the server aggregates.
      probe: public text on which layers are measured for the growth, or distilled, or gradients are; None if not needed.
      slopes: measures the gradient at which a stage's factors begin, or those by which stages end; None if not needed.
      data: the clients' data (of one client if the algorithm pools them), and held-out data.
      rounds: who takes part in which round, with which examples.
      fleet_rounds: who takes part on the clients' simulated devices; None without a fleet.
      classes: the classes of clients that hold different layers; None if all hold the same.
      cohort: trains the participants of a round.
      size_search: finds how many clients are trained at once, on accelerators; None if that is known before.
      submodels: fuses the frozen part of every stage.
      evaluator: evaluates models on held-out data.
      hidden_states: stored outputs of the layers below all adapters, if there are any.
      clients: what the algorithm may know of the clients in advance.
      warm_start: the adapter with which the run begins; None if it begins with a new one.
      scratch: folder for data too large for memory, used for one stage; None for the system's temporary folder.
      versions: of software, system and device.
      norms: the jitted function of `jit_norms`.
    """

    config: RunConfig
    progress: Progress
    programs: CompiledPrograms
    notice: CompilationNotice
    energy: EnergyMeter
    memory: MemoryMeter
    processes: Processes
    devices: list[jax.Device]
    model: Model
    growth: Growth
    depths: tuple[int, ...] | None
    stage_rounds: tuple[int, ...]
    algorithm: Algorithm
    probe: Examples | None
    slopes: Slopes | None
    data: FederatedData
    rounds: Rounds
    fleet_rounds: FleetRounds | None
    classes: ClientClasses | None
    cohort: Cohort
    size_search: SizeSearch | None
    submodels: Submodels
    evaluator: Evaluator
    hidden_states: HiddenStates
    clients: Clients
    warm_start: WarmStart | None
    scratch: Path | None
    versions: dict[str, str]
    norms: jax.stages.Wrapped

    @property
    def base(self) -> Base:
        """The full base on the devices."""
        return self.submodels.base

    @property
    def device_count(self) -> int:
        """Devices in use in all processes."""
        return len(self.devices) * self.processes.count

    @property
    def training(self) -> LocalTraining:
        """What the program of a client's round is built from."""
        return self.cohort.training

    def init_server(self, clients: Clients) -> PyTree:
        """The algorithm's own first state, at full depth."""
        return self.algorithm.init_server(run_key(self.config.seed, Purpose.INITIALISATION), self.model.config, clients)

    def first_state(self) -> PyTree:
        """The state with which the run begins, at full depth.

        Raises:
          InputError: it begins with an adapter that does not fit the run.
        """
        return first_state(self.algorithm, self.init_server(self.clients), self.warm_start)

    def new_bank(self, origin: Callable[[], PyTree], traits: PyTree) -> ClientBank:
        """The bank in which no client has a row yet.

        Args:
          origin: returns the state from which first rows are made.
          traits: per-client properties, a tree of [N, ...].
        """
        return ClientBank(
            self.algorithm,
            origin,
            traits,
            clients=len(self.data.clients),
            mode=self.config.transfer,
            in_memory=self.config.bank_in_memory,
            folder=self.scratch,
            processes=self.processes,
        )

    def text_similarity(self, kind: str) -> np.ndarray:
        """The similarity of the untuned base's layers by their outputs on the growth's probe: f32[L, L].

        Args:
          kind: "hidden" or "cka".
        """
        assert self.probe is not None
        model, compute, mesh = self.model.config, self.training.compute, self.cohort.mesh
        return text_similarity(kind, model, self.base, compute, self.probe, self.config, mesh, self.programs)

    def block_influence(self) -> list[float]:
        """How much each layer of the untuned base changes the hidden states of the growth's probe: L numbers."""
        assert self.probe is not None
        compute, mesh = self.training.compute, self.cohort.mesh
        return block_influence(self.model.config, self.base, compute, self.probe, self.config, mesh, self.programs)

    def layer_fisher(self) -> list[float]:
        """The Fisher information of each layer of the untuned base on the growth's probe: L numbers."""
        assert self.probe is not None
        compute, mesh = self.training.compute, self.cohort.mesh
        return layer_fisher(self.model.config, self.base, compute, self.probe, self.config, mesh, self.programs)


@shared_programs
def jit_norms(algorithm: Algorithm) -> jax.stages.Wrapped:
    """Norms of the layers' updates: server -> f32[G], or (server, rows [C, ...]) -> f32[C, G] where models are personal."""
    personal = algorithm.personal
    if personal is None:
        return jax.jit(lambda server: adapter_norms(algorithm.view(server)))
    return jax.jit(lambda server, rows: jax.vmap(lambda row: adapter_norms(personal(server, row)))(rows))


def build_parts(
    config: RunConfig,
    *,
    model: Model | None = None,
    data: FederatedData | None = None,
    algorithm: Algorithm | None = None,
    growth: Growth | None = None,
    progress: Progress,
    scratch: Path | None = None,
    processes: Processes = ALONE,
) -> Parts:
    """Build everything that a run needs.

    Args:
      config: a valid configuration, see `devft_jax.config.validation.validate`.
      model: replaces the model that the configuration names.
      data: replaces its data.
      algorithm: replaces its algorithm.
      growth: replaces its growth.
      progress: the progress output.
      scratch: folder for data too large for memory, used for one stage; None for the system's temporary folder.
      processes: those that train the run together, with this one.

    Raises:
      InputError: anything in the request is invalid; nothing has been compiled or written at that point.
    """
    if data is None:
        check_data_found(config)
    devices, compute = local_devices(config), resolve_compute(config)
    programs, memory = CompiledPrograms(notice := CompilationNotice(progress)), MemoryMeter()
    machine = Machine(devices, compute, processes, programs, progress, scratch)
    with progress.doing("reading the model") as reading:
        opened, original_blocks = open_model(config, compute, model, partial(reading.count, things="tensors"))
    growth, algorithm, stage_rounds = _methods(config, opened.config, growth, algorithm)
    probe = probe_examples(config, opened.tokenizer) if reads_text(config, growth, algorithm) else None
    data, rounds = _data(config, opened, algorithm, data, progress)
    depths = growth.depths(opened.config.layers)
    cohort, hidden_states, size_search = open_cohort(config, opened.config, algorithm, rounds, stage_rounds, depths, machine)
    fleet_rounds, classes = open_participation(config, rounds, cohort.training, growth, len(stage_rounds), progress)
    return Parts(
        config=config,
        progress=progress,
        programs=programs,
        notice=notice,
        energy=EnergyMeter(config, devices),
        memory=memory,
        processes=processes,
        devices=devices,
        model=opened,
        growth=growth,
        depths=depths,
        stage_rounds=stage_rounds,
        algorithm=algorithm,
        probe=probe,
        slopes=public_slopes(config, opened.config, algorithm, compute, probe, cohort.mesh, programs),
        data=data,
        rounds=rounds,
        fleet_rounds=fleet_rounds,
        classes=classes,
        cohort=cohort,
        size_search=size_search,
        submodels=_submodels(config, opened, original_blocks, cohort, depths, progress),
        evaluator=Evaluator(algorithm, open_held_out(config, opened.config, data, machine), programs),
        hidden_states=hidden_states,
        clients=profiled_clients(data, opened.base.embed, config.seed),
        warm_start=read_warm_start(config, opened.config),
        scratch=scratch,
        versions=versions(devices[0]),
        norms=jit_norms(algorithm),
    )


def _methods(
    config: RunConfig, model: ModelConfig, growth: Growth | None, algorithm: Algorithm | None
) -> tuple[Growth, Algorithm, tuple[int, ...]]:
    """The growth and the algorithm, passed or named, and the rounds of every stage; checked against the model and each
    other."""
    own_growth = growth is not None or imports(config.growth)
    own_algorithm = algorithm is not None or imports(config.algorithm)
    if growth is None:
        growth = growth_of(config, model.layers)
    if own_growth:
        check_given_growth(growth, model.layers)
    stage_rounds = plan_stages(config, growth, model.layers)
    validate_learning_rate(config, len(stage_rounds))
    if algorithm is None:
        check_ranks(config, model)
        algorithm = method_of(config)
    if own_algorithm:
        check_given_algorithm(algorithm, model, config)
    algorithm = sent_through(config, algorithm)
    check_composition(algorithm, growth.shapes(model.layers) or ())
    check_stage_end(config, algorithm, model)
    return growth, algorithm, stage_rounds


def _data(
    config: RunConfig, model: Model, algorithm: Algorithm, given: FederatedData | None, progress: Progress
) -> tuple[FederatedData, Rounds]:
    """The data, and who takes part in which round; an algorithm that pools gets one client with the work of all."""
    with progress.doing("reading and splitting the data") as reading:
        note = partial(reading.count, things="records tokenised")
        data = given or build_federated_data(config, model.tokenizer, seed=config.seed, note=note)
    check_cohort(data, config.clients_per_round)
    check_held_out(data, config.stop_after)
    check_tokens(data, model.config, config.max_length, progress)
    if algorithm.pools:
        data = pool(data)
    participants, local_steps = round_work(algorithm, config.clients_per_round, config.local_steps)
    rounds = Rounds(
        data,
        seed=config.seed,
        participants=participants,
        steps=local_steps,
        batch_size=config.batch_size,
        weighting=algorithm.weighting if config.weighting == "method" else config.weighting,
    )
    return data, rounds


def _submodels(
    config: RunConfig,
    model: Model,
    original_blocks: Callable[[], Block],
    cohort: Cohort,
    depths: tuple[int, ...] | None,
    progress: Progress,
) -> Submodels:
    """What fuses the frozen part of every stage; reports how the base is divided over the devices."""
    dtype = cohort.training.compute.dtype
    submodels = Submodels(config, model, original_blocks, dtype=dtype, depths=depths, mesh=cohort.mesh)
    _report_shards(config.model_shards, submodels.base, progress)
    return submodels


def _report_shards(shards: int, base: Base, progress: Progress) -> None:
    """Report how much of the base each device holds, and which large weights could not be divided."""
    if shards == 1:
        return
    held = readable_bytes(part_bytes(base, shards))
    progress.say(f"{shards} devices hold the base together: {held} of {readable_bytes(message_bytes(base))} each")
    if names := undivided(base):
        progress.warn(
            f"model_shards {shards} divides no dimension of {', '.join(names)}, so every device holds them whole; "
            "another number of shards may divide them."
        )
