"""A growth whose weak clients stay at an earlier stage (`by_tier`). Ours.

Class c holds the submodel of stage min(s, c) in stage s: a client whose device holds stage c but not the next one goes on
with the model of stage c, and what it learns is added to that of the stronger clients. Submodels of one depth are no subset
of another's, so the server adds at full depth: the map M_c of class c spreads what its clients return over the layers of
each group, as the growth does at the end of a stage (`devft_jax.federated.holders`). With all clients in the last class, and
fusion coefficients that add up to 1, a round changes the layers as the growth itself does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from devft_jax.developmental.classes import ClassShape
from devft_jax.developmental.growth import Growth
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.similarity import LayerGrams, Select
from devft_jax.developmental.stage_shape import StageShape


@dataclasses.dataclass(frozen=True)
class ByTier(Growth):
    """A growth, with a class of clients for each of its stages.

    Attributes:
      grown: the growth, whose stages are known in advance.
    """

    grown: Growth

    def next(self, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """The growth's own map.

        Args:
          stage: as in `Growth.next`.
          tree: as in `Growth.next`.
          history: as in `Growth.next`.
          key: as in `Growth.next`.
        """
        return self.grown.next(stage, tree, history, key)

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """The growth's own map.

        Args:
          stage: as in `Growth.from_grams`.
          grams: as in `Growth.from_grams`.
          history: as in `Growth.from_grams`.
          key: as in `Growth.from_grams`.
        """
        return self.grown.from_grams(stage, grams, history, key)

    def shapes(self, num_layers: int) -> tuple[StageShape, ...] | None:
        """The shapes of the growth's stages, which are those of the classes.

        Args:
          num_layers: L, the depth of the model.
        """
        return self.grown.shapes(num_layers)

    def stage_rounds(self, rounds: int, num_layers: int) -> tuple[int, ...] | None:
        """The growth's own division of the rounds.

        Args:
          rounds: rounds of the whole run.
          num_layers: L, the depth of the model.
        """
        return self.grown.stage_rounds(rounds, num_layers)

    @property
    def measured(self) -> bool:
        """Whether the growth is measured."""
        return self.grown.measured

    def prepared(self, measure: Callable[..., np.ndarray]) -> "ByTier":
        """The same of the growth with its measurements.

        Args:
          measure: as in `Growth.prepared`.
        """
        return dataclasses.replace(self, grown=self.grown.prepared(measure))

    @property
    def select(self) -> Select | None:
        """The growth's own."""
        return self.grown.select

    @property
    def logged_laplacian(self) -> str:
        """The growth's own."""
        return self.grown.logged_laplacian

    def logged_similarity(self, grams: LayerGrams) -> jax.Array:
        """The growth's own.

        Args:
          grams: as in `Growth.logged_similarity`.
        """
        return self.grown.logged_similarity(grams)

    def classes(self, stage: int, num_layers: int) -> tuple[ClassShape, ...]:
        """A class for every stage of the growth; those of later stages hold the present one's submodel.

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
        """
        shapes = self.grown.shapes(num_layers) or ()
        return tuple(ClassShape.of_stage(shapes[min(stage, index)]) for index in range(len(shapes)))

    def class_map(
        self, index: int, stage: int, num_layers: int, maps: Sequence[LayerMap], draws: np.ndarray | None
    ) -> LayerMap:
        """The map of the class's own stage, or of the present one before that.

        Args:
          index: number of the class.
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
          maps: of all stages so far.
          draws: not used.
        """
        return maps[min(index, stage)]


def by_tier(growth: Growth, wanted: bool, num_layers: int) -> Growth:
    """The growth itself, or with a class of clients for each of its stages.

    Args:
      growth: the growth.
      wanted: the option `by_tier`.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the growth does not know its stages in advance.
    """
    if not wanted:
        return growth
    if growth.shapes(num_layers) is None:
        raise ValueError("by_tier needs the layers of every stage in advance: give capacities.")
    return ByTier(growth)
