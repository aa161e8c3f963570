"""Which layers to train within a budget of memory, where the lowest of them sets what the backward pass keeps.

Training a set S of the L layers, the lowest of which is j, costs

    cost(S) = activation (L - j) + sum_{l in S} costs_l

because activations are kept from layer j upward. That is not additive, so for each j the knapsack over the layers above it
is solved with what is left of the budget, and the best of these L solutions is taken. Each is exact: layer by layer, the
sets that no other set beats in both cost and value are kept.
"""

import numpy as np

Front = list[tuple[float, float, tuple[int, ...]]]
"""Sets of layers as (cost, value, layers), in ascending order of both."""


def cost_of(layers: np.ndarray, costs: np.ndarray, activation: float) -> float:
    """cost(S); 0 for no layer.

    Args:
      layers: the layers of S.
      costs: f64[L], of training each layer.
      activation: of each layer from the lowest trained one upward.
    """
    chosen = np.asarray(layers, int)
    return float(activation * (len(costs) - chosen.min()) + costs[chosen].sum()) if len(chosen) else 0.0


def best_layers(values: np.ndarray, costs: np.ndarray, activation: float, budget: float) -> np.ndarray:
    """The layers of largest total value whose cost is within the budget, i64, ascending; empty if none is.

    Of sets of equal value the cheaper one is taken.

    Args:
      values: f64[L], at least 0.
      costs: f64[L], of training each layer, positive.
      activation: of each layer from the lowest trained one upward, at least 0.
      budget: the largest cost.
    """
    # Costs that are equal but for rounding fit.
    number, limit = len(values), budget * (1 + 1e-12)
    best: tuple[float, float, tuple[int, ...]] = (0.0, 0.0, ())
    for lowest in range(number):
        spent = activation * (number - lowest) + float(costs[lowest])
        if spent > limit:
            continue
        front: Front = [(spent, float(values[lowest]), (lowest,))]
        for layer in range(lowest + 1, number):
            more = [(cost + float(costs[layer]), value + float(values[layer]), (*own, layer)) for cost, value, own in front]
            front = _unbeaten([*front, *(each for each in more if each[0] <= limit)])
        cost, value, own = front[-1]
        if (value, -cost) > (best[1], -best[0]):
            best = (cost, value, own)
    return np.array(best[2], np.int64)


def _unbeaten(sets: Front) -> Front:
    """The sets that no other beats in both cost and value, ascending."""
    kept: Front = []
    for each in sorted(sets, key=lambda one: (one[0], -one[1])):
        if not kept or each[1] > kept[-1][1]:
            kept.append(each)
    return kept
