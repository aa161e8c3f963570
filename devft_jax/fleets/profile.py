"""The devices of a fleet: what each client's can do."""

from dataclasses import dataclass

import numpy as np

from devft_jax.fleets.presence import Presence


@dataclass(frozen=True)
class Fleet:
    """The devices of N clients, in the clients' order.

    Attributes:
      tiers: names of the kinds of device.
      tier: i64[N], index of each client's kind in `tiers`.
      flops_per_second: f64[N], operations per second that training reaches, positive.
      memory: f64[N], bytes that training may use.
      down: f64[N], bytes per second that a client receives, positive.
      up: f64[N], bytes per second that a client sends, positive.
      failure: f64[N], probability that a client fails in a round that it has begun, in [0, 1].
      presence: when clients are present.
    """

    tiers: tuple[str, ...]
    tier: np.ndarray
    flops_per_second: np.ndarray
    memory: np.ndarray
    down: np.ndarray
    up: np.ndarray
    failure: np.ndarray
    presence: Presence

    @property
    def size(self) -> int:
        """N."""
        return len(self.memory)

    def fitting(self, memory: int | np.ndarray) -> np.ndarray:
        """Indices i64[K] of the clients whose memory suffices, ascending.

        Args:
          memory: bytes that training needs of a client, or f64[N] of each.
        """
        return np.flatnonzero(self.memory >= memory)

    def by_tier(self, clients: np.ndarray | None = None) -> dict[str, int]:
        """The number of clients of each tier that has any in the fleet, by the tier's name.

        Args:
          clients: i64[K], the clients to count; None for all.
        """
        of = self.tier if clients is None else self.tier[clients]
        counts = np.bincount(of, minlength=len(self.tiers))
        there = np.bincount(self.tier, minlength=len(self.tiers))
        return {name: int(count) for name, count, all_of in zip(self.tiers, counts, there, strict=True) if all_of}

    def take(self, clients: np.ndarray) -> "Fleet":
        """The devices of some clients, in this order.

        Args:
          clients: i64[K], their indices.
        """
        return Fleet(
            self.tiers,
            self.tier[clients],
            self.flops_per_second[clients],
            self.memory[clients],
            self.down[clients],
            self.up[clients],
            self.failure[clients],
            self.presence.take(clients),
        )
