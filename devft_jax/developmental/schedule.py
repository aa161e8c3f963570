"""How many layers each stage has, and how many rounds.

The capacities L_1 < ... < L_S <= L (section 3 of the DevFT paper): the paper doubles from 4 of 32 layers, 4 or 5 of 40, to
the full model. Any ascending list is allowed; it may also end below the full depth.

If the weights choose, a capacity is the k of the widest gap lambda_{k+1} - lambda_k between the eigenvalues of the Laplacian
of the layers' similarity (Eq. 3): the eigengap heuristic of spectral clustering (von Luxburg, A Tutorial on Spectral
Clustering, 2007, section 8.3). The choice is limited to `capacity_windows`, which surround the planned capacities and do not
overlap, so that stages still get deeper and their number does not change.
"""

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

    from devft_jax.developmental.options import CapacityOptions

DEFAULT_STAGES = 4
"""Number of stages if neither stages nor capacities are given and the schedule does not determine it."""


def geometric_schedule(num_layers: int, initial: int, rate: float) -> tuple[int, ...]:
    """Capacities `initial`, `initial * rate`, ... up to `num_layers`, such as (32, 4, 2) -> (4, 8, 16, 32).

    A last step beyond `num_layers` is reduced to it; fractional steps are rounded and grow by at least one layer.

    Args:
      num_layers: L.
      initial: layers of the first stage.
      rate: growth from stage to stage.

    Raises:
      ValueError: `initial` is not in 1..num_layers, or `rate` is not above 1.
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
    """The capacities as a tuple, after checking that they are positive, ascending and within the depth.

    Args:
      capacities: layers of each stage.
      num_layers: L; without it the depth is not checked.

    Raises:
      ValueError: a capacity is invalid; the message names the first one.
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


def halving_schedule(num_layers: int, stages: int) -> tuple[int, ...]:
    """`stages` capacities that double up to the full depth, rounded up, such as (22, 4) -> (3, 6, 11, 22).

    Args:
      num_layers: L.
      stages: number of stages.
    """
    return _distinct(num_layers, [-(-num_layers // 2 ** (stages - 1 - stage)) for stage in range(max(stages, 0))])


def linear_schedule(num_layers: int, stages: int) -> tuple[int, ...]:
    """`stages` capacities in equal steps up to the full depth, rounded up, such as (32, 4) -> (8, 16, 24, 32).

    Args:
      num_layers: L.
      stages: number of stages.
    """
    return _distinct(num_layers, [-(-num_layers * (stage + 1) // stages) for stage in range(max(stages, 0))])


def _distinct(num_layers: int, capacities: list[int]) -> tuple[int, ...]:
    if not capacities or len(set(capacities)) < len(capacities):
        raise ValueError(
            f"stages {len(capacities)} cannot each be deeper than the previous one in a model of {num_layers} layers: "
            "use fewer stages, at least 1."
        )
    return tuple(capacities)


def capacity_windows(capacities: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The range (lowest, highest) around each of ascending capacities in which a gap may choose it.

    Neighbouring ranges meet at the geometric mean of their capacities and share no value; the last range holds only its
    capacity. (4, 8, 16, 32) gives (3, 5), (6, 11), (12, 22), (32, 32).

    Args:
      capacities: ascending.
    """
    capacities = validate_capacities(capacities)
    if len(capacities) == 1:
        return ((capacities[0], capacities[0]),)
    # The first range extends as far below its capacity as above it.
    first = capacities[0] * math.sqrt(capacities[0] / capacities[1])
    borders = [first, *(math.sqrt(low * high) for low, high in pairwise(capacities))]
    windows = [(math.floor(low) + 1, math.floor(high)) for low, high in pairwise(borders)]
    return (*windows, (capacities[-1], capacities[-1]))


def widest_gap(spectrum: "jax.Array", lowest: int, highest: int) -> int:
    """The k with the largest gap after the k-th of ascending eigenvalues; the smallest such k.

    Args:
      spectrum: f32[L], ascending.
      lowest: smallest k, at least 1.
      highest: largest k, below L.
    """
    import numpy as np

    values = np.asarray(spectrum, np.float64)
    gaps = values[lowest : highest + 1] - values[lowest - 1 : highest]
    return lowest + int(gaps.argmax())


def equal_shares(rounds: int, stages: int) -> tuple[int, ...]:
    """The rounds of each stage in equal shares, the remainder going to the last stages.

    Args:
      rounds: rounds of all stages.
      stages: number of stages.

    Raises:
      ValueError: there are fewer rounds than stages.
    """
    if rounds < stages:
        raise ValueError(f"rounds {rounds} is fewer than the {stages} stages; use {stages} or more.")
    share, rest = divmod(rounds, stages)
    return tuple(share + (stage >= stages - rest) for stage in range(stages))


def planned_capacities(options: "CapacityOptions", num_layers: int) -> tuple[int, ...]:
    """The capacities that the options name for a model of this depth; for eigengap the centres of its windows.

    Args:
      options: the options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: they do not fit the model.
    """
    if options.capacities is not None:
        return validate_capacities(options.capacities, num_layers)
    if options.capacity_schedule == "linear":
        return linear_schedule(num_layers, min(DEFAULT_STAGES, num_layers) if options.stages is None else options.stages)
    if options.stages is None:
        return geometric_schedule(num_layers, max(1, num_layers // 8), 2)
    return halving_schedule(num_layers, options.stages)
