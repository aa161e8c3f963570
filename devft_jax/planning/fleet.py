"""The plan of a run's rounds on a fleet: who can take part in every stage, and simulated time.

Who can take part follows exactly from the fleet and from the memory formula. Simulated times are projections: all examples
are assumed to be padded to `max_length`, as in the rest of a plan, so a run's rounds are shorter. Up to `MOST_ROUNDS` rounds
of a stage are simulated, and the others are assumed to take as long as these on average.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from devft_jax.config.run_config import RunConfig
from devft_jax.data import length_buckets
from devft_jax.developmental import StageShape
from devft_jax.federated.round.client import LocalTraining
from devft_jax.fleets.buffered import Course
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.simulation import SimulatedRound, Simulation
from devft_jax.fleets.timing import Load
from devft_jax.training.classes import ClientClasses
from devft_jax.training.fleet import buffered_server, rules_of
from devft_jax.training.needs import Needs, needs_of

MOST_ROUNDS = 100
"""Most rounds of a stage that are simulated."""


@dataclass(frozen=True)
class FleetStagePlan:
    """A stage on a fleet.

    Attributes:
      memory: bytes that a client needs; where classes hold different layers, a client of the least demanding one.
      eligible: number of clients whose memory suffices, by tier.
      round_seconds: simulated seconds of a round, mean over those simulated; None if no client can take part.
      seconds: simulated seconds of all rounds of the stage; None if no client can take part.
      lost: share of the selected clients that failed, left or were late; None if no client can take part.
    """

    memory: int
    eligible: dict[str, int]
    round_seconds: float | None
    seconds: float | None
    lost: float | None


@dataclass(frozen=True)
class FleetPlan:
    """A run on a fleet.

    Attributes:
      tiers: number of clients by tier.
      stages: the stages in order.
      end_to_end: the same rounds at full depth.
    """

    tiers: dict[str, int]
    stages: tuple[FleetStagePlan, ...]
    end_to_end: FleetStagePlan

    @property
    def seconds(self) -> float | None:
        """Simulated seconds of the whole run; None if no client can take part in a stage."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None


@dataclass(frozen=True)
class PlannedStage:
    """What the plan of a stage on a fleet is made from.

    Attributes:
      shape: the stage's shape.
      rounds: number of its rounds.
      submodel: bytes that a client receives once.
      owed: bytes of a round's message that a client needs even if it misses the round.
    """

    shape: StageShape
    rounds: int
    submodel: int
    owed: int


def plan_fleet(
    config: RunConfig,
    training: LocalTraining,
    fleet: Fleet,
    ids: np.ndarray,
    classes: ClientClasses | None,
    stages: Sequence[PlannedStage],
    whole: PlannedStage,
) -> FleetPlan:
    """Plan the rounds of a run on its fleet.

    Args:
      config: a valid configuration with a fleet.
      training: one client's local training, of the base at full depth.
      fleet: the clients' devices.
      ids: u32[N], the clients' ids.
      classes: of clients that hold different layers; None if all hold the same.
      stages: the stages in order.
      whole: the same rounds at full depth.
    """
    simulation = Simulation(fleet, ids, config.seed, rules_of(config))
    return FleetPlan(
        tiers=fleet.by_tier(),
        stages=_plan_stages(config, training, simulation, classes, stages),
        end_to_end=_plan_stages(config, training, simulation, None, [whole])[0],
    )


def _plan_stages(
    config: RunConfig,
    training: LocalTraining,
    simulation: Simulation,
    classes: ClientClasses | None,
    stages: Sequence[PlannedStage],
) -> tuple[FleetStagePlan, ...]:
    """Plans of consecutive stages, in one course of simulated time."""
    clock, done, fleet = 0.0, 0, simulation.fleet
    last_round = np.zeros(fleet.size, np.int64)
    # Running total of the bytes that absent clients will need, after 0, 1, ... rounds.
    owed, planned, before = [0.0], list[FleetStagePlan](), list[int]()
    server, course = buffered_server(config, simulation), Course()
    for stage in stages:
        needs = needs_of(config, training, classes, len(planned), stage.shape, fleet.size)
        able = fleet.fitting(needs.memory)
        before.append(done)
        rounds: list[SimulatedRound] = []
        # At the end of a stage the clients at work are sent home.
        course = Course(begun=course.begun)
        for index in range(done, done + min(stage.rounds, MOST_ROUNDS) if len(able) else done):
            load = _Load(config, needs, stage, classes, last_round, np.array(owed), tuple(before), index)
            if config.aggregation == "buffered":
                rounds.append(server.step(course, index, clock, needs.memory, load)[0])
            else:
                rounds.append(simulation.round(index, clock, needs.memory, load))
            clock = rounds[-1].clock
            owed.append(owed[-1] + stage.owed)
        done += stage.rounds
        owed += [owed[-1]] * (done + 1 - len(owed))
        planned.append(_stage_plan(stage.rounds, needs.least, fleet.by_tier(able), rounds))
        clock += (planned[-1].seconds or 0.0) - sum(each.seconds for each in rounds)
    return tuple(planned)


@dataclass(frozen=True)
class _Load:
    """What clients have to do in a round in which all examples have the full length; remembers who has received it."""

    config: RunConfig
    needs: Needs
    stage: PlannedStage
    classes: ClientClasses | None
    last_round: np.ndarray
    owed: np.ndarray
    before: tuple[int, ...]
    index: int

    def __call__(self, clients: np.ndarray) -> Load:
        before = self.last_round[clients]
        missed = self.owed[-1] - self.owed[np.minimum(before, len(self.owed) - 1)]
        layers = self.stage.submodel * (before <= self.before[-1])
        if self.classes is not None:
            layers = self.classes.submodels(clients, self.last_round, len(self.before) - 1, self.before)
        self.last_round[clients] = self.index + 1
        lengths = np.full((len(clients), 1), length_buckets(self.config.max_length)[-1])
        step = self.config.batch_size * self.needs.example_flops(clients, lengths)
        return Load(
            down=self.needs.down(clients) + layers + missed,
            steps=np.repeat(step, self.config.local_steps, axis=1),
            up=self.needs.up(clients),
        )


def _stage_plan(number: int, memory: int, eligible: dict[str, int], rounds: Sequence[SimulatedRound]) -> FleetStagePlan:
    """The plan of a stage from its simulated rounds."""
    if not rounds:
        return FleetStagePlan(memory, eligible, None, None, None)
    mean = sum(each.seconds for each in rounds) / len(rounds)
    lost = sum(len(each.failed) + len(each.left) + len(each.late) for each in rounds)
    selected = sum(len(each.selected) for each in rounds)
    return FleetStagePlan(memory, eligible, mean, mean * number, lost / max(selected, 1))
