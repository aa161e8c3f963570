"""Fed-HeLLo (Zhang et al., IEEE TNNLS 2025): all run the full model, and every client trains some of its layers.

    in every round, client i of a class with m_i layers draws m_i of the L layers without replacement, with probabilities p_l
    its model        the full model with all adapters; those of the other layers are frozen
    server           each layer's adapter changes by the weighted mean of those who trained it, others keep theirs

`hello_pattern` gives p_l, always proportional to 3, 2 and 1:

    bottleneck    3 near both ends, 1 in the middle. For 12 layers those of the released code: 3 for layers 0-2 and 9-11, 2
                  for 3, 4 and 8, 1 for 5-7; in other depths the same fractions of the model
    triangle      3, 2, 1 in the lower, middle and upper third
    inverted      1, 2, 3 in the lower, middle and upper third
    uniform       equal, as in FedRA
    fisher        3 for the layers of the largest Fisher information, 1 for those of the smallest, in three clusters

The names and the bottleneck are the authors'; which end of a triangle is wide is our reading. The released code computes its
Fisher form in 1 of 50 rounds and takes the labels of k-means for an order; here it is computed once, on public text
(`probe_data`), as the trace of the empirical Fisher matrix of a layer's adapted weights,

    F_l = mean over examples of sum over projections of ||d loss / d W_l||^2,

and split into three intervals of least variance of log F, which are ordered by it.

The lowest layer that trains sets what a step costs, and a random set often reaches far down, so devices save messages and
little else: memory and operations are counted as if the backward pass went to the lowest layer.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.class_growth import ClassGrowth
from devft_jax.developmental.classes import ClassShape, drawn_layers, inclusion_probabilities
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import HelloOptions

BANDS = {
    "bottleneck": ((1 / 4, 3), (5 / 12, 2), (2 / 3, 1), (3 / 4, 2), (1.0, 3)),
    "triangle": ((1 / 3, 3), (2 / 3, 2), (1.0, 1)),
    "inverted": ((1 / 3, 1), (2 / 3, 2), (1.0, 3)),
    "uniform": ((1.0, 1),),
}
"""Patterns as (upper end of a band as a share of the depth, weight)."""
CLUSTERS = 3


def pattern(name: str, num_layers: int) -> np.ndarray:
    """The probabilities of a fixed pattern, f64[L].

    Args:
      name: a key of `BANDS`.
      num_layers: L.
    """
    ends, weights = zip(*BANDS[name], strict=True)
    middle = (np.arange(num_layers) + 0.5) / num_layers
    found = np.array(weights, float)[np.searchsorted(ends, middle)]
    return found / found.sum()


def clusters(values: np.ndarray, count: int = CLUSTERS) -> np.ndarray:
    """Intervals of least variance: the cluster of every value, i64[L], numbered from the smallest values.

    Args:
      values: f64[L].
      count: most clusters; fewer if there are fewer values.
    """
    order = np.argsort(values, kind="stable")
    ranked, number = np.asarray(values, float)[order], len(values)
    count = min(count, number)

    def spread(first: int, last: int) -> float:
        part = ranked[first:last]
        return float(((part - part.mean()) ** 2).sum())

    # best[k][n]: the least spread of the n smallest values in k clusters, and where the last of these begins.
    best = [{0: (0.0, 0)}]
    for k in range(1, count + 1):
        best.append(
            {
                end: min((best[k - 1][first][0] + spread(first, end), first) for first in best[k - 1] if first < end)
                for end in range(k, number + 1)
            }
        )
    labels, end = np.zeros(number, np.int64), number
    for k in range(count, 0, -1):
        first = best[k][end][1]
        labels[order[first:end]] = k - 1
        end = first
    return labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedHeLLo(ClassGrowth):
    """The full model, of which every client trains drawn layers.

    Attributes:
      form: a key of `BANDS`, or fisher.
      fisher: f[L], the layers' Fisher information; None until `prepared` has measured it.
    """

    form: str = "bottleneck"
    fisher: tuple[float, ...] | None = None

    @property
    def measured(self) -> bool:
        """Whether the probabilities are known."""
        return self.form != "fisher" or self.fisher is not None

    def prepared(self, measure: Callable[..., np.ndarray]) -> "FedHeLLo":
        """This growth with the layers' Fisher information, which is requested once.

        Args:
          measure: ("fisher") -> f32[L].
        """
        if self.measured:
            return self
        return dataclasses.replace(self, fisher=tuple(map(float, measure("fisher"))))

    def probabilities(self, num_layers: int) -> np.ndarray:
        """p f64[L], which add up to 1.

        Args:
          num_layers: L, the depth of the model.

        Raises:
          ValueError: the Fisher information has not been measured, or is not finite.
        """
        if self.form != "fisher":
            return pattern(self.form, num_layers)
        if self.fisher is None or not np.isfinite(self.fisher).all():
            raise ValueError("fed-hello has no finite Fisher information of its layers: call prepared(measure) first.")
        weights = 1.0 + clusters(np.log(np.maximum(self.fisher, 1e-300)))
        return weights / weights.sum()

    def class_shape(self, count: int, num_layers: int) -> ClassShape:
        """See `ClassGrowth.class_shape`.

        Args:
          count: layers that train.
          num_layers: L, the depth of the model.
        """
        return ClassShape(num_layers, count, picks=True, drawn=count < num_layers)

    def held(self, count: int, num_layers: int, draws: np.ndarray | None) -> LayerMap:
        """The full model in which the drawn layers train.

        Args:
          count: layers that train.
          num_layers: L, the depth of the model.
          draws: as in `Growth.class_map`.
        """
        whole = LayerMap.identity(num_layers)
        if draws is None:
            return whole
        train = np.zeros(num_layers, bool)
        train[drawn_layers(draws, count, self.probabilities(num_layers))] = True
        return dataclasses.replace(whole, train=jnp.asarray(train))

    def chances(self, count: int, num_layers: int) -> np.ndarray:
        """The probability that a draw includes each layer.

        Args:
          count: layers that train.
          num_layers: L, the depth of the model.
        """
        return inclusion_probabilities(self.probabilities(num_layers), count)


def make(options: HelloOptions, num_layers: int) -> FedHeLLo:
    """Fed-HeLLo with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    growth = FedHeLLo(counts=options.class_layers, form=options.hello_pattern)
    growth.counts_in(num_layers)
    return growth
