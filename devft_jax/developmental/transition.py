"""A stage change: the growth's choice and, in the same pass over the weights, the values for its log."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from devft_jax.developmental.grouping import laplacian_spectrum
from devft_jax.developmental.growth import Growth
from devft_jax.developmental.maps import LayerMap, check_layer_map, transition_gap
from devft_jax.developmental.similarity import LayerGrams


@dataclasses.dataclass(frozen=True, eq=False)
class Transition:
    """A stage's map with what was measured on the weights from which it was chosen.

    Attributes:
      layer_map: the map.
      similarity: f32[L, L], Eq. 1 over what the growth compares; None if the map keeps the model's own
        layers, for which no weights are read.
      gap: f32[], `transition_gap` over all parameters; 0 in that case.
      laplacian: the Laplacian whose spectrum is logged.
    """

    layer_map: LayerMap
    similarity: jax.Array | None
    gap: jax.Array
    laplacian: str = "paper"

    @property
    def spectrum(self) -> jax.Array | None:
        """Eigenvalues of the Laplacian of `similarity`, ascending: f32[L], or None without it."""
        return None if self.similarity is None else laplacian_spectrum(self.similarity, self.laplacian)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Number of layers that are assigned to every group."""
        groups = jnp.arange(self.layer_map.num_groups, dtype=jnp.int32)[:, None]
        return tuple((self.layer_map.assign == groups).sum(axis=1).tolist())


def next_stage(growth: Growth, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> Transition | None:
    """`growth.next` with the measurements of a stage change, in one pass over the weights.

    Args:
      growth: chooses the map.
      stage: 0, 1, ...
      tree: (base blocks, LoRA) at full depth, every leaf `[L, ...]`.
      history: the records of all rounds so far, oldest first.
      key: random key of the growth.

    Returns:
      The stage's map with the measurements; None if the growth has no further stage.

    Raises:
      ValueError: the growth returns something other than a `LayerMap` for the tree's layers.
    """
    grams = LayerGrams(tree)
    chosen = growth.from_grams(stage, grams, history, key)
    if chosen is None:
        return None
    check_layer_map(chosen, grams.num_layers)
    if chosen.runs_base:
        return Transition(chosen, None, jnp.float32(0))
    return Transition(chosen, growth.logged_similarity(grams), transition_gap(grams.gram(), chosen), growth.logged_laplacian)
