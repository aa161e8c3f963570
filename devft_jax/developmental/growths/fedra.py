"""FedRA (Su et al., ECCV 2024): every client trains a random selection of the layers.

    in every round, client i of a class with m_i layers draws m_i of the L layers, uniformly and without replacement
    its model        these layers, one on the other in their order, frozen, with an adapter
    server           each layer's adapter changes by the weighted mean of those who held it, others keep theirs

The model is evaluated at full depth. The released code takes the plain mean over those who held a layer: use `weighting`
uniform. It also exchanges norms, head and a prompt token, which here stay frozen. Coverage of all layers is not enforced.
With m_i = L for all this is the algorithm on the full model.
"""

import dataclasses

import numpy as np

from devft_jax.developmental.class_growth import ClassGrowth
from devft_jax.developmental.classes import ClassShape, drawn_layers
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import ClassOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedRA(ClassGrowth):
    """Random layers for every client."""

    def class_shape(self, count: int, num_layers: int) -> ClassShape:
        """See `ClassGrowth.class_shape`.

        Args:
          count: layers of the submodel.
          num_layers: L, the depth of the model.
        """
        return ClassShape(count, count, picks=True, drawn=count < num_layers)

    def held(self, count: int, num_layers: int, draws: np.ndarray | None) -> LayerMap:
        """The drawn layers.

        Args:
          count: number of layers.
          num_layers: L, the depth of the model.
          draws: as in `Growth.class_map`.
        """
        if draws is None:
            return LayerMap.identity(num_layers)
        return LayerMap.of_layers(num_layers, drawn_layers(draws, count))

    def chances(self, count: int, num_layers: int) -> np.ndarray:
        """Equal for all layers.

        Args:
          count: number of layers.
          num_layers: L, the depth of the model.
        """
        return np.full(num_layers, count / num_layers)


def make(options: ClassOptions, num_layers: int) -> FedRA:
    """FedRA with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    growth = FedRA(counts=options.class_layers)
    growth.counts_in(num_layers)
    return growth
