"""Statistics of the raw seconds: medians, paired ratios with intervals, and a linear fit of round time over depth.

Repetition i of every program ran right after repetition i of the others, so that a temporary slowdown of the machine affects
all of them: ratios are taken within repetitions, and then their median.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devft_jax.comparing.statistics import LEVEL, Estimate, estimate


@dataclass(frozen=True)
class Median:
    """A median with a distribution-free interval.

    Attributes:
      value: the median.
      low: lower end of an interval that covers the true median with a probability of at least 95 %, whatever the
        distribution; None for fewer than six values, of which even the smallest and the largest do not.
      high: upper end of that interval.
      count: of the values.
    """

    value: float
    low: float | None
    high: float | None
    count: int


def median(values: Sequence[float]) -> Median:
    """The median of one or more values, and the narrowest pair of order statistics that covers it at `LEVEL`.

    The k-th least of n independent values lies above the median with the probability that a binomial variable of n trials
    at 1/2 stays below k.
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, 0
    while True:
        below += math.comb(count, rank) / 2**count
        if 2 * below > 1 - LEVEL:
            break
        rank += 1
    low, high = (ordered[rank - 1], ordered[count - rank]) if rank else (None, None)
    return Median(statistics.median(ordered), low, high, count)


def paired_ratio(mine: Sequence[float], theirs: Sequence[float]) -> Median:
    """The median over repetitions of mine / theirs."""
    return median([own / other for own, other in zip(mine, theirs, strict=True)])


@dataclass(frozen=True)
class DepthFit:
    """Round time as c + k depth, fitted separately in every repetition; means over repetitions with 95 % intervals.

    Attributes:
      constant: c, seconds.
      slope: k, seconds per layer.
      head: the part of c that the head and the loss account for by operations: k times their operations over a layer's.
      share: (c - head) / (c + k deepest), the rest of c as a share of the time at the greatest depth.
      residual: the largest deviation of a mean time from the line through the means, as a share of that time.
    """

    constant: Estimate
    slope: Estimate
    head: Estimate
    share: Estimate
    residual: float


def fit_depth(seconds: Mapping[int, Sequence[float]], head_layers: float) -> DepthFit:
    """The fit over depths.

    Args:
      seconds: by depth, the times of repetitions, as many for every depth; at least two depths.
      head_layers: the head's and the loss's operations in units of one layer's.
    """
    depths, deepest = list(seconds), max(seconds)
    lines = [line(depths, times) for times in zip(*seconds.values(), strict=True)]
    shares = [(c - k * head_layers) / (c + k * deepest) for c, k in lines]
    means = [statistics.fmean(times) for times in seconds.values()]
    c, k = line(depths, means)
    residual = max(abs(c + k * depth - mean) / mean for depth, mean in zip(depths, means, strict=True))
    constant, slope, head, share = (
        _estimate(values)
        for values in ([c for c, _ in lines], [k for _, k in lines], [k * head_layers for _, k in lines], shares)
    )
    return DepthFit(constant, slope, head, share, residual)


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """The (intercept, slope) of least squares, points weighted by 1 / x^2, because the spread of times is proportional to
    them."""
    weights = [1 / (x * x) for x in xs]
    total = sum(weights)
    x_mean = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    y_mean = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    slope = sum(w * (x - x_mean) * (y - y_mean) for w, x, y in zip(weights, xs, ys, strict=True)) / sum(
        w * (x - x_mean) ** 2 for w, x in zip(weights, xs, strict=True)
    )
    return y_mean - slope * x_mean, slope


def _estimate(values: Sequence[float]) -> Estimate:
    found = estimate(values)
    assert found is not None
    return found
