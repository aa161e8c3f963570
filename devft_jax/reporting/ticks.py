"""Round values for the axes of a chart."""

import math
from collections.abc import Sequence


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Two or more round values that span [low, high].

    Args:
      low: the smallest value.
      high: the largest value.
      about: the number of values wanted.
      whole: whether they are integers.
    """
    if high - low <= max(1e-300, 1e-9 * max(abs(low), abs(high))):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    span = high - low
    magnitude = 10.0 ** math.floor(math.log10(span / about))
    units = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(unit * magnitude for unit in units if span / (unit * magnitude) <= about)
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis that span [low, high]: 1, 2, 5, 10, ..., or powers of ten alone.

    Args:
      low: the smallest value, above 0.
      high: the largest value, above 0.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    units = (1, 2, 5) if last - first <= 3 else (1,)
    values = [unit * 10.0**power for power in range(first, last + 1) for unit in units]
    begin = max(index for index, value in enumerate(values) if value <= low * (1 + 1e-9))
    end = next(
        (index for index, value in enumerate(values) if value >= high * (1 - 1e-9) and index > begin), len(values) - 1
    )
    return values[begin : end + 1]


def spread_out(values: Sequence[float]) -> bool:
    """Whether values differ so much that on a linear axis the small ones would be one flat line.

    Args:
      values: any values; those that are not finite are ignored.
    """
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) > 5 * min(known)
