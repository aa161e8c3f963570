"""A fleet drawn from named kinds of device by the seed: which client has which device follows from its id."""

from collections.abc import Mapping

import numpy as np

from devft_jax.fleets.draws import DEVICES, uniform_draws
from devft_jax.fleets.presence import Presence
from devft_jax.fleets.profile import Fleet
from devft_jax.fleets.tiers import GIGABYTE, MEGABIT, TIERS, Tier

COMPUTE_SPREAD, NETWORK_SPREAD = 0.3, 0.5
"""Standard deviations of the natural logarithm of a client's rates within a tier; assumed."""


def drawn_fleet(shares: Mapping[str, float], seed: int, ids: np.ndarray) -> Fleet:
    """A fleet in which every client's device is drawn.

    Args:
      shares: of the tiers, by name; they need not add up to 1.
      seed: seed of the run.
      ids: u32[N], the clients' ids.
    """
    draws = uniform_draws(seed, DEVICES, ids, 10)
    names = tuple(shares)
    bounds = np.cumsum([shares[name] for name in names])
    tier = np.minimum(np.searchsorted(bounds / bounds[-1], draws[:, 0], side="right"), len(names) - 1)
    chosen = [TIERS[name] for name in names]

    def of_tier(figures: list[float]) -> np.ndarray:
        return np.array(figures, float)[tier]

    def between(figures: list[tuple[float, float]], draw: np.ndarray) -> np.ndarray:
        low, high = (of_tier([pair[end] for pair in figures]) for end in (0, 1))
        return low + (high - low) * draw

    down, up = (of_tier([getattr(each, name) for each in chosen]) * MEGABIT for name in ("down", "up"))
    hour = between([each.hour for each in chosen], draws[:, 8])
    return Fleet(
        tiers=names,
        tier=tier,
        flops_per_second=of_tier([each.flops_per_second for each in chosen]) * _spread(draws[:, 1:3], COMPUTE_SPREAD),
        memory=drawn_memory(chosen, tier, draws[:, 3]),
        down=down * _spread(draws[:, 4:6], NETWORK_SPREAD),
        up=up * _spread(draws[:, 6:8], NETWORK_SPREAD),
        failure=of_tier([each.failure for each in chosen]),
        presence=Presence.daily(np.mod(hour, 24), between([each.hours for each in chosen], draws[:, 9])),
    )


def drawn_memory(tiers: list[Tier], tier: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Bytes that training may use on every client's device, f64[N].

    Args:
      tiers: the kinds of device.
      tier: i64[N], index of each client's kind.
      draw: f64[N], in (0, 1).
    """
    most = max(len(each.memory) for each in tiers)
    sizes = np.array([[*each.memory, *[0.0] * (most - len(each.memory))] for each in tiers])
    counts = np.array([len(each.memory) for each in tiers])
    share = np.array([each.memory_share for each in tiers])
    return sizes[tier, (draw * counts[tier]).astype(int)] * share[tier] * GIGABYTE


def _spread(draws: np.ndarray, deviation: float) -> np.ndarray:
    """Factors around 1, lognormal, from two uniform draws each, by the transform of Box and Muller."""
    normal = np.sqrt(-2 * np.log(draws[:, 0])) * np.cos(2 * np.pi * draws[:, 1])
    return np.exp(deviation * normal)
