"""How many layers each stage has: the capacities L_1 < ... < L_S <= L (section 3 of the DevFT paper).

The paper doubles from 4 of 32 layers, or 5 of 40, to the full model. Any ascending list does; a list
may also stop short of the full depth.
"""

import math
import operator
from collections.abc import Sequence


def geometric_schedule(num_layers: int, initial: int, rate: float) -> tuple[int, ...]:
    """Capacities `initial`, `initial * rate`, ... up to `num_layers`, such as (32, 4, 2) -> (4, 8, 16, 32).

    A last step that overshoots is clipped to `num_layers`; fractional steps are rounded and grow by at
    least one layer. Raises ValueError when `initial` is not in 1..num_layers or `rate` is not above 1.
    """
    if not 1 <= operator.index(initial) <= operator.index(num_layers):
        raise ValueError(
            f"initial capacity {initial} is not between 1 and the model's {num_layers} layers: "
            "give the number of layers of the first stage."
        )
    if not (math.isfinite(rate) and rate > 1):
        raise ValueError(f"growth rate {rate} must be a finite number above 1, such as 2.")
    capacities = [operator.index(initial)]
    while capacities[-1] < num_layers:
        following = max(capacities[-1] + 1, round(capacities[-1] * rate))
        capacities.append(min(following, num_layers))
    return tuple(capacities)


def validate_capacities(capacities: Sequence[int], num_layers: int | None = None) -> tuple[int, ...]:
    """The capacities as a tuple, once they are known to be positive, ascending and within the depth.

    Without `num_layers` the depth is not checked. Raises ValueError naming the first wrong entry.
    """
    if not capacities:
        raise ValueError("capacities are empty: give the layers of each stage, such as 4,8,16,32.")
    for before, capacity in zip((0, *capacities), capacities, strict=False):
        try:
            operator.index(capacity)
        except TypeError:
            raise ValueError(f"capacities {tuple(capacities)} hold {capacity!r}: give whole numbers of layers.") from None
        if capacity < 1:
            raise ValueError(f"capacities {tuple(capacities)} hold {capacity}: every stage needs at least one layer.")
        if capacity <= before:
            raise ValueError(
                f"capacities {tuple(capacities)} do not ascend at {capacity}: "
                "give every stage more layers than the one before."
            )
    if num_layers is not None and capacities[-1] > num_layers:
        raise ValueError(
            f"capacities {tuple(capacities)} end at {capacities[-1]}, beyond the model's {num_layers} "
            f"layers: end at {num_layers} or below."
        )
    return tuple(operator.index(capacity) for capacity in capacities)
