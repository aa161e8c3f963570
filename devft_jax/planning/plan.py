"""A plan: what a configuration will cost, computed from shapes alone, in seconds and without weights or data.

Exact are the counts that follow from the configuration: depths, rounds, parameters, the messages (of the algorithm itself,
traced on shapes) and who takes part when, because cohorts are drawn from the seed. A run of the same configuration measures
the same bytes. FLOPs are upper bounds, because all examples are assumed to be padded to `max_length`; a run has shorter
ones. The bytes of messages whose ranks differ between clients or rounds are upper bounds too, each counted at the largest
rank. Hidden states that a run may store (`prefix_cache`) are assumed to be computed in every step, and their storage is not
in the plan. Projections, marked with *, are: times at a stated rate (for training alone; by default the rate of this
machine's matrix products, which training does not quite reach), energy at the joules per operation by which a run here is
estimated, and memory by the formula of `devft_jax.accounting.memory`.

This file defines a plan; `devft_jax.planning.planner` makes one, `devft_jax.planning.text` prints it.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax

from devft_jax.accounting.energy import emissions, resolve_joules_per_flop
from devft_jax.accounting.memory import MemoryTerms, Work
from devft_jax.accounting.speed import Speed, measured_speed
from devft_jax.config.files import to_plain as config_to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.llama import Compute
from devft_jax.planning.classes import ClassPlan
from devft_jax.planning.fleet import FleetPlan
from devft_jax.planning.options import PlanOptions, parse_memory
from devft_jax.planning.paper import Convention
from devft_jax.runtime.compiled import CompiledMemory

TOTALS = ("rounds", "bytes_up", "bytes_down", "bytes_stage", "bytes_missed", "train_flops", "server_flops", "seconds")
"""Fields of a stage that add up over stages."""

Device = Literal["simulator", "client"]
"""The device whose memory is planned: one of the simulator's, or a client's own."""

DEVICES: tuple[Device, ...] = ("simulator", "client")


@dataclass(frozen=True)
class StagePlan:
    """One stage; bytes and FLOPs are for all its participants and rounds together unless stated otherwise.

    Attributes:
      layers: layers of the submodel that have an adapter.
      bare: layers that run below them without an adapter.
      rounds: rounds of the stage.
      parameters: frozen parameters of the submodel.
      trained: low-rank parameters that a client trains.
      message_up: bytes that one client sends in a round.
      message_down: bytes that one client receives in a round.
      bytes_up: bytes of all messages from clients.
      bytes_down: bytes of all messages to clients.
      clients: number of clients that take part in the stage at least once.
      late: how many of them were not in its first round.
      submodel: bytes of the dense representative layers, 0 at full depth.
      bytes_stage: bytes of the submodel, sent once to each of `clients`.
      recipe: bytes from which a client with the base fuses the submodel itself.
      bytes_missed: bytes of messages that returning clients missed; 0 for methods whose messages are not increments.
      train_flops: upper bound of the operations.
      server_flops: upper bound of the operations of distilling the fused layers on the server; 0 without that.
      flops_per_token: operations of a training step per token, by component.
      evaluation_flops: operations for one held-out example of full length.
      simulator: memory of one device of the simulator.
      client: memory of a client's own device.
      compiled: XLA's figure for the simulator's device, if it was requested and is known.
      classes: of clients that hold different layers, the weakest first; empty if all hold the same. The messages are then
        the largest, and memory is that of a client that holds the stage's submodel.
    """

    layers: int
    bare: int
    rounds: int
    parameters: int
    trained: int
    message_up: int
    message_down: int
    bytes_up: int
    bytes_down: int
    clients: int
    late: int
    submodel: int
    bytes_stage: int
    recipe: int
    bytes_missed: int
    train_flops: int
    server_flops: int
    flops_per_token: dict[str, int]
    evaluation_flops: int
    simulator: MemoryTerms
    client: MemoryTerms
    compiled: CompiledMemory | None
    classes: tuple[ClassPlan, ...] = ()

    def memory(self, kind: Device) -> MemoryTerms:
        """The memory of a device.

        Args:
          kind: the kind of device.
        """
        return self.simulator if kind == "simulator" else self.client


@dataclass(frozen=True)
class Plan:
    """A configuration's costs; the module's docstring says which are exact, upper bounds or projections.

    Attributes:
      config: the planned configuration.
      options: what the plan assumes.
      architecture: of the base at full depth.
      parameters: number of parameters of the base.
      base_bytes: the base's size as stored.
      pools: whether one participant holds all clients' examples, so that nothing is sent.
      cumulative: whether messages are increments, so that absent clients need those that they missed.
      bounded: names of the byte counts that are upper bounds, because some messages have a smaller rank.
      compute: precision and kernels.
      devices: number of devices of the simulator.
      work: what one device trains at once; `length` is padded.
      counted: whether clients are the data's files, which were counted.
      stages: the stages in order.
      end_to_end: the same rounds at full depth.
      convention: communication as the paper counts it, by method.
      fleet: the rounds on the clients' simulated devices; None without a fleet.
    """

    config: RunConfig
    options: PlanOptions
    architecture: ModelConfig
    parameters: int
    base_bytes: int
    pools: bool
    cumulative: bool
    bounded: tuple[str, ...]
    compute: Compute
    devices: int
    work: Work
    counted: bool
    stages: tuple[StagePlan, ...]
    end_to_end: StagePlan
    convention: dict[str, Convention]
    fleet: FleetPlan | None = None

    @cached_property
    def speed(self) -> Speed | None:
        """The measured speed of this machine; None if a rate was given."""
        if self.options.flops_per_second is not None:
            return None
        model, tokens = self.architecture, self.work.clients * self.work.batch * self.work.length
        return measured_speed(tokens, model.width, model.feed_forward, self.compute.dtype)

    @property
    def flops_per_second(self) -> float:
        """The rate of all devices together from which times are projected; CPU devices beyond the machine's share its
        cores."""
        if self.speed is None:
            assert self.options.flops_per_second is not None
            return self.options.flops_per_second
        at_once = min(self.devices, jax.local_device_count()) if jax.default_backend() == "cpu" else self.devices
        return self.speed.flops_per_second * at_once

    def seconds(self, stage: StagePlan) -> float:
        """Projected time of a stage's training.

        Args:
          stage: one of this plan's stages.
        """
        return stage.train_flops / self.flops_per_second

    def of(self, stage: StagePlan, name: str) -> Any:
        """A figure of a stage: one of its fields, or its seconds.

        Args:
          stage: one of this plan's stages.
          name: name of the field, or "seconds".
        """
        return self.seconds(stage) if name == "seconds" else getattr(stage, name)

    def total(self, name: str) -> Any:
        """A figure summed over the stages.

        Args:
          name: name of the field, or "seconds".
        """
        return sum(self.of(stage, name) for stage in self.stages)

    @property
    def energy(self) -> dict[str, float]:
        """Projected `kwh` and `kgco2e`, and the factors behind them: those by which a run on this machine is estimated."""
        joules = resolve_joules_per_flop(self.config, jax.default_backend())
        return {**emissions(self.total("train_flops") * joules, self.config), "joules_per_flop": joules}

    def fitting(self, kind: Device) -> list[bool]:
        """Whether each stage fits into the memory given by `options.memory`.

        Args:
          kind: the kind of device.
        """
        limit = parse_memory(self.options.memory or "")
        return [stage.memory(kind).total <= limit for stage in self.stages]


def to_plain(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values, with totals, ratios to end-to-end training, and which figures are bounds or
    projections.

    Args:
      plan: the plan.
    """

    def stage_values(stage: StagePlan) -> dict[str, Any]:
        values = {**dataclasses.asdict(stage), "seconds": plan.seconds(stage)}
        for kind in DEVICES:
            values[kind]["total"] = stage.memory(kind).total
        if stage.compiled is not None:
            values["compiled"]["total"] = stage.compiled.total
        return values

    totals = {name: plan.total(name) for name in TOTALS}
    values: dict[str, Any] = {
        "model": plan.config.model,
        "config": config_to_plain(plan.config),
        "architecture": dataclasses.asdict(plan.architecture),
        "parameters": plan.parameters,
        "base_bytes": plan.base_bytes,
        "pools": plan.pools,
        "devices": plan.devices,
        "dtype": plan.compute.dtype,
        "message_dtype": plan.config.message_dtype,
        "work": dataclasses.asdict(plan.work),
        "flops_per_second": plan.flops_per_second,
        "measured_on": None if plan.speed is None else plan.speed.device,
        "stages": [stage_values(stage) for stage in plan.stages],
        "total": totals,
        "end_to_end": stage_values(plan.end_to_end),
        "ratio_to_end_to_end": {
            name: totals[name] / plan.of(plan.end_to_end, name) for name in TOTALS if plan.of(plan.end_to_end, name)
        },
        "energy": plan.energy,
        "paper_convention": {name: dataclasses.asdict(row) for name, row in plan.convention.items()},
        "projected": ["seconds", "energy", "simulator", "client", "fits"],
        "upper_bounds": [*plan.bounded, "train_flops", "server_flops", "flops_per_token", "evaluation_flops"],
    }
    if plan.fleet is not None:
        values["fleet"] = {**dataclasses.asdict(plan.fleet), "seconds": plan.fleet.seconds}
    if plan.options.memory is not None:
        fitting = {kind: plan.fitting(kind) for kind in DEVICES}
        values["fits"] = {"memory": parse_memory(plan.options.memory), **fitting}
    return values
