"""Simulated seconds of participants: pure functions of operations, bytes and rates.

    download   bytes down / rate down
    step s     operations of step s / operations per second
    upload     bytes up / rate up

A participant does these one after the other. Nothing takes no time; something at a rate of zero takes for ever.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from devft_jax.fleets.profile import Fleet


def seconds_for(amount: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Seconds for amounts at rates per second: 0 for an amount of 0, infinity for any other amount at a rate of 0.

    Args:
      amount: at least 0.
      rate: at least 0, of a shape that broadcasts to that of `amount`.
    """
    amount, rate = np.broadcast_arrays(np.asarray(amount, float), np.asarray(rate, float))
    never = np.where(amount > 0, np.inf, 0.0)
    # Quotients that no float can hold are infinity, as at a rate of 0, or 0.
    with np.errstate(over="ignore", under="ignore"):
        return np.divide(amount, rate, out=never, where=(rate > 0) & (amount > 0))


@dataclass(frozen=True)
class Load:
    """What K participants have to do, for S local steps.

    Attributes:
      down: f64[K], bytes to receive.
      steps: f64[K, S], operations of each step.
      up: f64[K], bytes to send.
    """

    down: np.ndarray
    steps: np.ndarray
    up: np.ndarray


@dataclass(frozen=True)
class Times:
    """Seconds of K participants, for S local steps.

    Attributes:
      download: f64[K].
      steps: f64[K, S].
      upload: f64[K].
    """

    download: np.ndarray
    steps: np.ndarray
    upload: np.ndarray

    @classmethod
    def of(cls, fleet: Fleet, clients: np.ndarray, load: Load) -> Self:
        """The seconds of participants on their own devices.

        Args:
          fleet: all clients' devices.
          clients: i64[K], indices of the participants.
          load: what they have to do.
        """
        return cls(
            seconds_for(load.down, fleet.down[clients]),
            seconds_for(load.steps, fleet.flops_per_second[clients][:, None]),
            seconds_for(load.up, fleet.up[clients]),
        )

    def total(self, steps: np.ndarray | None = None) -> np.ndarray:
        """Seconds from the beginning of the round until the message has arrived, f64[K].

        Args:
          steps: i64[K], how many of the local steps each takes; None for all.
        """
        trained = self.steps
        if steps is not None:
            trained = np.where(np.arange(self.steps.shape[1]) < steps[:, None], trained, 0.0)
        return self.download + trained.sum(axis=1) + self.upload

    def steps_within(self, seconds: float) -> np.ndarray:
        """How many local steps each participant can take and still arrive within some seconds, i64[K].

        Args:
          seconds: since the beginning of the round.
        """
        done = self.download[:, None] + np.cumsum(self.steps, axis=1) + self.upload[:, None]
        return np.count_nonzero(done <= seconds, axis=1)
