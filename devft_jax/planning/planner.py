"""Makes a plan: every stage's bytes, operations and memory, from shapes and from the cohorts that the seed draws.

What is known only from the data is taken from the configuration: the number of clients is `clients`, or the number of files
if each file is a client. A split by field sets its own number. It also draws its cohorts by the clients' names, so who takes
part when, and with it the bytes of submodels and of catch-up, is then a different draw than the run's.
"""

import dataclasses
import functools
from collections.abc import Sequence
from zlib import crc32

import jax
import numpy as np

from devft_jax.accounting.communication import (
    Messages,
    fusion_recipe_bytes,
    message_elements,
    missed_bytes,
    newcomers,
    picked_layers_bytes,
    round_messages,
    submodel_bytes,
)
from devft_jax.accounting.flops import Adaptation, evaluation_flops, layer_flops, training_breakdown
from devft_jax.accounting.memory import Work, compiled_memory, stage_memory, stage_quantization
from devft_jax.config.effects import check_effects
from devft_jax.config.execution import check_model_shards, resolve_clients_per_step, resolve_compute
from devft_jax.config.methods import algorithm_of, growth_of
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data import length_buckets
from devft_jax.data.options import clients_by_file
from devft_jax.developmental import Growth, StageShape
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.local import PASS_TOKENS, Passes
from devft_jax.federated.messages import bytes_of_rounds, is_upper_bound, message_bytes
from devft_jax.federated.options import OptimizerOptions, validate_learning_rate
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.round.server import cumulative_bytes
from devft_jax.federated.sampling import sample_cohorts
from devft_jax.federated.work import round_work
from devft_jax.fleets.opening import open_fleet
from devft_jax.fleets.profile import Fleet
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import parameter_count
from devft_jax.models.huggingface.reading import model_architecture
from devft_jax.models.quantization import base_shapes
from devft_jax.options import option_group
from devft_jax.planning.class_stages import with_classes
from devft_jax.planning.classes import class_plans
from devft_jax.planning.fleet import FleetPlan, PlannedStage, plan_fleet
from devft_jax.planning.options import PlanOptions
from devft_jax.planning.paper import paper_convention
from devft_jax.planning.plan import Plan, StagePlan
from devft_jax.runtime.compiled import CompiledMemory
from devft_jax.training.checks import check_ranks
from devft_jax.training.classes import ClientClasses, open_classes
from devft_jax.training.distilling import distilling_flops
from devft_jax.training.stages import check_composition, check_stage_end, plan_stages
from devft_jax.training.submodels import model_path


def make_plan(config: RunConfig, options: PlanOptions | None = None, *, architecture: ModelConfig | None = None) -> Plan:
    """Plan a run.

    Args:
      config: the configuration to plan.
      options: what the plan assumes.
      architecture: replaces the architecture of the model that `config.model` names.

    Returns:
      The plan.

    Raises:
      InputError: the configuration could not be run, as far as this is known without weights and data.
    """
    options = options or PlanOptions()
    validate(config)
    check_effects(config)
    options.check()
    names = _client_files(config)
    config = _with_clients(config, names)
    if architecture is None:
        architecture = model_architecture(model_path(config.model))
    growth, shapes, rounds = _stages(config, architecture)
    planner = Planner(config, options, architecture)
    check_composition(planner.algorithm, shapes)
    check_stage_end(config, planner.algorithm, architecture)
    cohorts = planner.cohorts(sum(rounds), names)
    whole = StageShape(architecture.layers, architecture.layers, picks=True)
    [end_to_end] = planner.stages([whole], [sum(rounds)], cohorts)
    devices = planner.devices_of_clients(names)
    classes = open_classes(config, growth, planner.training, planner.ids(names), devices, len(rounds))
    fleet = None if devices is None else planner.fleet(shapes, rounds, whole, names, devices, classes)
    return Plan(
        config=config,
        options=options,
        architecture=architecture,
        parameters=parameter_count(planner.base),
        base_bytes=message_bytes(planner.base),
        pools=planner.algorithm.pools,
        cumulative=planner.algorithm.cumulative is not None,
        bounded=planner.bounded(architecture.layers),
        compute=planner.compute,
        devices=planner.devices,
        work=planner.work,
        counted=names is not None,
        stages=planner.stages(shapes, rounds, cohorts, classes),
        end_to_end=end_to_end,
        convention=paper_convention(config, architecture, [shape.layers for shape in shapes], rounds),
        fleet=fleet,
    )


def _client_files(config: RunConfig) -> list[str] | None:
    """The clients' names if they are files and these can be counted; None otherwise, because a plan needs no data."""
    try:
        return clients_by_file(config)
    except InputError:
        return None


def _with_clients(config: RunConfig, names: Sequence[str] | None) -> RunConfig:
    """The configuration with the clients that the files make, if they do; there must be enough of them for a round."""
    if names is not None:
        config = dataclasses.replace(config, clients=len(names))
    if config.clients_per_round > config.clients:
        planned = "in the data's files" if names is not None else "planned for"
        remedy = "" if names is not None else ", or give --clients the number that the data has"
        raise InputError(
            f"clients_per_round {config.clients_per_round} exceeds the {config.clients} clients {planned}; use "
            f"{config.clients} or fewer{remedy}."
        )
    return config


def _stages(config: RunConfig, architecture: ModelConfig) -> tuple[Growth, tuple[StageShape, ...], tuple[int, ...]]:
    """The growth, and the shape and the rounds of every stage; `InputError` if they do not fit the model or depend on its
    weights."""
    check_ranks(config, architecture)
    growth = growth_of(config, architecture.layers)
    shapes, rounds = growth.shapes(architecture.layers), plan_stages(config, growth, architecture.layers)
    validate_learning_rate(config, len(rounds))
    if shapes is None:
        raise InputError(
            f"capacity_schedule '{config.capacity_schedule}' chooses the layers of a stage from the weights, which a plan "
            "does not read; give --capacities for the plan."
        )
    return growth, tuple(shapes), rounds


class Planner:
    """What all stages of a plan share.

    Args:
      config: a valid configuration; its growth is not used.
      options: what the plan assumes.
      architecture: of the base at full depth.

    Attributes:
      algorithm: the configured algorithm.
      participants: number of participants of a round.
      local_steps: steps that each of them trains in a round.
      sent: 1 if messages are sent, else 0: a factor of all bytes.
      compute: precision and kernels.
      devices: number of devices of the simulator.
      work: what one of them trains at once.
      training: one client's local training.
      base: shapes of the frozen base as stored.
    """

    def __init__(self, config: RunConfig, options: PlanOptions, architecture: ModelConfig):
        self._config, self._options, self._architecture = config, options, architecture
        self.algorithm: Algorithm = algorithm_of(config)
        self.participants, self.local_steps = round_work(self.algorithm, config.clients_per_round, config.local_steps)
        # A participant that holds all clients' examples is the server itself.
        self.sent = 0 if self.algorithm.pools else 1
        self.compute = resolve_compute(config)
        found = jax.local_devices()
        # A plan may be for more devices than this machine has.
        self.devices = config.devices or len(found)
        check_model_shards(config.model_shards, self.devices)
        longest = length_buckets(config.max_length)[-1]
        # A plan knows no lengths of examples: a pass has as many tokens as a CPU's passes are made to have.
        flops = layer_flops(architecture, min(PASS_TOKENS, config.batch_size * longest))
        at_once = resolve_clients_per_step(config, found[:1] * self.devices, self.participants, flops)
        per_device = at_once // self.devices
        self.work = Work(per_device, self.local_steps, config.batch_size, longest)
        whole_steps = Passes(config.batch_size, (self.work.length,))
        optimizer = option_group(OptimizerOptions, config)
        self.training = LocalTraining(self.algorithm, architecture, self.compute, optimizer, whole_steps)
        self.base = base_shapes(architecture, dtype=self.compute.dtype, quantization=config.quantization)

    def cohorts(self, rounds: int, names: Sequence[str] | None) -> list[np.ndarray]:
        """The indices of each round's participants, drawn as the run draws them."""
        return list(sample_cohorts(self._config.seed, rounds, self.ids(names), self.participants))

    def ids(self, names: Sequence[str] | None) -> np.ndarray:
        """The clients' ids, as the run has them."""
        if self.algorithm.pools:
            return np.arange(1, dtype=np.uint32)
        if names is not None:
            return np.array([crc32(name.encode()) for name in names], np.uint32)
        return np.arange(self._config.clients, dtype=np.uint32)

    def devices_of_clients(self, names: Sequence[str] | None) -> Fleet | None:
        """The clients' devices; None without a fleet, or for an algorithm without clients.

        Args:
          names: the clients' names; None if the data numbers its clients.
        """
        if self._config.fleet is None or self.algorithm.pools:
            return None
        ids = self.ids(names)
        return open_fleet(self._config, names or [f"client-{number}" for number in ids], ids, self._config.seed)

    def fleet(
        self,
        shapes: Sequence[StageShape],
        rounds: Sequence[int],
        whole: StageShape,
        names: Sequence[str] | None,
        devices: Fleet,
        classes: ClientClasses | None,
    ) -> FleetPlan:
        """The rounds on the clients' simulated devices.

        Args:
          shapes: of all stages.
          rounds: of all stages.
          whole: the shape of the full model.
          names: the clients' names; None if the data numbers its clients.
          devices: the clients' devices.
          classes: of clients that hold different layers; None if all hold the same.
        """

        def planned(shape: StageShape, count: int) -> PlannedStage:
            return PlannedStage(shape, count, self.submodel(shape), self.owed(shape.layers))

        return plan_fleet(
            self._config,
            self.training,
            devices,
            self.ids(names),
            classes,
            [planned(shape, count) for shape, count in zip(shapes, rounds, strict=True)],
            planned(whole, sum(rounds)),
        )

    def messages(self, layers: int) -> Messages:
        """What a client receives and sends in a round."""
        return round_messages(self.algorithm, self._architecture, layers)

    def owed(self, layers: int) -> int:
        """Bytes of a round's message that a client needs even if it misses the round."""
        return self.sent * cumulative_bytes(self.algorithm, self.messages(layers).participant.down)

    def bounded(self, layers: int) -> tuple[str, ...]:
        """Names of the byte counts that are upper bounds, because messages differ between clients or rounds."""
        messages = self.messages(layers)
        names = [
            *(["bytes_up"] if is_upper_bound(messages.up) else []),
            *(["bytes_down"] if is_upper_bound(messages.participant.down) else []),
        ]
        return (*names, "bytes_missed") if self.owed(layers) and "bytes_down" in names else tuple(names)

    def submodel(self, shape: StageShape) -> int:
        """Bytes of a stage's frozen layers that a client with the base receives once."""
        config, architecture = self._config, self._architecture
        if shape.depth == architecture.layers:
            return 0
        if shape.picks:
            return self.sent * picked_layers_bytes(shape.layers)
        stored = stage_quantization(architecture, shape.layers, config.quantization, config.fused_precision)
        return self.sent * submodel_bytes(architecture, shape.layers, dtype=self.compute.dtype, quantization=stored)

    def stages(
        self,
        shapes: Sequence[StageShape],
        rounds: Sequence[int],
        cohorts: Sequence[np.ndarray],
        classes: ClientClasses | None = None,
    ) -> tuple[StagePlan, ...]:
        """Plans of consecutive stages; `cohorts` are those of all their rounds, `classes` those of clients that differ."""
        sizes = [self.owed(shape.layers) for shape in shapes]
        missed = missed_bytes(cohorts, np.repeat(sizes, rounds).tolist())
        planned, done = list[StagePlan](), 0
        for shape, count in zip(shapes, rounds, strict=True):
            own = slice(done, done + count)
            plan = self._stage(shape, cohorts[own], sum(missed[own]))
            if classes is not None:
                each = {"steps": self.local_steps, "batch": self._config.batch_size, "length": self.work.length}
                plans = class_plans(classes, len(planned), **each)
                plan = with_classes(plan, plans, classes, cohorts[own], fleet=self._config.fleet is not None)
            planned.append(plan)
            done += count
        return tuple(planned)

    def step(self, shape: StageShape) -> StagePlan:
        """The plan of one round of a stage with one participant.

        Args:
          shape: the shape of the stage.
        """
        return self._stage(shape, [np.arange(1)], 0)

    def _stage(self, shape: StageShape, cohorts: Sequence[np.ndarray], missed: int) -> StagePlan:
        config, architecture, layers, depth = self._config, self._architecture, shape.layers, shape.depth
        messages = self.messages(layers)
        train, frozen = jax.eval_shape(self.algorithm.start, messages.participant)
        adaptation = Adaptation.of(jax.eval_shape(self.algorithm.adapter, train, frozen), train, depth)
        participations = sum(len(cohort) for cohort in cohorts)
        new = newcomers(cohorts)
        submodel = self.submodel(shape)
        kept = shape.frozen if self.algorithm.layered else 0
        length = self.work.length
        per_token = training_breakdown(architecture, layers=depth, adaptation=adaptation, length=length, frozen=kept)
        tokens = participations * self.local_steps * config.batch_size * length
        memory_of = functools.partial(
            stage_memory,
            self.training,
            layers=layers,
            frozen=kept,
            bare=shape.bare,
            quantization=config.quantization,
            fused_precision=config.fused_precision,
        )
        return StagePlan(
            layers=layers,
            bare=shape.bare,
            rounds=len(cohorts),
            parameters=parameter_count(base_shapes(architecture.with_layers(depth), dtype=self.compute.dtype)),
            trained=message_elements(train),
            message_up=self.sent * messages.bytes_up,
            message_down=self.sent * messages.bytes_down,
            bytes_up=self.sent * self.participants * bytes_of_rounds(messages.up, len(cohorts)),
            bytes_down=self.sent * self.participants * bytes_of_rounds(messages.participant.down, len(cohorts)),
            clients=sum(new),
            late=sum(new[1:]),
            submodel=submodel,
            bytes_stage=sum(new) * submodel,
            recipe=submodel if shape.picks else self.sent * fusion_recipe_bytes(architecture, layers),
            bytes_missed=missed,
            train_flops=tokens * sum(per_token.values()),
            server_flops=self._server_flops(shape),
            flops_per_token=per_token,
            evaluation_flops=length * evaluation_flops(architecture, layers=depth, adaptation=adaptation, length=length),
            simulator=memory_of(self.work, model_shards=config.model_shards),
            client=memory_of(dataclasses.replace(self.work, clients=1), simulator=False),
            compiled=self._compiled(shape, kept) if self._options.compile else None,
        )

    def _server_flops(self, shape: StageShape) -> int:
        """Operations of distilling a stage's fused layers on the server; 0 if its layers are the model's own."""
        steps = 0 if shape.picks else self._config.distil_steps
        return distilling_flops(self._architecture, shape.layers, steps=steps, length=self.work.length)

    def _compiled(self, shape: StageShape, frozen: int) -> CompiledMemory | None:
        """XLA's figure for the memory of the stage's program; None if the platform's compiler offers none."""
        return compiled_memory(
            self.training,
            self.work,
            layers=shape.layers,
            frozen=frozen,
            bare=shape.bare,
            quantization=self._config.quantization,
            fused_precision=self._config.fused_precision,
            model_shards=self._config.model_shards,
        )
