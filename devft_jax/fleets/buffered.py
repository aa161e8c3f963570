"""Buffered asynchronous aggregation in simulated time (FedBuff: Nguyen et al., AISTATS 2022, Algorithm 1).

`concurrency` clients are at work at any time. When one finishes, its change goes into the server's buffer; when one fails or
leaves, its work is lost. In both cases another client begins, from the server's newest state. When the buffer has K changes
the server takes a step, which is a round here, and empties the buffer:

    x  <-  x + sum_i w_i s(t_i) (x_i - x^i) / sum_i w_i,    s(t) = (1 + t)^-power

where client i began from x^i, the server's state t_i steps ago, and w_i are the usual weights of the messages; FedBuff's own
are equal. A client is at work or in the buffer only once. At the end of a stage the clients at work are sent home.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from devft_jax.errors import RunError
from devft_jax.federated.sampling import sample_cohort
from devft_jax.fleets.draws import uniform_draws
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.simulation import SimulatedRound, begin_round, never_present
from devft_jax.fleets.timing import Load, Times

MOST_LOST = 1000
"""Lost clients for each change that a step waits for, after which the run is given up."""


@dataclass(frozen=True)
class Flight:
    """A client at work.

    Attributes:
      client: its index.
      version: the server's steps when it began, over all stages.
      began: seconds since the beginning of the run.
      ends: seconds since the beginning of the run at which it finishes or is lost.
      fate: "finished", "failed" or "left".
    """

    client: int
    version: int
    began: float
    ends: float
    fate: str


@dataclass
class Course:
    """What goes on from one step of the server to the next.

    Attributes:
      flights: the clients at work.
      begun: number of clients that have begun so far; numbers their draws.
    """

    flights: list[Flight] = field(default_factory=list)
    begun: int = 0


def discount(staleness: np.ndarray, power: float) -> np.ndarray:
    """s(t) = (1 + t)^-power, the factor of a change that began t steps of the server ago.

    Args:
      staleness: t, at least 0.
      power: at least 0.
    """
    return (1.0 + np.asarray(staleness, float)) ** -power


@dataclass(frozen=True)
class BufferedSimulation:
    """The steps of a server with a buffer.

    Attributes:
      fleet: the clients' devices.
      ids: u32[N], the clients' ids.
      seed: seed of the run.
      size: K, changes of a step.
      concurrency: clients at work at any time.
    """

    fleet: Fleet
    ids: np.ndarray
    seed: int
    size: int
    concurrency: int

    def step(
        self, course: Course, version: int, clock: float, memory: int | np.ndarray, load: Callable[[np.ndarray], Load]
    ) -> tuple[SimulatedRound, list[Flight]]:
        """Everything up to the server's next step.

        Args:
          course: the clients at work; changed.
          version: the server's steps so far.
          clock: seconds since the beginning of the run.
          memory: bytes that the stage needs of a client, or f64[N] of each.
          load: returns what clients i64[M] have to do that begin now.

        Returns:
          The round, with its clients in the order of the buffer; and the buffer, in the order of the clients' versions.

        Raises:
          RunError: no client has the memory or is ever present, or too many are lost.
        """
        able, done = begin_round(self.fleet, version, clock, memory)
        buffer: list[Flight] = []
        wanted = min(self.size, len(able))
        while len(buffer) < wanted:
            self._begin(course, done, buffer, able, version, load)
            if not course.flights:
                self._wait(done, np.setdiff1d(able, [each.client for each in buffer]))
                continue
            first = min(course.flights, key=lambda each: (each.ends, self.ids[each.client]))
            course.flights.remove(first)
            done.clock = max(done.clock, first.ends)
            if first.fate == "finished":
                buffer.append(first)
                continue
            getattr(done, first.fate).append(first.client)
            if len(done.failed) + len(done.left) > MOST_LOST * wanted:
                raise RunError(
                    f"round {version + 1}: {MOST_LOST * wanted:,} clients failed or left, and fewer than {wanted} finished; "
                    "give another fleet."
                )
        buffer.sort(key=lambda each: (each.version, each.client))
        done.positions = np.array([each.client for each in buffer], np.int64)
        done.client_seconds = np.array([each.ends - each.began for each in buffer])
        return done, buffer

    def _begin(
        self,
        course: Course,
        done: SimulatedRound,
        buffer: list[Flight],
        able: np.ndarray,
        version: int,
        load: Callable[[np.ndarray], Load],
    ) -> None:
        """Let clients begin until as many are at work as may be, or nobody else is present."""
        presence = self.fleet.presence
        here = able[presence.present(done.clock, able)]
        done.present = len(here)
        while len(course.flights) < self.concurrency:
            free = np.setdiff1d(here, [each.client for each in (*course.flights, *buffer)])
            if not len(free):
                return
            chosen = sample_cohort(self.seed, course.begun, self.ids, 1, among=free)
            [draws] = uniform_draws(self.seed, 1 + course.begun, self.ids[chosen], 2)
            course.begun += 1
            [seconds] = Times.of(self.fleet, chosen, load(chosen)).total()
            [leaves] = presence.leaves(done.clock, chosen) - done.clock
            [client] = chosen.tolist()
            fails = seconds * draws[1] if draws[0] < self.fleet.failure[client] else np.inf
            fate = "finished" if seconds <= min(fails, leaves) else "failed" if fails <= leaves else "left"
            ends = done.clock + float(min(seconds, fails, leaves))
            course.flights.append(Flight(client, version, done.clock, ends, fate))
            done.selected.append(client)

    def _wait(self, done: SimulatedRound, others: np.ndarray) -> None:
        """Wait until one of the clients is present that are not in the buffer."""
        start = self.fleet.presence.first_time(done.clock, others, 1)
        if start is None:
            raise never_present(len(others))
        done.waited += start - done.clock
        done.clock = start
