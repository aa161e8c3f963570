"""A run on paper: what a configuration will cost, from shapes alone, in seconds and without weights or data.

Exact are counts that follow from the configuration: depths, rounds, parameters, the messages (those of the algorithm itself,
traced on shapes) and who takes part when, because cohorts are drawn from the seed. A run of the same configuration measures
the same bytes. Upper bounds are FLOPs, because examples are taken to be as long as `max_length`, padded; a run has shorter
ones. So are the bytes of messages whose ranks differ between clients or rounds, each counted at the largest. Hidden states
that a run may store (`prefix_cache`) are taken to be computed in every step, and their memory is not in the plan.
Projections, marked with *, are times at a stated rate (of training alone, at the rate of this machine's products of matrices
where none is given, which training does not quite reach), energy at the joules that a run would be charged here, and memory
by the formula of `devft_jax.accounting.memory`.

What only the data could tell comes from the configuration: the number of clients is `clients`, or that of the files where
each is a client. A split by field overrides it with its own. It also draws its cohorts by the clients' names, so that who
takes part when, and with it the bytes of submodels and of catch-up, is then one draw like those of the run.

Beside these the plan states communication as the paper does (Table 4 and Figure 6 of Wu et al. 2025): low-rank parameters x
rounds x 1 byte, in one direction, for one client, of FedIT's and FedSA-LoRA's own messages.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
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
from devft_jax.accounting.energy import emissions, resolve_joules_per_flop
from devft_jax.accounting.flops import Adaptation, evaluation_flops, training_breakdown
from devft_jax.accounting.memory import MemoryTerms, Work, compiled_memory, stage_memory, stage_quantization
from devft_jax.accounting.speed import Speed, measured_speed
from devft_jax.config.effects import check_effects
from devft_jax.config.execution import check_model_shards, resolve_clients_per_step, resolve_compute
from devft_jax.config.run_config import RunConfig, validate
from devft_jax.config.run_config import to_plain as config_to_plain
from devft_jax.data import length_buckets
from devft_jax.data.federated_data import clients_by_file
from devft_jax.developmental import StageShape
from devft_jax.developmental.schedule import equal_shares
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import algorithm_of
from devft_jax.federated.local import OptimizerOptions, Passes
from devft_jax.federated.messages import message_bytes, ranks_of
from devft_jax.federated.options import validate_learning_rate
from devft_jax.federated.round.cohort import LocalTraining, cumulative_bytes
from devft_jax.federated.sampling import sample_cohorts
from devft_jax.models.architecture import ARCHITECTURES, ModelConfig
from devft_jax.models.attention import kernel_for
from devft_jax.models.base import parameter_count
from devft_jax.models.huggingface.reading import model_architecture
from devft_jax.models.llama import Compute
from devft_jax.models.quantization import base_shapes
from devft_jax.options import room_of
from devft_jax.reporting.progress import readable_bytes, readable_seconds
from devft_jax.reporting.table import table
from devft_jax.runtime.compiled import CompiledMemory
from devft_jax.training.checks import check_ranks
from devft_jax.training.stages import check_composition, named_growth, plan_stages
from devft_jax.training.submodels import model_path

TOTALS = ("rounds", "bytes_up", "bytes_down", "bytes_stage", "bytes_missed", "train_flops", "seconds")
"""Fields of a stage that add up over stages."""

SMALLEST_MEMORY = 10**6
"""Bytes below which a size is taken for one whose unit was forgotten."""

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

PAPER_GIGABYTES = {
    "meta-llama/Llama-2-7b-hf": {"FedIT": 5.03, "FedIT + DevFT": 2.36, "FedSA-LoRA": 2.52, "FedSA-LoRA + DevFT": 1.18},
    "meta-llama/Llama-2-13b-hf": {"FedIT": 8.39, "FedIT + DevFT": 3.93, "FedSA-LoRA": 4.20, "FedSA-LoRA + DevFT": 1.97},
}
"""Communication in GB as Table 4 of the paper prints it, for rank 32 on q and v and stages of an eighth to all layers."""

PAPER_ROUNDS = {"meta-llama/Llama-2-7b-hf": 300, "meta-llama/Llama-2-13b-hf": 400}
"""Rounds that the paper states for them."""


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


@dataclass(frozen=True)
class StagePlan:
    """One stage; bytes and FLOPs are of all its participants and rounds together unless named otherwise.

    Attributes:
      layers: of the submodel, those with an adapter; bare: layers that run below them without one. rounds: of the stage.
      parameters: of the submodel, frozen ones. trained: low-rank parameters that a client trains.
      message_up, message_down: bytes of one client's round.
      bytes_up, bytes_down: of all messages.
      clients: that take part in the stage at least once; late: of them, those that were not in its first round.
      submodel: bytes of the dense representative layers, 0 at full depth. bytes_stage: sent once to each of `clients`.
      recipe: bytes from which a client that holds the base fuses the submodel itself.
      bytes_missed: of messages that returning clients were absent for; 0 for methods whose messages do not add up.
      train_flops: upper bound. flops_per_token: of a training step, by what they are spent on.
      evaluation_flops: of one held-out example of full length.
      simulator, client: memory of one device of the simulator, and of a client's own. compiled: XLA's figure for the first.
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


@dataclass(frozen=True)
class Convention:
    """A method's communication as the paper counts it.

    Attributes:
      bytes: at this plan's rounds. paper_gigabytes: what the paper prints, None where it gives no figure.
      paper_rounds: the rounds that the paper's figures imply. paper_bytes: this convention at those rounds.
    """

    bytes: int
    paper_gigabytes: float | None = None
    paper_rounds: int | None = None
    paper_bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """A configuration's costs; see the module's docstring for what is exact, bounded and projected.

    Attributes:
      config, options: what was planned. architecture: of the base at full depth.
      parameters: of the base. base_bytes: its size as stored.
      pools: whether one participant holds all clients' examples, so that nothing travels.
      cumulative: whether messages add up, so that absentees are owed those that they missed.
      bounded: names of the bytes that are upper bounds, because messages of smaller rank are among them.
      compute: execution choices. devices: of the simulator. work: what one of them trains at once. length: T, padded.
      counted: whether clients are the data's files, which were counted.
      stages: in order. end_to_end: the same rounds at full depth.
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
        """Projected time of a stage's training."""
        return stage.train_flops / self.flops_per_second

    def of(self, stage: StagePlan, name: str) -> Any:
        """A figure of a stage: one of its fields, or its seconds."""
        return self.seconds(stage) if name == "seconds" else getattr(stage, name)

    def total(self, name: str) -> Any:
        """A figure of the stages, summed."""
        return sum(self.of(stage, name) for stage in self.stages)

    @property
    def energy(self) -> dict[str, float]:
        """Projected `kwh` and `kgco2e` with the stated factors behind them: those by which a run here is estimated."""
        joules = resolve_joules_per_flop(self.config, jax.default_backend())
        return {**emissions(self.total("train_flops") * joules, self.config), "joules_per_flop": joules}

    def fitting(self, kind: str) -> list[bool]:
        """For each stage, whether `kind` ("simulator" or "client") fits into the memory asked about."""
        limit = parse_memory(self.options.memory or "")
        return [getattr(stage, kind).total <= limit for stage in self.stages]


def parse_memory(text: str) -> int:
    """Bytes of a size such as 24GB (powers of 1000), 80GiB (powers of 1024) or 16000000000.

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


def make_plan(config: RunConfig, options: PlanOptions | None = None, *, architecture: ModelConfig | None = None) -> Plan:
    """Plan a run.

    Args:
      config: what would be run. options: assumptions.
      architecture: of the model, in place of the one that `config.model` names.

    Raises:
      InputError: the configuration could not be run, as far as that can be known without weights and data.
    """
    options = options or PlanOptions()
    validate(config)
    check_effects(config)
    if options.flops_per_second is not None and not 0 < options.flops_per_second < math.inf:
        raise InputError(
            f"flops_per_second {options.flops_per_second} is not a positive, finite rate; 1e14 suits a data-centre GPU."
        )
    if options.memory is not None:
        parse_memory(options.memory)
    names = _files(config)
    if names is not None:
        config = dataclasses.replace(config, clients=len(names))
    if config.clients_per_round > config.clients:
        planned = "that the data's files make" if names is not None else "planned for"
        remedy = "" if names is not None else ", or give --clients the number that the data has"
        raise InputError(
            f"clients_per_round {config.clients_per_round} exceeds the {config.clients} clients {planned}; use "
            f"{config.clients} or fewer{remedy}."
        )
    if architecture is None:
        architecture = model_architecture(model_path(config.model))
    check_ranks(config, architecture)
    growth = named_growth(config, architecture.layers)
    shapes, rounds = growth.shapes(architecture.layers), plan_stages(config, growth, architecture.layers)
    validate_learning_rate(config, len(rounds))
    if shapes is None:
        raise InputError(
            f"capacity_schedule '{config.capacity_schedule}' chooses the layers of a stage from the weights, which a plan "
            "does not read; give --capacities to plan with."
        )
    depths = tuple(shape.layers for shape in shapes)
    planner = _Planner(config, options, architecture)
    check_composition(planner.algorithm, shapes)
    ids = np.arange(1 if planner.algorithm.pools else config.clients, dtype=np.uint32)
    if names is not None and not planner.algorithm.pools:
        ids = np.array([crc32(name.encode()) for name in names], np.uint32)
    cohorts = sample_cohorts(config.seed, sum(rounds), ids, planner.participants)
    sizes = {layers: planner.owed(layers) for layers in {*depths, architecture.layers}}
    missed = missed_bytes(cohorts, np.repeat([sizes[layers] for layers in depths], rounds).tolist())
    stages: list[StagePlan] = []
    for shape, count in zip(shapes, rounds, strict=True):
        done = sum(stage.rounds for stage in stages)
        stages.append(planner.stage(shape, cohorts[done : done + count], sum(missed[done : done + count])))
    whole = architecture.layers
    end_to_end = planner.stage(
        StageShape(whole, whole, picks=True), cohorts, sum(missed_bytes(cohorts, [sizes[whole]] * len(cohorts)))
    )
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
        stages=tuple(stages),
        end_to_end=end_to_end,
        convention=paper_convention(config, architecture, depths, rounds),
    )


def _files(config: RunConfig) -> list[str] | None:
    """The clients' names where files make them and are there to be counted: a plan needs no data."""
    try:
        return clients_by_file(config)
    except InputError:
        return None


class _Planner:
    """What all stages of a plan share."""

    def __init__(self, config: RunConfig, options: PlanOptions, architecture: ModelConfig):
        self.config, self.options, self.architecture = config, options, architecture
        self.algorithm: Algorithm = algorithm_of(config)
        # One participant that holds everyone's examples trains for all of them, and is the server itself.
        pools = self.algorithm.pools
        self.participants, steps = (1 if pools else config.clients_per_round), config.local_steps
        self.local_steps = config.clients_per_round * steps if pools else steps
        self.sent = 0 if pools else 1
        self.compute = resolve_compute(config)
        found = jax.local_devices()
        # A plan may be for more devices than the machine has that it is made on.
        self.devices = config.devices or len(found)
        check_model_shards(config.model_shards, self.devices)
        at_once = resolve_clients_per_step(config, found[:1] * self.devices)
        per_device = min(at_once // self.devices, -(-self.participants // self.devices))
        self.work = Work(per_device, self.local_steps, config.batch_size, length_buckets(config.max_length)[-1])
        whole_steps = Passes(config.batch_size, (self.work.length,))
        optimizer = room_of(OptimizerOptions, config)
        self.training = LocalTraining(self.algorithm, architecture, self.compute, optimizer, whole_steps)
        self.base = base_shapes(architecture, dtype=self.compute.dtype, quantization=config.quantization)

    def messages(self, layers: int) -> Messages:
        """What a client receives and sends in a round."""
        return round_messages(self.algorithm, self.architecture, layers)

    def owed(self, layers: int) -> int:
        """Bytes of a round's message that a client needs even if it sits the round out."""
        return self.sent * cumulative_bytes(self.algorithm, self.messages(layers).participant.down)

    def bounded(self, layers: int) -> tuple[str, ...]:
        """Names of the bytes that follow ranks which differ between clients or rounds."""
        messages = self.messages(layers)
        names = [
            *(["bytes_up"] if ranks_of(messages.up) else []),
            *(["bytes_down"] if ranks_of(messages.participant.down) else []),
        ]
        return (*names, "bytes_missed") if self.owed(layers) and "bytes_down" in names else tuple(names)

    def submodel(self, shape: StageShape) -> int:
        """Bytes that a client which holds the base receives once of a stage's frozen layers."""
        config, architecture = self.config, self.architecture
        if shape.depth == architecture.layers:
            return 0
        if shape.picks:
            return self.sent * picked_layers_bytes(shape.layers)
        stored = stage_quantization(architecture, shape.layers, config.quantization, config.fused_precision)
        return self.sent * submodel_bytes(architecture, shape.layers, dtype=self.compute.dtype, quantization=stored)

    def stage(self, stage: StageShape, cohorts: Sequence[np.ndarray], missed: int) -> StagePlan:
        config, architecture, layers = self.config, self.architecture, stage.layers
        messages = self.messages(layers)
        train, frozen = jax.eval_shape(self.algorithm.start, messages.participant)
        adapter = jax.eval_shape(self.algorithm.adapter, train, frozen)
        participations = sum(len(cohort) for cohort in cohorts)
        new = newcomers(cohorts)
        submodel = self.submodel(stage)
        kept = stage.frozen if self.algorithm.layered else 0
        shape: dict[str, Any] = {
            "adaptation": Adaptation.of(adapter, train, stage.depth),
            "length": self.work.length,
        }
        per_token = training_breakdown(architecture, layers=stage.depth, frozen=kept, **shape)
        tokens = participations * self.local_steps * config.batch_size * self.work.length
        flops = tokens * sum(per_token.values())
        choices: dict[str, Any] = {
            "training": self.training,
            "layers": layers,
            "frozen": kept,
            "bare": stage.bare,
            "quantization": config.quantization,
            "fused_precision": config.fused_precision,
        }
        alone = dataclasses.replace(self.work, clients=1)
        return StagePlan(
            layers=layers,
            bare=stage.bare,
            rounds=len(cohorts),
            parameters=parameter_count(base_shapes(architecture.with_layers(stage.depth), dtype=self.compute.dtype)),
            trained=message_elements(train),
            message_up=self.sent * messages.bytes_up,
            message_down=self.sent * messages.bytes_down,
            bytes_up=self.sent * participations * messages.bytes_up,
            bytes_down=self.sent * participations * messages.bytes_down,
            clients=sum(new),
            late=sum(new[1:]),
            submodel=submodel,
            bytes_stage=sum(new) * submodel,
            recipe=submodel if stage.picks else self.sent * fusion_recipe_bytes(architecture, layers),
            bytes_missed=missed,
            train_flops=flops,
            flops_per_token=per_token,
            evaluation_flops=self.work.length * evaluation_flops(architecture, layers=stage.depth, **shape),
            simulator=stage_memory(work=self.work, model_shards=config.model_shards, **choices),
            client=stage_memory(work=alone, simulator=False, **choices),
            compiled=compiled_memory(work=self.work, model_shards=config.model_shards, **choices)
            if self.options.compile
            else None,
        )


def paper_model(architecture: ModelConfig) -> str | None:
    """The name of the paper's model of this architecture, wherever its files lie; None where it prints no figures."""
    return next((name for name in PAPER_GIGABYTES if ARCHITECTURES[name] == architecture), None)


def paper_convention(
    config: RunConfig, architecture: ModelConfig, depths: Sequence[int], rounds: Sequence[int]
) -> dict[str, Convention]:
    """Low-rank parameters x rounds x 1 byte of FedIT and FedSA-LoRA, end to end and through the stages."""
    algorithms = {name: algorithm_of(dataclasses.replace(config, algorithm=name)) for name in ("fedit", "fedsa-lora")}
    elements = {
        (name, layers): message_elements(round_messages(algorithm, architecture, layers).up)
        for name, algorithm in algorithms.items()
        for layers in {*depths, architecture.layers}
    }
    growth = "DevFT" if config.growth == "devft" else config.growth
    methods: dict[str, tuple[str, Sequence[int]]] = {
        "FedIT": ("fedit", (architecture.layers,)),
        f"FedIT + {growth}": ("fedit", depths),
        "FedSA-LoRA": ("fedsa-lora", (architecture.layers,)),
        f"FedSA-LoRA + {growth}": ("fedsa-lora", depths),
    }
    if tuple(depths) == (architecture.layers,):
        methods = {name: method for name, method in methods.items() if method[1] is not depths}

    def charged(algorithm: str, stages: Sequence[int], counts: Sequence[int]) -> int:
        counts = (sum(counts),) if len(stages) == 1 else counts
        return sum(count * elements[algorithm, layers] for layers, count in zip(stages, counts, strict=True))

    eighths = tuple(architecture.layers // part for part in (8, 4, 2, 1))
    printed = dict(PAPER_GIGABYTES.get(paper_model(architecture) or "", {}))
    if config.rank != 32 or sorted(config.targets) != ["q", "v"]:
        printed = {}
    elif tuple(depths) != eighths:
        # End-to-end training has no stages, so its figures stand beside any growth.
        printed = {name: printed[name] for name in printed if "DevFT" not in name}
    rows = {}
    for name, (algorithm, stages) in methods.items():
        own = charged(algorithm, stages, rounds)
        if name not in printed:
            rows[name] = Convention(own)
            continue
        implied = round(printed["FedIT"] * 1e9 / elements["fedit", architecture.layers])
        shared = equal_shares(implied, len(depths))
        rows[name] = Convention(own, printed[name], implied, charged(algorithm, stages, shared))
    return rows


def to_plain(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values, with totals, ratios to end-to-end training, and which figures are what."""

    def stage_values(stage: StagePlan) -> dict[str, Any]:
        values = {**dataclasses.asdict(stage), "seconds": plan.seconds(stage)}
        for kind in ("simulator", "client"):
            values[kind]["total"] = getattr(stage, kind).total
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
        fitting = {kind: plan.fitting(kind) for kind in ("simulator", "client")}
        values["fits"] = {"memory": parse_memory(plan.options.memory), **fitting}
    return values


def to_text(plan: Plan) -> str:
    """The plan for reading, lines of at most 120 characters."""
    sections = [_heading(plan), _stage_table(plan), _traffic(plan), _memory(plan), _convention(plan)]
    return "\n\n".join("\n".join(lines) for lines in sections)


def readable_count(count: float, unit: str = "") -> str:
    """A number in the prefix that suits it (powers of 1000), such as 6.74 G or 41.5 PFLOP."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if count < 1000:
            return f"{count:.0f} {unit}".rstrip() if not prefix else f"{count:.2f} {prefix}{unit}"
        count /= 1000
    return f"{count:.2f} Z{unit}"


def _projected(seconds: float) -> str:
    return (readable_seconds(seconds) if seconds >= 10 else f"{seconds:.2g}s") + "*"


def _heading(plan: Plan) -> list[str]:
    config, work = plan.config, plan.work
    stored = plan.compute.dtype if config.quantization == "none" else f"{config.quantization} and {plan.compute.dtype}"
    sent = f"messages in {config.message_dtype}" if plan.total("bytes_up") else "no messages"
    who = f"{config.clients_per_round} out of {config.clients} clients"
    if plan.pools:
        who = f"one participant with the examples of all {config.clients} clients"
    lines = [
        "From shapes alone: neither weights nor data are read. FLOPs are upper bounds; * marks a projection.",
        "",
        f"model   {config.model}: {plan.architecture.layers} layers, {readable_count(plan.parameters)} parameters, "
        f"{readable_bytes(plan.base_bytes)} in {stored}",
        f"method  {config.growth} with {config.algorithm}, rank {config.rank} on {','.join(config.targets)}, {sent}",
        f"work    {plan.total('rounds')} rounds of {who}, "
        f"{work.steps} steps of {config.batch_size} examples of {work.length} tokens",
    ]
    if plan.bounded:
        named = " and ".join(name.removeprefix("bytes_") for name in plan.bounded if name != "bytes_missed")
        lines += [
            f"        (bytes {named} are upper bounds, too: not all clients and rounds have as much, the most is counted)"
        ]
    if plan.counted:
        lines += [f"        (clients are the {config.clients} files of the data, those with too few examples among them)"]
    elif config.partition in ("field", "file", "auto"):
        lines += [
            "        (data that is split by field or file has its own number of clients: give it as --clients; who of them",
            "        takes part follows from their names, so that bytes of submodels and of catch-up differ a little)",
        ]
    return lines


def _stage_table(plan: Plan) -> list[str]:
    def row(title: str, stage: StagePlan) -> tuple[str, ...]:
        return (
            title,
            f"{stage.layers} on {stage.bare}" if stage.bare else str(stage.layers),
            str(stage.rounds),
            readable_count(stage.parameters),
            readable_count(stage.trained),
            readable_bytes(stage.bytes_up),
            readable_bytes(stage.bytes_down),
            readable_bytes(stage.bytes_stage),
            readable_count(stage.train_flops, "FLOP"),
            _projected(plan.seconds(stage)),
        )

    def ratio(name: str) -> str:
        own, full = plan.total(name), plan.of(plan.end_to_end, name)
        return f"1/{full / own:.2f}" + "*" * (name == "seconds") if own and full else ""

    total = tuple(readable_bytes(plan.total(name)) for name in ("bytes_up", "bytes_down", "bytes_stage"))
    flops, seconds = readable_count(plan.total("train_flops"), "FLOP"), _projected(plan.total("seconds"))
    rows = [
        ("stage", "layers", "rounds", "parameters", "trained", "up", "down", "submodels", "training", "time"),
        *(row(str(index), stage) for index, stage in enumerate(plan.stages, 1)),
        ("total", "", str(plan.total("rounds")), "", "", *total, flops, seconds),
        row("end-to-end", plan.end_to_end),
        ("ratio", "", "", "", "", ratio("bytes_up"), ratio("bytes_down"), "", ratio("train_flops"), ratio("seconds")),
    ]
    energy, remat = plan.energy, plan.compute.remat
    recomputed = [f"training is the work of the method: what remat {remat} computes again is not counted"]
    return [
        *table(rows),
        *(recomputed if remat != "none" else ()),
        *_rate(plan),
        f"energy* {energy['kwh']:.3g} kWh, {energy['kgco2e']:.3g} kgCO2e at {energy['joules_per_flop']:.3g} J a FLOP, as "
        "estimates of runs here (--joules-per-flop)",
    ]


def _rate(plan: Plan) -> list[str]:
    """What the times stand for, in lines."""
    rate = f"time at {readable_count(plan.flops_per_second, 'FLOP')}/s in all"
    left_out = "of training alone: compiling, evaluating and building stages come on top"
    if plan.speed is None:
        return [f"{rate}, as given (--flops-per-second), whatever this machine is;", left_out]
    kept = "" if plan.speed.kept_in is None else "measured once and kept as speed.json in the cache folder; "
    return [
        f"{rate}, what products of matrices reach here ({plan.speed.device});",
        left_out,
        f"({kept}another machine: --flops-per-second, 1e14 for a GPU)",
    ]


def _traffic(plan: Plan) -> list[str]:
    """What one client receives and sends, and what besides the messages has to travel."""
    if plan.pools:
        return ["nothing travels: one participant holds the examples of all clients and trains for all of them"]
    rows: list[tuple[str, ...]] = [("per client", "round up", "round down", "submodel, once", "or group list and beta")]
    for index, stage in enumerate(plan.stages, 1):
        amounts = (stage.message_up, stage.message_down, stage.submodel, stage.recipe)
        rows.append((f"stage {index}", *map(readable_bytes, amounts)))
    fused = [stage for stage in plan.stages if stage.submodel]
    clients, besides = plan.config.clients, []
    if fused:
        besides = [
            ("submodels, to the clients that take part in their stage", plan.total("bytes_stage")),
            ("  of it catch-up: to newcomers after a stage's first round", sum(each.late * each.submodel for each in fused)),
            (f"  instead, if all {clients} clients get each one", clients * sum(each.submodel for each in fused)),
            (
                "  instead, if clients hold the base model and fuse it themselves",
                sum(each.clients * each.recipe for each in fused),
            ),
        ]
    besides += [
        *([("messages that absentees missed and need, because they add up", plan.total("bytes_missed"))] * plan.cumulative),
        ("the base model, once to every client under any method; not counted above", clients * plan.base_bytes),
    ]
    return [
        *table(rows),
        "",
        *table([("besides messages, all clients", "bytes"), *((text, readable_bytes(count)) for text, count in besides)]),
    ]


def _memory(plan: Plan) -> list[str]:
    heads = ("weights", "training state*", "activations*", "workspace*", "peak*")

    def cells(memory: MemoryTerms) -> tuple[str, ...]:
        state = memory.lora + memory.gradients + memory.moments + memory.updates
        workspace = max(memory.layer_workspace, memory.loss_chunk)
        return tuple(map(readable_bytes, (memory.weights, state, memory.activations, workspace, memory.total)))

    compiled, shards = plan.options.compile, plan.config.model_shards
    held = f"of which {shards} hold the base together, " if shards > 1 else ""
    at_once = f"{plan.work.clients} client(s) at once"
    lines = []
    for kind, title in (
        ("client", "memory of the participant's device" if plan.pools else "memory of a client's device"),
        ("simulator", f"memory of each of the simulator's {plan.devices} device(s), {held}{at_once}"),
    ):
        checked = plan.fitting(kind) if plan.options.memory is not None else []
        with_program = compiled and kind == "simulator"
        rows = [("stage", *heads, *(("program*", "XLA's") if with_program else ()), *(("fits*",) if checked else ()))]
        for index, stage in enumerate(plan.stages):
            memory: MemoryTerms = getattr(stage, kind)
            row: tuple[str, ...] = (str(index + 1), *cells(memory))
            if with_program:
                xla = "unknown" if stage.compiled is None else readable_bytes(stage.compiled.total)
                row += (readable_bytes(memory.program), xla)
            rows.append((*row, *(("yes" if checked[index] else "no",) if checked else ())))
        lines += [title + (f", against {plan.options.memory}" if checked else ""), *table(rows)]
        if kind == "client":
            grown = plan.stages[0].layers < plan.stages[-1].layers == plan.architecture.layers
            note = ["at full depth it is that of end-to-end training: growth saves average memory, not peak memory"]
            lines += [*(note if grown else ()), ""]
    kernel = kernel_for(
        plan.compute.attention,
        dtype=plan.compute.dtype,
        head_size=plan.architecture.head_size,
        length=plan.work.length,
    )
    return [*lines, f"in {plan.compute.dtype}, remat {plan.compute.remat}, attention {kernel} as on this machine"]


def _convention(plan: Plan) -> list[str]:
    """The paper's way of counting, beside its own figures where it has them for this model."""
    rounds = plan.total("rounds")
    rows: list[tuple[str, ...]] = [("low-rank parameters x rounds x 1 byte", f"{rounds} rounds")]
    known = [row for row in plan.convention.values() if row.paper_gigabytes is not None]
    implied = known[0].paper_rounds if known else None
    differs = known and implied != rounds
    if known:
        rows[0] += (f"{implied} rounds", "the paper") if differs else ("the paper",)
    for name, row in plan.convention.items():
        cells = [name, readable_bytes(row.bytes)]
        if known:
            cells += ["" if row.paper_bytes is None else readable_bytes(row.paper_bytes)] if differs else []
            cells += ["" if row.paper_gigabytes is None else f"{row.paper_gigabytes:.2f} GB"]
        rows.append(tuple(cells))
    lines = ["communication as the paper counts it: one client, one direction, no submodels", *table(rows)]
    stated = PAPER_ROUNDS.get(paper_model(plan.architecture) or "")
    if known and implied != stated:
        lines.append(f"the paper states {stated} rounds for this model, and its figures are those of {implied}")
    if not known:
        lines.append("the paper gives no figures for this configuration: a prediction by its rule")
    return lines
