"""Classes of clients: few kinds of device, each of which holds its own part of the model.

A class says how many layers a client holds, how many of them train and at which rank. Its shape is the same in every round,
so that one compiled program serves it; which layers they are may be drawn anew for every client and round.

Draws are made from uniform numbers u f64[L] that the caller gives: the `count` layers with the smallest -log(u_l) / p_l are
those of sequential sampling without replacement with probabilities proportional to p (Efraimidis and Spirakis, 2006).
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np

from devft_jax.developmental.stage_shape import StageShape

POINTS = 400
"""Points of the quadrature in `inclusion_probabilities`."""


@dataclasses.dataclass(frozen=True)
class ClassShape(StageShape):
    """What a client of a class holds.

    Attributes:
      rank_shares: rank of every row as a share of the run's rank, in (0, 1]; None if all rows have the run's rank.
      drawn: whether the rows, or those that train, are drawn anew, so that their numbers are part of the messages.
    """

    rank_shares: tuple[float, ...] | None = None
    drawn: bool = False

    @classmethod
    def of_stage(cls, shape: StageShape) -> Self:
        """The class of clients that hold the submodel of a stage.

        Args:
          shape: the stage's shape.
        """
        return cls(**vars(shape))

    def ranks(self, rank: int) -> tuple[int, ...] | None:
        """The rank of every row, at least 1; None if all have the run's rank.

        Args:
          rank: the run's rank.
        """
        if self.rank_shares is None:
            return None
        ranks = tuple(min(rank, max(1, round(share * rank))) for share in self.rank_shares)
        return None if set(ranks) == {rank} else ranks


def default_counts(num_layers: int) -> tuple[int, ...]:
    """A quarter, a half and all of the layers, rounded up, each once.

    Args:
      num_layers: L.
    """
    return tuple(sorted({-(-num_layers // 4), -(-num_layers // 2), num_layers}))


def drawn_layers(draws: np.ndarray, count: int, probabilities: np.ndarray | None = None) -> np.ndarray:
    """Layers drawn without replacement, i64[count], ascending.

    Args:
      draws: u f64[L], uniform in (0, 1).
      count: number of layers, at most those of positive probability.
      probabilities: p f64[L], to which the chances of the layers left are proportional in every draw; None for equal ones.
    """
    weights = np.ones(len(draws)) if probabilities is None else np.asarray(probabilities, float)
    with np.errstate(divide="ignore"):
        times = np.where(weights > 0, -np.log(draws) / np.where(weights > 0, weights, 1.0), np.inf)
    return np.sort(np.argsort(times, kind="stable")[:count])


def inclusion_probabilities(probabilities: np.ndarray, count: int) -> np.ndarray:
    """The probability that `drawn_layers` includes each layer, f64[L]; they add up to `count`.

    With T_l exponential of rate p_l, layer l is included if fewer than `count` of the other times are smaller:

        pi_l = integral of p_l exp(-p_l t) P(fewer than `count` of the others are below t) dt

    over y = exp(-p_l t) in (0, 1) by the Gauss-Legendre rule; the probability inside is that of a Poisson binomial, in which
    another layer is below t with probability 1 - y^(p_j / p_l).

    Args:
      probabilities: p f64[L], positive.
      count: number of layers drawn.
    """
    weights = np.asarray(probabilities, float) / np.sum(probabilities)
    if count >= len(weights):
        return np.ones(len(weights))
    if np.allclose(weights, weights[0]):
        return np.full(len(weights), count / len(weights))
    nodes, coefficients = np.polynomial.legendre.leggauss(POINTS)
    y, coefficients = (nodes + 1) / 2, coefficients / 2
    found = np.empty(len(weights))
    for layer, weight in enumerate(weights):
        # number[n]: the probability that n of the others are below t.
        number = np.zeros((count, len(y)))
        number[0] = 1.0
        for other in np.delete(weights, layer):
            below = 1 - y ** (other / weight)
            number[1:] = number[1:] * (1 - below) + number[:-1] * below
            number[0] *= 1 - below
        found[layer] = coefficients @ number.sum(axis=0)
    return found * (count / found.sum())


def check_counts(counts: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The layers of every class, after checking that they ascend within the depth of the model.

    Args:
      counts: layers of every class.
      num_layers: L.

    Raises:
      ValueError: they do not ascend, or exceed L.
    """
    shown = ",".join(map(str, counts))
    if any(after <= before for before, after in pairwise(counts)):
        raise ValueError(f"class_layers {shown} does not ascend: give the weakest class first, such as 4,8,16.")
    if counts[-1] > num_layers:
        raise ValueError(f"class_layers {shown} ends beyond the model's {num_layers} layers: end at {num_layers} or below.")
    return tuple(counts)
