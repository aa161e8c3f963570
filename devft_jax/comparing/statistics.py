"""Means over seeds with intervals, and differences between two methods over the same seeds.

The interval is Student's, for seeds taken as independent draws, on the scale on which the quantity has no bounds, so that no
end of it lies where the quantity cannot be: the mean m with its standard error e is taken to u(m) +- t e u'(m), with n - 1
degrees of freedom, and the ends are taken back.

    without bounds     u(m) = m                                differences of losses, bytes and seconds: m +- t e
    above a            u(m) = log(m - a)                       losses, bytes, seconds: m exp(+- t e / m) for a = 0
    between a and b    u(m) = log((m - a) / (b - m))           shares in [0, 1] (logit), their differences in [-1, 1]

Seeds that all give one value say nothing of how far others lie apart: they make no interval, as one seed makes none.

The quantile t is found from the finite sums that the distribution has for whole degrees of freedom (Abramowitz and Stegun,
26.7.3 and 26.7.4), so that no package of statistics is needed.
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95

ROUNDING = 1e-12
"""Of the size of the values: a spread that sums and differences of floats make by themselves is none."""


@dataclass(frozen=True)
class Bounds:
    """Where a quantity can lie.

    Attributes:
      low: the least value, or -inf.
      high: the largest value, or inf.
    """

    low: float = -math.inf
    high: float = math.inf

    @property
    def of_differences(self) -> "Bounds":
        """Where a difference of two such quantities can lie."""
        return Bounds(self.low - self.high, self.high - self.low)

    def interval(self, mean: float, reach: float) -> tuple[float, float]:
        """The ends of mean +- reach, with a reach above 0, on the scale without bounds; see the module's docstring.

        Args:
          mean: within the bounds.
          reach: above 0.
        """
        if not (math.isfinite(mean) and math.isfinite(reach)):
            return self.low, self.high
        if math.isinf(self.low):
            return mean - reach, mean + reach
        above = mean - self.low
        if math.isinf(self.high):
            factor = math.exp(reach / above)
            return self.low + above / factor, self.low + above * factor
        width, below = self.high - self.low, self.high - mean
        factor = math.exp(reach * width / (above * below))
        return self.low + width * above / (above + below * factor), self.low + width * above / (above + below / factor)


ANYWHERE, POSITIVE, SHARE = Bounds(), Bounds(0.0), Bounds(0.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
      mean: of `count` values.
      low: lower end of its interval; None where the values say nothing about others.
      high: upper end of its interval; None where the values say nothing about others.
      count: of the values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def sign(self) -> int:
        """-1 or 1 where the whole interval lies below or above zero; 0 where it does not, or there is none."""
        low, high = self.interval or (0.0, 0.0)
        return 1 if low > 0 else -1 if high < 0 else 0


def estimate(values: Sequence[float], bounds: Bounds = ANYWHERE, *, size: float | None = None) -> Estimate | None:
    """The mean of values with its 95 % interval; None without values.

    Args:
      values: one for each seed.
      bounds: of the quantity.
      size: of what the values were computed from, where that is larger than they are.
    """
    if not values:
        return None
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, None, 1)
    # statistics.stdev fails on an infinite value, as a diverged run may have.
    if not all(map(math.isfinite, values)):
        return Estimate(mean, *bounds.interval(mean, math.inf), count)
    if max(values) - min(values) <= ROUNDING * (size or max(map(abs, values))):
        return Estimate(mean, None, None, count)
    reach = student_quantile(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, *bounds.interval(mean, reach), count)


def paired_difference(
    mine: Mapping[int, float],
    theirs: Mapping[int, float],
    bounds: Bounds = ANYWHERE,
) -> Estimate | None:
    """The mean of mine - theirs over the seeds that both have, with its 95 % interval; None where they share none.

    Args:
      mine: a quantity by seed.
      theirs: the same quantity of another method, by seed.
      bounds: of the quantity itself.
    """
    shared = [seed for seed in mine if seed in theirs]
    size = max((abs(each[seed]) for each in (mine, theirs) for seed in shared), default=None)
    return estimate([mine[seed] - theirs[seed] for seed in shared], bounds.of_differences, size=size)


@functools.cache
def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t that a Student variable of so many degrees of freedom does not exceed in size with probability `level`.

    Args:
      freedom: degrees of freedom.
      level: the probability.
    """
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
