"""After LEGEND (Liu et al., IEEE TMC 2025): a client trains its top layers, with ranks that rise towards the output.

    client of a class with k layers     adapters on the layers L - k .. L - 1; below them the base, without adapters
    rank of layer l                     r (s + (1 - s) l / (L - 1)), rounded, at least 1: equal steps from a share s
                                        (`lowest_rank_share`) of the run's rank r to r itself
    server                              the mean of each layer and direction over those who train it

A variant from descriptions of the paper: its full text and code were not at hand. There k follows from estimates of each
device's time for computing and sending, renewed during training; here from the device's memory or from given shares. The
slope of the ranks is an assumption of ours. Whether weak clients run the adapters of the lower layers, which others train,
is not known; here they neither receive nor run them, so a round's messages and memory are those of the top layers alone.
"""

import dataclasses

import numpy as np

from devft_jax.developmental.class_growth import ClassGrowth
from devft_jax.developmental.classes import ClassShape
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import ClassOptions, LegendOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopLayers(ClassGrowth):
    """The top layers of the model, as many as the class has.

    Attributes:
      lowest: rank of the model's lowest layer as a share of the top layer's; ranks between rise in equal steps.
    """

    lowest: float = 1.0

    def class_shape(self, count: int, num_layers: int) -> ClassShape:
        """See `ClassGrowth.class_shape`.

        Args:
          count: number of top layers.
          num_layers: L, the depth of the model.
        """
        shares = self.lowest + (1 - self.lowest) * np.arange(num_layers) / max(num_layers - 1, 1)
        ranks = None if self.lowest == 1 else tuple(shares[num_layers - count :].tolist())
        return ClassShape(count, count, bare=num_layers - count, picks=True, rank_shares=ranks)

    def held(self, count: int, num_layers: int, draws: np.ndarray | None) -> LayerMap:
        """The top layers.

        Args:
          count: number of top layers.
          num_layers: L, the depth of the model.
          draws: not used.
        """
        return LayerMap.identity(num_layers) if count == num_layers else LayerMap.top(num_layers, count)


def made(options: ClassOptions, num_layers: int, lowest: float) -> TopLayers:
    """Top layers with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.
      lowest: rank of the lowest layer as a share of the top layer's.

    Raises:
      ValueError: the options do not fit the model.
    """
    growth = TopLayers(counts=options.class_layers, lowest=lowest)
    growth.counts_in(num_layers)
    return growth


def make(options: LegendOptions, num_layers: int) -> TopLayers:
    """LEGEND with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    return made(options, num_layers, options.lowest_rank_share)
