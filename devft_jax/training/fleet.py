"""Rounds of a run on a simulated fleet: what each client's device has to do, and who takes part.

Which clients finish a round in simulated time is decided before it is trained, and only these are trained. Without a fleet
the participants are those that the seed draws, and nothing else changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import Growth, StageShape
from devft_jax.errors import InputError
from devft_jax.federated.round.client import LocalTraining
from devft_jax.federated.work import Participants, Rounds
from devft_jax.fleets.buffered import BufferedSimulation, Course, Flight, discount
from devft_jax.fleets.opening import open_fleet
from devft_jax.fleets.simulation import Rules, SimulatedRound, Simulation
from devft_jax.fleets.timing import Load, Times
from devft_jax.reporting import Progress
from devft_jax.reporting.progress import readable_bytes
from devft_jax.reporting.units import counted
from devft_jax.reporting.waiting import readable_seconds
from devft_jax.storage.fleet_records import FleetRecord, FlightRecord, SimulatedRoundRecord, SimulatedStageRecord
from devft_jax.training.classes import ClientClasses, open_classes
from devft_jax.training.needs import Needs, needs_of
from devft_jax.training.state import State


@dataclass(frozen=True)
class FleetRounds:
    """The rounds of a run on a fleet.

    Attributes:
      config: a valid configuration with a fleet.
      simulation: the fleet and the rules of its rounds.
      training: one client's local training, of the base at full depth.
      rounds: the examples that clients draw.
      classes: the classes of clients that hold different layers; None if all hold the same.
    """

    config: RunConfig
    simulation: Simulation
    training: LocalTraining
    rounds: Rounds
    classes: ClientClasses | None = None

    def needs(self, stage: int, shape: StageShape) -> Needs:
        """What a stage asks of the clients' devices.

        Args:
          stage: from 0.
          shape: the stage's shape.
        """
        return needs_of(self.config, self.training, self.classes, stage, shape, self.simulation.fleet.size)

    def lost_bytes(self, state: State, simulated: SimulatedRound) -> int:
        """Bytes of messages to the clients of a round that did not finish it.

        Args:
          state: the state of the run, in the stage.
          simulated: the round.
        """
        needs, selected = self.needs(state.stage, StageShape.of(state.layer_map)), np.array(simulated.selected, np.int64)
        return int(needs.down(selected).sum() - needs.down(simulated.positions).sum())

    @property
    def buffered(self) -> bool:
        """Whether the server has a buffer instead of rounds that wait for all."""
        return self.config.aggregation == "buffered"

    def next_round(self, state: State) -> "NextRound":
        """The next round in simulated time.

        Args:
          state: the state within a stage, before the round; not changed.
        """
        needs = self.needs(state.stage, StageShape.of(state.layer_map))
        before_stages = np.cumsum([0, *(stage.rounds for stage in state.totals.stages[:-1])]).tolist()
        submodel, owed = state.totals.stages[-1].submodel_bytes, np.array(state.totals.cumulative_bytes)
        # In an abandoned attempt clients receive the stage's layers and missed messages, too.
        last_round = state.last_round.copy()

        def load(clients: np.ndarray) -> Load:
            before = last_round[clients]
            missed = owed[-1] - owed[np.minimum(before, len(owed) - 1)]
            layers = submodel * (before <= before_stages[-1])
            if self.classes is not None:
                layers = self.classes.submodels(clients, last_round, state.stage, before_stages)
            last_round[clients] = state.round + 1
            lengths = np.stack([self.rounds.work(client, state.round).lengths for client in clients.tolist()])
            return Load(
                down=needs.down(clients) + layers + missed.astype(float),
                steps=needs.example_flops(clients, lengths).sum(axis=-1),
                up=needs.up(clients),
            )

        clock = clock_of(state)
        if not self.buffered:
            simulated = self.simulation.round(state.round, clock, needs.memory, load)
            return NextRound(self.rounds.some(simulated.positions, simulated.steps, state.round), simulated)
        course = course_of(state)
        server = buffered_server(self.config, self.simulation)
        simulated, buffer = server.step(course, state.round, clock, needs.memory, load)
        simulated.steps = np.full(len(buffer), self.rounds.steps)
        return NextRound(self._participants(buffer, state.round), simulated, buffer, course)

    def _participants(self, buffer: list[Flight], version: int) -> Participants:
        """The participants of a step; each has drawn its examples in the round in which it began."""
        began = {each.client: each.version for each in buffer}
        scales = {
            client: float(discount(np.array(version - first), self.config.staleness_power))
            for client, first in began.items()
        }
        positions = np.array([each.client for each in buffer], np.int64)
        return Participants(positions, lambda client: replace(self.rounds.work(client, began[client]), scale=scales[client]))


@dataclass(frozen=True)
class NextRound:
    """The next round.

    Attributes:
      members: its participants; with a buffer in the order of the states from which they began.
      simulated: the round in simulated time; None without a fleet.
      buffer: where each participant began, if the server has a buffer.
      course: the clients that are at work afterwards, if the server has a buffer.
    """

    members: Participants
    simulated: SimulatedRound | None = None
    buffer: list[Flight] | None = None
    course: Course | None = None


def course_of(state: State) -> Course:
    """The clients that are at work, for a server with a buffer.

    Args:
      state: the run's state.
    """
    fleet = state.totals.fleet
    if fleet is None:
        return Course()
    flights = [Flight(each.client, each.version, each.began, each.ends, each.fate) for each in fleet.flights or ()]
    return Course(flights, fleet.begun or 0)


def set_course(state: State, course: Course) -> None:
    """Note the clients that are at work, and forget the states of the server from which nobody is.

    Args:
      state: the run's state; changed.
      course: the clients at work.
    """
    assert state.totals.fleet is not None
    state.totals.fleet.flights = [FlightRecord(**vars(flight)) for flight in course.flights]
    state.totals.fleet.begun = course.begun
    needed = {flight.version for flight in course.flights}
    state.versions = {version: server for version, server in state.versions.items() if version in needed}


def send_home(state: State) -> None:
    """At the end of a stage, let no client be at work any more: the next stage has another model.

    Args:
      state: the run's state; changed.
    """
    fleet, stage = state.totals.fleet, state.totals.stages[-1].simulated if state.totals.stages else None
    if fleet is None or not fleet.flights:
        return
    if stage is not None:
        stage.surplus += len(fleet.flights)
    set_course(state, Course([], fleet.begun or 0))


def clock_of(state: State) -> float:
    """Simulated seconds since the beginning of the run.

    Args:
      state: the run's state.
    """
    return 0.0 if state.totals.fleet is None else state.totals.fleet.seconds


def buffered_server(config: RunConfig, simulation: Simulation) -> BufferedSimulation:
    """The server with a buffer, for the fleet of a simulation.

    Args:
      config: a valid configuration.
      simulation: the fleet.
    """
    most = config.concurrency or 2 * config.clients_per_round
    return BufferedSimulation(simulation.fleet, simulation.ids, simulation.seed, config.clients_per_round, most)


def rules_of(config: RunConfig) -> Rules:
    """When the server closes a round.

    Args:
      config: a valid configuration.
    """
    deadline = float("inf") if config.deadline is None else config.deadline
    return Rules(config.clients_per_round, config.over_selection, deadline, config.late_work == "partial")


def open_participation(
    config: RunConfig, rounds: Rounds, training: LocalTraining, growth: Growth, stages: int, progress: Progress
) -> tuple[FleetRounds | None, ClientClasses | None]:
    """The fleet that a run names, and the classes of its clients; None for what it does not have.

    Args:
      config: a valid configuration.
      rounds: the clients and the examples that they draw.
      training: one client's local training, of the base at full depth.
      growth: knows the shapes of all stages, or not in advance.
      stages: number of stages.
      progress: the progress output.

    Raises:
      InputError: the fleet cannot be read, no client can take part in a stage or meet the deadline, the algorithm pools
        the clients' examples, or it cannot take classes of clients.
    """
    algorithm, clients = training.algorithm, rounds.data.clients
    ids = np.array([client.id for client in clients], np.uint32)
    if config.fleet is None:
        return None, open_classes(config, growth, training, ids, None, stages)
    if algorithm.pools:
        raise InputError(f"fleet {config.fleet} has no effect with {algorithm.name}, which has no clients; leave it out.")
    fleet = open_fleet(config, [client.name for client in clients], ids, config.seed)
    classes = open_classes(config, growth, training, ids, fleet, stages)
    fleet_rounds = FleetRounds(config, Simulation(fleet, ids, config.seed, rules_of(config)), training, rounds, classes)
    if fleet_rounds.buffered and (not algorithm.averages or config.channel != "none"):
        what = algorithm.name if config.channel == "none" else f"--channel {config.channel}"
        raise InputError(
            f"aggregation buffered has no use with {what}: the server must take a mean of the clients' plain changes; use "
            "fedit, fedprox, ffa-lora or one like them without a channel, or --aggregation synchronous."
        )
    shapes = growth.shapes(training.config.layers)
    if shapes:
        _check_stages(fleet_rounds, shapes, progress)
    return fleet_rounds, classes


def _check_stages(fleet_rounds: FleetRounds, shapes: Sequence[StageShape], progress: Progress) -> None:
    """Raise `InputError` for a stage that no client can take part in; report tiers that cannot take part in any."""
    fleet, needs = fleet_rounds.simulation.fleet, [fleet_rounds.needs(*each) for each in enumerate(shapes)]
    part = "" if fleet_rounds.classes is None else " by its least demanding class"
    for number, need in enumerate(needs, 1):
        if not len(fleet.fitting(need.memory)):
            raise InputError(
                f"fleet {fleet_rounds.config.fleet}: no client can take part in stage {number}, which needs "
                f"{readable_bytes(need.least)} of its memory{part} (the largest has "
                f"{readable_bytes(int(fleet.memory.max()))}); use a quantised base, a smaller batch_size or max_length, or "
                "another fleet."
            )
        _check_deadline(fleet_rounds, number, need)
    least = min(need.least for need in needs)
    anywhere = fleet.by_tier(np.unique(np.concatenate([fleet.fitting(need.memory) for need in needs])))
    for tier, count in fleet.by_tier().items():
        if not anywhere[tier]:
            most = int(fleet.memory[fleet.tier == fleet.tiers.index(tier)].max())
            what = "stage" if fleet_rounds.classes is None else "class"
            progress.warn(
                f"the tier {tier} ({counted(count, 'client')}, at most {readable_bytes(most)}) fits no {what}: the smallest "
                f"needs {readable_bytes(least)} of a client's memory."
            )


def _check_deadline(fleet_rounds: FleetRounds, number: int, need: Needs) -> None:
    """Raise `InputError` if not even the fastest client can meet the deadline with the shortest examples of the data."""
    rules, fleet, config = fleet_rounds.simulation.rules, fleet_rounds.simulation.fleet, fleet_rounds.config
    if not np.isfinite(rules.deadline):
        return
    clients = fleet.fitting(need.memory)
    shortest = int(fleet_rounds.rounds.data.train.lengths.min())
    step = config.batch_size * need.example_flops(clients, np.full((len(clients), 1), shortest))
    steps = 1 if rules.partial else config.local_steps
    load = Load(need.down(clients), np.repeat(step, steps, axis=1), need.up(clients))
    seconds = Times.of(fleet, clients, load).total()
    if seconds.min() > rules.deadline:
        fastest = fleet_rounds.rounds.data.clients[int(clients[seconds.argmin()])].name
        raise InputError(
            f"deadline {rules.deadline:g}: nobody can meet it in stage {number}, where the fastest client '{fastest}' needs "
            f"{seconds.min():.3g} seconds or more; give a later deadline, fewer local_steps, or --late-work partial."
        )


def report_stage(fleet_rounds: FleetRounds, record: SimulatedStageRecord, progress: Progress) -> None:
    """Report who can take part in the stage that has just begun.

    Args:
      fleet_rounds: the run's rounds on a fleet.
      record: the stage's record.
      progress: the progress output.
    """
    able, clients = sum(record.eligible.values()), fleet_rounds.simulation.fleet.size
    tiers = ", ".join(
        f"{record.eligible[name]} of {count} {name}" for name, count in fleet_rounds.simulation.fleet.by_tier().items()
    )
    progress.say(
        f"  {able} of {clients} clients ({able / clients:.0%}) have the {readable_bytes(record.memory_bytes)} that a client "
        f"needs: {tiers}"
    )


def new_stage_fleet(fleet_rounds: FleetRounds | None, state: State) -> SimulatedStageRecord | None:
    """The fleet's record of the stage that has just begun; None without a fleet.

    Args:
      fleet_rounds: the run's rounds on a fleet; None without one.
      state: the state in the stage.
    """
    if fleet_rounds is None:
        return None
    fleet, needs = fleet_rounds.simulation.fleet, fleet_rounds.needs(state.stage, StageShape.of(state.layer_map))
    return SimulatedStageRecord(memory_bytes=needs.least, eligible=fleet.by_tier(fleet.fitting(needs.memory)))


def new_fleet(fleet_rounds: FleetRounds | None) -> FleetRecord | None:
    """The fleet's record at the beginning of a run; None without a fleet.

    Args:
      fleet_rounds: the run's rounds on a fleet; None without one.
    """
    return None if fleet_rounds is None else FleetRecord(tiers=fleet_rounds.simulation.fleet.by_tier())


def next_round(fleet_rounds: FleetRounds | None, rounds: Rounds, state: State) -> NextRound:
    """The participants of the next round, and the round in simulated time.

    Args:
      fleet_rounds: the run's rounds on a fleet; None without one.
      rounds: the run's rounds.
      state: the state before the round; not changed.
    """
    return NextRound(rounds.members(state.round)) if fleet_rounds is None else fleet_rounds.next_round(state)


def round_record(
    simulated: SimulatedRound, steps: int, buffer: Sequence[Flight] | None, version: int
) -> SimulatedRoundRecord:
    """The record of a round in simulated time.

    Args:
      simulated: the round.
      steps: S, the local steps of a client that takes all.
      buffer: where each participant began, if the server has a buffer.
      version: rounds before this one.
    """
    whole = bool((simulated.steps == steps).all())
    return SimulatedRoundRecord(
        seconds=simulated.seconds,
        clock=simulated.clock,
        waited=simulated.waited,
        eligible=simulated.eligible,
        present=simulated.present,
        abandoned=simulated.abandoned,
        selected=simulated.selected,
        failed=simulated.failed,
        left=simulated.left,
        late=simulated.late,
        surplus=simulated.surplus,
        client_seconds=[float(f"{seconds:.6g}") for seconds in simulated.client_seconds],
        steps=None if whole else simulated.steps.tolist(),
        staleness=None if buffer is None else [version - flight.version for flight in buffer],
    )


def round_line(row: SimulatedRoundRecord) -> str:
    """A round in simulated time, for the progress output.

    Args:
      row: the round's record.
    """
    lost = [f"{len(clients)} {name}" for name in ("failed", "left", "late") if (clients := getattr(row, name))]
    return f"  simulated {readable_seconds(row.seconds)}" + (f", {', '.join(lost)}" if lost else "")
