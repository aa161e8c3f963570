"""Growths of a single stage in which every class of clients has its own layers."""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np

from devft_jax.developmental.classes import ClassShape, check_counts, default_counts
from devft_jax.developmental.growth import FixedGrowth
from devft_jax.developmental.maps import LayerMap


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassGrowth(FixedGrowth):
    """One stage of the full model; subclasses choose the layers of a class.

    Attributes:
      counts: layers that a client of each class trains, ascending; None for a quarter, a half and all of the model's.
    """

    counts: tuple[int, ...] | None = None

    @abc.abstractmethod
    def class_shape(self, count: int, num_layers: int) -> ClassShape:
        """The shape of the class that trains so many layers.

        Args:
          count: layers that a client trains.
          num_layers: L, the depth of the model.
        """

    @abc.abstractmethod
    def held(self, count: int, num_layers: int, draws: np.ndarray | None) -> LayerMap:
        """The part of the model that a client of the class holds.

        Args:
          count: layers that it trains.
          num_layers: L, the depth of the model.
          draws: as in `Growth.class_map`.
        """

    def chances(self, count: int, num_layers: int) -> np.ndarray:
        """The probability with which such a client trains each layer, f64[L]; by default 1.

        Args:
          count: layers that it trains.
          num_layers: L, the depth of the model.
        """
        return np.ones(num_layers)

    def counts_in(self, num_layers: int) -> tuple[int, ...]:
        """The layers that a client of each class trains.

        Args:
          num_layers: L, the depth of the model.

        Raises:
          ValueError: they do not fit the model.
        """
        return check_counts(self.counts or default_counts(num_layers), num_layers)

    def stage_map(self, stage: int, num_layers: int) -> LayerMap | None:
        """The identity at stage 0, then None.

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
        """
        return None if stage else LayerMap.identity(num_layers)

    def classes(self, stage: int, num_layers: int) -> tuple[ClassShape, ...]:
        """See `Growth.classes`.

        Args:
          stage: 0.
          num_layers: L, the depth of the model.
        """
        return tuple(self.class_shape(count, num_layers) for count in self.counts_in(num_layers))

    def class_map(
        self, index: int, stage: int, num_layers: int, maps: Sequence[LayerMap], draws: np.ndarray | None
    ) -> LayerMap:
        """See `Growth.class_map`.

        Args:
          index: number of the class.
          stage: 0.
          num_layers: L, the depth of the model.
          maps: not used.
          draws: as in `Growth.class_map`.
        """
        return self.held(self.counts_in(num_layers)[index], num_layers, draws)

    def inclusion(self, index: int, stage: int, num_layers: int) -> np.ndarray:
        """See `Growth.inclusion`.

        Args:
          index: number of the class.
          stage: 0.
          num_layers: L, the depth of the model.
        """
        return self.chances(self.counts_in(num_layers)[index], num_layers)
