"""A run on paper: what a configuration will cost, from shapes alone, in seconds and without weights or data.

Exact are counts that follow from the configuration: depths, rounds, parameters, the messages (those of the algorithm itself,
traced on shapes) and who takes part when, because cohorts are drawn from the seed. A run of the same configuration measures
the same bytes. Upper bounds are FLOPs, because examples are taken to be as long as `max_length`, padded; a run has shorter
ones. So are the bytes of messages whose ranks differ between clients or rounds, each counted at the largest. Hidden states
that a run may store (`prefix_cache`) are taken to be computed in every step, and their memory is not in the plan.
Projections, marked with *, are times at a stated rate (of training alone, at the rate of this machine's products of matrices
where none is given, which training does not quite reach), energy at the joules that a run would be charged here, and memory
by the formula of `devft_jax.accounting.memory`.

Here is what a plan is; `devft_jax.planning.planner` makes one, `devft_jax.planning.text` shows it.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax

from devft_jax.accounting.energy import emissions, resolve_joules_per_flop
from devft_jax.accounting.memory import MemoryTerms, Work
from devft_jax.accounting.speed import Speed, measured_speed
from devft_jax.config.files import to_plain as config_to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.llama import Compute
from devft_jax.planning.paper import Convention
from devft_jax.runtime.compiled import CompiledMemory

TOTALS = ("rounds", "bytes_up", "bytes_down", "bytes_stage", "bytes_missed", "train_flops", "seconds")
"""Fields of a stage that add up over stages."""

Device = Literal["simulator", "client"]
"""Whose memory is planned: that of one of the simulator's devices, or of a client's own."""

DEVICES: tuple[Device, ...] = ("simulator", "client")

SMALLEST_MEMORY = 10**6
"""Bytes below which a size is taken for one whose unit was forgotten."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the plan assumes and shows besides the run's own options."""

    flops_per_second: float | None = None
    """Rate at which training is assumed to run, floating-point operations per second of all devices together; by default
    what this machine's products of matrices reach, measured in a second and kept. 1e14 suits a data-centre GPU."""
    memory: str | None = None
    """Memory of a device, such as 24GB or 80GiB: the plan then says which stages fit into it."""
    compile: bool = False
    """Compile every stage's program from its shapes, which takes from seconds to minutes, and show the memory that XLA
    gives for it beside the formula's."""
    json: bool = False
    """Print the plan as JSON."""

    def check(self) -> None:
        """Check the assumptions.

        Raises:
          InputError: the rate or the memory is none.
        """
        if self.flops_per_second is not None and not 0 < self.flops_per_second < math.inf:
            raise InputError(
                f"flops_per_second {self.flops_per_second} is not a positive, finite rate; 1e14 suits a data-centre GPU."
            )
        if self.memory is not None:
            parse_memory(self.memory)


@dataclass(frozen=True)
class StagePlan:
    """One stage; bytes and FLOPs are of all its participants and rounds together unless named otherwise.

    Attributes:
      layers: of the submodel that have an adapter.
      bare: layers that run below them without one.
      rounds: of the stage.
      parameters: of the submodel, frozen ones.
      trained: low-rank parameters that a client trains.
      message_up: bytes that one client sends in a round.
      message_down: bytes that one client receives in a round.
      bytes_up: of all messages from clients.
      bytes_down: of all messages to clients.
      clients: that take part in the stage at least once.
      late: of them, those that were not in its first round.
      submodel: bytes of the dense representative layers, 0 at full depth.
      bytes_stage: of the submodel, sent once to each of `clients`.
      recipe: bytes from which a client that holds the base fuses the submodel itself.
      bytes_missed: of messages that returning clients were absent for; 0 for methods whose messages do not add up.
      train_flops: upper bound of the operations.
      flops_per_token: of a training step, by what they are spent on.
      evaluation_flops: of one held-out example of full length.
      simulator: memory of one device of the simulator.
      client: memory of a client's own device.
      compiled: XLA's figure for the simulator's device, where it was asked for and is known.
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
    flops_per_token: dict[str, int]
    evaluation_flops: int
    simulator: MemoryTerms
    client: MemoryTerms
    compiled: CompiledMemory | None

    def memory(self, kind: Device) -> MemoryTerms:
        """The memory of a device.

        Args:
          kind: of the device.
        """
        return self.simulator if kind == "simulator" else self.client


@dataclass(frozen=True)
class Plan:
    """A configuration's costs; see the module's docstring for what is exact, bounded and projected.

    Attributes:
      config: what was planned.
      options: what the plan assumes.
      architecture: of the base at full depth.
      parameters: of the base.
      base_bytes: the base's size as stored.
      pools: whether one participant holds all clients' examples, so that nothing travels.
      cumulative: whether messages add up, so that absentees are owed those that they missed.
      bounded: names of the bytes that are upper bounds, because messages of smaller rank are among them.
      compute: precision and kernels.
      devices: of the simulator.
      work: what one of them trains at once; `length` is padded.
      counted: whether clients are the data's files, which were counted.
      stages: in order.
      end_to_end: the same rounds at full depth.
      convention: communication as the paper counts it, by method.
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

    @cached_property
    def speed(self) -> Speed | None:
        """What was measured of this machine; None where a rate was given."""
        if self.options.flops_per_second is not None:
            return None
        model, tokens = self.architecture, self.work.clients * self.work.batch * self.work.length
        return measured_speed(tokens, model.width, model.feed_forward, self.compute.dtype)

    @property
    def flops_per_second(self) -> float:
        """The rate of all devices together that times are projected at; more of a CPU's than there are share its cores."""
        if self.speed is None:
            assert self.options.flops_per_second is not None
            return self.options.flops_per_second
        at_once = min(self.devices, jax.local_device_count()) if jax.default_backend() == "cpu" else self.devices
        return self.speed.flops_per_second * at_once

    def seconds(self, stage: StagePlan) -> float:
        """Projected time of a stage's training.

        Args:
          stage: one of this plan's.
        """
        return stage.train_flops / self.flops_per_second

    def of(self, stage: StagePlan, name: str) -> Any:
        """A figure of a stage: one of its fields, or its seconds.

        Args:
          stage: one of this plan's.
          name: the field, or "seconds".
        """
        return self.seconds(stage) if name == "seconds" else getattr(stage, name)

    def total(self, name: str) -> Any:
        """A figure of the stages, summed.

        Args:
          name: the field, or "seconds".
        """
        return sum(self.of(stage, name) for stage in self.stages)

    @property
    def energy(self) -> dict[str, float]:
        """Projected `kwh` and `kgco2e` with the stated factors behind them: those by which a run here is estimated."""
        joules = resolve_joules_per_flop(self.config, jax.default_backend())
        return {**emissions(self.total("train_flops") * joules, self.config), "joules_per_flop": joules}

    def fitting(self, kind: Device) -> list[bool]:
        """Whether each stage fits into the memory that was asked about.

        Args:
          kind: of the device.
        """
        limit = parse_memory(self.options.memory or "")
        return [stage.memory(kind).total <= limit for stage in self.stages]


def parse_memory(text: str) -> int:
    """Bytes of a size such as 24GB (powers of 1000), 80GiB (powers of 1024) or 16000000000.

    Args:
      text: the size.

    Raises:
      InputError: it is none, or below a megabyte, which no device has and a bare 24 would mean.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    size = math.nan if found is None else float(found[1]) * UNITS[found[2] or ""]
    if not 0 < size < math.inf:
        raise InputError(f"memory '{text}' is not a size; write one such as 24GB or 80GiB.")
    if size < SMALLEST_MEMORY:
        raise InputError(f"memory '{text}' is less than a megabyte; give its unit, such as 24GB or 80GiB.")
    return int(size)


def to_plain(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values, with totals, ratios to end-to-end training, and which figures are what.

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
        "upper_bounds": [*plan.bounded, "train_flops", "flops_per_token", "evaluation_flops"],
    }
    if plan.options.memory is not None:
        fitting = {kind: plan.fitting(kind) for kind in DEVICES}
        values["fits"] = {"memory": parse_memory(plan.options.memory), **fitting}
    return values
