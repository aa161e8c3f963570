"""Means over seeds with intervals, and differences between two methods over the same seeds.

The interval is Student's: mean +- t s / sqrt(n) with n - 1 degrees of freedom, for seeds taken as independent draws. The
quantile t is found from the finite sums that the distribution has for whole degrees of freedom (Abramowitz and Stegun,
26.7.3 and 26.7.4), so that no package of statistics is needed.
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
      mean: of `count` values. half: half the width of its interval; None for one value, which says nothing of others.
    """

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return None if self.half is None else self.mean + self.half

    @property
    def sign(self) -> int:
        """-1 or 1 where the whole interval lies below or above zero; 0 where it does not, or there is none."""
        if self.half is None or abs(self.mean) <= self.half:
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of values with its 95 % interval; None without values."""
    if not values:
        return None
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, 1)
    # statistics.stdev fails on an infinite value, as a diverged run may have.
    if not all(map(math.isfinite, values)):
        return Estimate(mean, math.inf, count)
    return Estimate(mean, student_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count), count)


def paired_difference(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The mean of mine - theirs over the seeds that both have, with its 95 % interval; None where they share none."""
    return estimate([mine[seed] - theirs[seed] for seed in mine if seed in theirs])


@functools.cache
def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t that a Student variable of so many degrees of freedom does not exceed in size with probability `level`."""
    low, high = 0.0, math.pi / 2
    # 60 halvings leave an angle less than a float's rounding away.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability_within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _probability_within(angle: float, freedom: int) -> float:
    """P(|T| <= t) at the angle atan(t / sqrt(freedom))."""
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
