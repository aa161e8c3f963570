"""A synchronous round of a fleet: who takes part, who is lost, and how long it takes in simulated time.

    eligible    clients whose memory suffices for the stage
    present     of these, those that are there; the round waits until clients_per_round are (or as many as ever are)
    selected    of these, over_selection x clients_per_round, uniformly
    finished    the first clients_per_round whose message arrives; the round closes with the last of them

The others are `failed` (by their failure rate, at a uniform moment of their work), `left` (absent before they were done),
`late` (the deadline came first), or `surplus` (still at work when enough had finished). The server notices at once when a
client fails or leaves. It closes the round at the deadline if too few have finished by then. A round that nobody
finishes is begun again with other clients; its time counts.

All draws depend on the seed, the round and the client's id only, never on the order of the clients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from devft_jax.errors import RunError
from devft_jax.federated.sampling import sample_cohort
from devft_jax.fleets.draws import uniform_draws
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.timing import Load, Times

MOST_ATTEMPTS = 100
"""How often a round is begun at most."""
NEXT_ATTEMPT = 10**6
"""Added to the round's number for the draws of a further attempt; more than a run has rounds."""


@dataclass(frozen=True)
class Rules:
    """When the server closes a round.

    Attributes:
      wanted: number of messages that it waits for.
      over_selection: clients that it selects, as a multiple of `wanted`.
      deadline: seconds after which it closes a round at the latest; infinity without one.
      partial: whether a client takes fewer local steps if only these fit before the deadline.
    """

    wanted: int
    over_selection: float = 1.0
    deadline: float = math.inf
    partial: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of M selected clients, S local steps.

    Attributes:
      finished: bool[M], whose message arrived in time.
      failed: bool[M].
      left: bool[M].
      late: bool[M].
      surplus: bool[M].
      steps: i64[M], local steps that each takes; S unless work may be partial.
      ends: f64[M], seconds from the beginning of the round until its message would have arrived.
      seconds: from the beginning of the round until the server closes it.
    """

    finished: np.ndarray
    failed: np.ndarray
    left: np.ndarray
    late: np.ndarray
    surplus: np.ndarray
    steps: np.ndarray
    ends: np.ndarray
    seconds: float


def outcome_of(times: Times, rules: Rules, *, fails_after: np.ndarray, leaves_after: np.ndarray) -> Outcome:
    """What becomes of the selected clients of a round.

    Args:
      times: their seconds.
      rules: when the server closes the round.
      fails_after: f64[M], share of its work after which each fails, in (0, 1); infinity for one that does not.
      leaves_after: f64[M], seconds from the beginning of the round after which each is absent.
    """
    most = times.steps.shape[1]
    steps = np.full(len(times.steps), most)
    if rules.partial:
        steps = np.minimum(most, times.steps_within(rules.deadline))
    ends = times.total(steps)
    with np.errstate(invalid="ignore"):
        fails = np.where(np.isfinite(fails_after), ends * np.minimum(fails_after, 1.0), np.inf)
    stops = np.minimum(fails, leaves_after)
    lost = stops < np.minimum(ends, rules.deadline)
    late = ~lost & ((ends > rules.deadline) | (steps == 0))
    arrived = np.flatnonzero(~lost & ~late)
    first = arrived[np.argsort(ends[arrived], kind="stable")][: rules.wanted]
    finished = np.zeros(len(steps), bool)
    finished[first] = True
    if len(first) == rules.wanted:
        seconds = float(ends[first].max(initial=0.0))
        # What would have happened to the others later does not happen.
        working = ~finished & ~(lost & (stops <= seconds))
    else:
        seconds = float(max(stops[lost].max(initial=0.0), ends[first].max(initial=0.0)))
        seconds = rules.deadline if late.any() else seconds
        working = np.zeros(len(steps), bool)
    failed = lost & ~working & (fails <= leaves_after)
    return Outcome(
        finished=finished,
        failed=failed,
        left=lost & ~working & ~failed,
        late=late & ~working,
        surplus=working,
        steps=steps,
        ends=ends,
        seconds=seconds,
    )


@dataclass
class SimulatedRound:
    """A round in simulated time; clients are indices, those of all attempts together.

    Attributes:
      positions: i64[K], the clients that finished, ascending.
      steps: i64[K], local steps of each.
      client_seconds: f64[K], seconds of each.
      began: seconds since the beginning of the run at which the round was asked for.
      clock: seconds since the beginning of the run at which it closed.
      waited: seconds of these in which too few clients were present.
      eligible: number of clients whose memory suffices.
      present: number of these that were present at the last attempt.
      abandoned: attempts that nobody finished.
      selected: clients that received the server's message.
      failed: clients that failed.
      left: clients that left.
      late: clients that were not done at the deadline.
      surplus: clients that were still at work when enough had finished.
    """

    positions: np.ndarray
    steps: np.ndarray
    client_seconds: np.ndarray
    began: float
    clock: float
    eligible: int
    waited: float = 0.0
    present: int = 0
    abandoned: int = 0
    selected: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    surplus: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Simulated seconds of the round, waiting and abandoned attempts included."""
        return self.clock - self.began


def begin_round(fleet: Fleet, index: int, clock: float, memory: int | np.ndarray) -> tuple[np.ndarray, SimulatedRound]:
    """The clients that can take part in a round, i64[M], and the round before anything has happened.

    Args:
      fleet: the clients' devices.
      index: number of the round, from 0.
      clock: seconds since the beginning of the run.
      memory: bytes that the round needs of a client, or f64[N] of each.

    Raises:
      RunError: no client has the memory.
    """
    able = fleet.fitting(memory)
    if not len(able):
        raise RunError(
            f"round {index + 1} needs {np.min(memory) / 1e9:.3g} GB of a client and no client of the fleet has as much; use "
            "a quantised base, a smaller batch_size or max_length, or another fleet."
        )
    nobody = np.zeros(0, np.int64)
    return able, SimulatedRound(nobody, nobody, nobody.astype(float), began=clock, clock=clock, eligible=len(able))


def never_present(clients: int) -> RunError:
    """The error for clients that are never present.

    Args:
      clients: their number.
    """
    return RunError(f"none of the {clients} clients whose memory suffices is ever present; correct the fleet's hours.")


@dataclass(frozen=True)
class Simulation:
    """The rounds of a fleet.

    Attributes:
      fleet: the clients' devices.
      ids: u32[N], the clients' ids.
      seed: seed of the run.
      rules: when the server closes a round.
    """

    fleet: Fleet
    ids: np.ndarray
    seed: int
    rules: Rules

    def round(
        self, index: int, clock: float, memory: int | np.ndarray, load: Callable[[np.ndarray], Load]
    ) -> SimulatedRound:
        """One round.

        Args:
          index: number of the round, from 0 over all stages.
          clock: seconds since the beginning of the run.
          memory: bytes that the stage needs of a client, or f64[N] of each.
          load: returns what clients i64[M] have to do; called once for each attempt.

        Raises:
          RunError: no client has the memory or is ever present, or no attempt was finished.
        """
        able, done = begin_round(self.fleet, index, clock, memory)
        for attempt in range(MOST_ATTEMPTS):
            self._attempt(done, index + attempt * NEXT_ATTEMPT, able, load)
            if len(done.positions):
                return done
            done.abandoned += 1
        raise RunError(
            f"round {index + 1} was begun {MOST_ATTEMPTS} times and no client finished it; give a later deadline, or a "
            "fleet that fails less often."
        )

    def _attempt(self, done: SimulatedRound, draw: int, able: np.ndarray, load: Callable[[np.ndarray], Load]) -> None:
        """Begin the round once; what happens is added to `done`."""
        presence = self.fleet.presence
        start = presence.first_time(done.clock, able, min(self.rules.wanted, len(able)))
        here = able[:0] if start is None else able[presence.present(start, able)]
        if start is None or not len(here):
            raise never_present(len(able))
        number = min(len(here), math.ceil(self.rules.over_selection * self.rules.wanted))
        chosen = sample_cohort(self.seed, draw, self.ids, number, among=here)
        times = Times.of(self.fleet, chosen, load(chosen))
        draws = uniform_draws(self.seed, 1 + draw, self.ids[chosen], 2)
        outcome = outcome_of(
            times,
            self.rules,
            fails_after=np.where(draws[:, 0] < self.fleet.failure[chosen], draws[:, 1], np.inf),
            leaves_after=presence.leaves(start, chosen) - start,
        )
        done.waited += start - done.clock
        done.clock, done.present = start + outcome.seconds, len(here)
        done.selected += chosen.tolist()
        for name in ("failed", "left", "late", "surplus"):
            getattr(done, name).extend(chosen[getattr(outcome, name)].tolist())
        done.positions, done.steps = chosen[outcome.finished], outcome.steps[outcome.finished]
        done.client_seconds = outcome.ends[outcome.finished]
