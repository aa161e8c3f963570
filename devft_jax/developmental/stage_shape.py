"""What is known of a stage before any weight is read: enough to plan it and to compile its programs."""

import dataclasses
from typing import Self

import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.maps import LayerMap, frozen_below


@dataclasses.dataclass(frozen=True)
class StageShape:
    """The size of a stage's submodel and what of it learns, known before weights are read.

    Attributes:
      layers: G, the rows of the submodel, which have an adapter.
      trained: number of rows that learn.
      frozen: number of rows below the lowest row that learns, which need no backward pass.
      bare: number of layers that run below the rows without an adapter.
      picks: whether every row is one layer of the model, unchanged, so that no fused layer has to be sent.
    """

    layers: int
    trained: int
    frozen: int = 0
    bare: int = 0
    picks: bool = False

    @property
    def depth(self) -> int:
        """The layers that the submodel runs."""
        return self.layers + self.bare

    @classmethod
    def of(cls, layer_map: LayerMap) -> Self:
        """The shape of a concrete map.

        Args:
          layer_map: a stage's map, not traced.
        """
        train = np.asarray(layer_map.train)
        picks = layer_map.selected() is not None
        return cls(layer_map.num_groups, int(train.sum()), frozen_below(train), layer_map.bare, picks)

    def some_map(self, num_layers: int) -> LayerMap:
        """One of the maps of this shape; programs are the same for all of them.

        Args:
          num_layers: L, the depth of the model.
        """
        if self.bare:
            some = LayerMap.top(num_layers, self.layers)
        elif self.picks and self.layers == num_layers:
            some = LayerMap.identity(num_layers)
        else:
            assign = np.arange(num_layers, dtype=np.int32) * self.layers // num_layers
            member = assign == np.arange(self.layers)[:, None]
            chosen = member & (np.cumsum(member, axis=1) == 1) if self.picks else member
            some = LayerMap(jnp.asarray(chosen / chosen.sum(axis=1, keepdims=True), jnp.float32), jnp.asarray(assign))
        return dataclasses.replace(some, train=jnp.arange(self.layers, dtype=jnp.int32) >= self.frozen)
