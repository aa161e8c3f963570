"""Means over seeds with intervals, and differences between two methods over the same seeds.

The interval is Student's t, for seeds as independent draws. It is computed on a scale on which the quantity has no bounds,
so that its ends are possible values: the mean m with its standard error e becomes u(m) +- t e u'(m), with n - 1 degrees of
freedom, and the ends are transformed back.

    without bounds     u(m) = m                                differences of losses, bytes and seconds: m +- t e
    above a            u(m) = log(m - a)                       losses, bytes, seconds: m exp(+- t e / m) for a = 0
    between a and b    u(m) = log((m - a) / (b - m))           shares in [0, 1] (logit), their differences in [-1, 1]

If all seeds give the same value there is no interval, as for a single seed, because nothing is known about the spread.

The quantile t is computed from the finite sums that the distribution has for whole degrees of freedom (Abramowitz and
Stegun, 26.7.3 and 26.7.4), so that no statistics package is needed.
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95

ROUNDING = 1e-12
"""Relative spread that is attributed to rounding in sums and differences of floats, and counts as none."""


@dataclass(frozen=True)
class Bounds:
    """The range of a quantity.

    Attributes:
      low: the smallest possible value, or -inf.
      high: the largest possible value, or inf.
    """

    low: float = -math.inf
    high: float = math.inf

    @property
    def of_differences(self) -> "Bounds":
        """The range of a difference of two such quantities."""
        return Bounds(self.low - self.high, self.high - self.low)

    def interval(self, mean: float, reach: float) -> tuple[float, float]:
        """The ends of mean +- reach on the scale without bounds; see the module's docstring.

        Args:
          mean: a value within the bounds.
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
      mean: mean of `count` values.
      low: lower end of the interval; None if there is no interval.
      high: upper end of the interval; None if there is no interval.
      count: number of values.
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
        """-1 or 1 if the whole interval is below or above zero; 0 if it is not, or if there is none."""
        low, high = self.interval or (0.0, 0.0)
        return 1 if low > 0 else -1 if high < 0 else 0


def estimate(values: Sequence[float], bounds: Bounds = ANYWHERE, *, size: float | None = None) -> Estimate | None:
    """The mean of values with its 95 % interval; None without values.

    Args:
      values: one per seed.
      bounds: range of the quantity.
      size: magnitude of the numbers from which the values were computed, if that is larger than the values.
    """
    if not values:
        return None
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Estimate(mean, None, None, 1)
    # statistics.stdev fails for an infinite value, which a diverged run may have.
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
    """The mean of mine - theirs over the seeds that both have, with its 95 % interval; None if they share none.

    Args:
      mine: a quantity by seed.
      theirs: the same quantity of another method, by seed.
      bounds: range of the quantity itself.
    """
    shared = [seed for seed in mine if seed in theirs]
    size = max((abs(each[seed]) for each in (mine, theirs) for seed in shared), default=None)
    return estimate([mine[seed] - theirs[seed] for seed in shared], bounds.of_differences, size=size)


@functools.cache
def student_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t for which P(|T| <= t) = `level` under Student's distribution.

    Args:
      freedom: degrees of freedom.
      level: the probability.
    """
    low, high = 0.0, math.pi / 2
    # After 60 halvings the angle is exact to float rounding.
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
