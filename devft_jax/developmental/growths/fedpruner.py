"""After FedPruner (Wu et al., arXiv:2508.17209, 2025): every client trains one layer of each group of similar layers.

    once            linear CKA of the layers' outputs on public text; normalised cuts divide the layers into m groups
    every round     client i of a class with m layers draws one layer of each of its m groups; its model is these layers
    server          each layer's adapter changes by the weighted mean of those who held it, others keep theirs

The first group that holds the first layer always gives this layer, because without it a model breaks. A variant from a
description of the paper: its code is not public. There every device measures the similarity of its own data's outputs in
every round, for which it needs the whole model that it cannot hold; here the server measures it once, on public text
(`probe_data`). There a layer is drawn by its contribution; here uniformly within its group.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.class_growth import ClassGrowth
from devft_jax.developmental.classes import ClassShape
from devft_jax.developmental.grouping import group_layers
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import ClassOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class FedPruner(ClassGrowth):
    """One layer of each group for every client.

    Attributes:
      similarity: f[L][L], linear CKA of the layers' outputs; None until `prepared` has measured it.
    """

    similarity: tuple[tuple[float, ...], ...] | None = None

    @property
    def measured(self) -> bool:
        """Whether the layers' similarity is known."""
        return self.similarity is not None

    def prepared(self, measure: Callable[..., np.ndarray]) -> "FedPruner":
        """This growth with the layers' similarity, which is requested once.

        Args:
          measure: ("cka") -> f32[L, L].
        """
        if self.similarity is not None:
            return self
        return dataclasses.replace(self, similarity=tuple(map(tuple, np.asarray(measure("cka"), float).tolist())))

    def class_shape(self, count: int, num_layers: int) -> ClassShape:
        """See `ClassGrowth.class_shape`.

        Args:
          count: number of groups.
          num_layers: L, the depth of the model.
        """
        return ClassShape(count, count, picks=True, drawn=count < num_layers)

    def groups(self, count: int) -> np.ndarray:
        """The group of every layer, i64[L], numbered by their first layers.

        Args:
          count: number of groups.

        Raises:
          ValueError: the similarity has not been measured.
        """
        if self.similarity is None:
            raise ValueError("fedpruner has not measured its layers: call prepared(measure) first.")
        return _groups(self.similarity, count)

    def held(self, count: int, num_layers: int, draws: np.ndarray | None) -> LayerMap:
        """The layer of the smallest draw of each group, and the first layer.

        Args:
          count: number of groups.
          num_layers: L, the depth of the model.
          draws: as in `Growth.class_map`.
        """
        if draws is None:
            return LayerMap.identity(num_layers)
        groups = self.groups(count)
        order = np.where(np.arange(num_layers) == 0, -1.0, draws)
        chosen = [int(min(np.flatnonzero(groups == group), key=lambda layer: order[layer])) for group in range(count)]
        return LayerMap.of_layers(num_layers, sorted(chosen))

    def chances(self, count: int, num_layers: int) -> np.ndarray:
        """One over the size of the layer's group; 1 for the first layer, and 0 for the others of its group.

        Args:
          count: number of groups.
          num_layers: L, the depth of the model.
        """
        if count == num_layers:
            return np.ones(num_layers)
        groups = self.groups(count)
        found = 1 / np.bincount(groups)[groups]
        found[groups == groups[0]] = 0
        found[0] = 1
        return found


@functools.lru_cache(maxsize=16)
def _groups(similarity: tuple[tuple[float, ...], ...], count: int) -> np.ndarray:
    matrix = jnp.asarray(np.array(similarity), jnp.float32)
    return np.asarray(group_layers(matrix, count, method="dglg", laplacian="normalised"), np.int64)


def make(options: ClassOptions, num_layers: int) -> FedPruner:
    """FedPruner with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    growth = FedPruner(counts=options.class_layers)
    growth.counts_in(num_layers)
    return growth
