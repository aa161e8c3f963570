"""Variants of DevFT's growth that the package has no option for: other anchors, and other weights compared in Eq. 1.

They are named as growths of a user's own, such as `--growth experiments.growths:last_anchor`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import DevFT, LayerGrams, LayerMap
from devft_jax.developmental.growths import GrowthOptions


@dataclass(frozen=True)
class Anchored(DevFT):
    """DevFT whose Eq. 5 has another anchor than the first layer of the group.

    Attributes:
      place: "middle" or "last" layer of the group.
    """

    place: str = "last"

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """DevFT's groups, fused around the other anchor. See `Growth.from_grams`.

        Args:
          stage: 0, 1, ...
          grams: inner products between the layers.
          history: not read.
          key: random key of the stage.
        """
        found = super().from_grams(stage, grams, history, key)
        if found is None or found.is_identity:
            return found
        rows = fused_around(np.asarray(found.assign), self.place, float(self.beta))
        return dataclasses.replace(found, fuse=jnp.asarray(rows))


def fused_around(assign: np.ndarray, place: str, beta: float) -> np.ndarray:
    """Eq. 5 with another anchor: f32[G, L].

    Args:
      assign: i32[L], the group of every layer.
      place: "middle" or "last" layer of the group.
      beta: weight of the differences.
    """
    rows = np.zeros((assign.max() + 1, len(assign)), np.float32)
    for group, row in enumerate(rows):
        members = np.flatnonzero(assign == group)
        anchor = members[-1] if place == "last" else members[len(members) // 2]
        row[members] = beta
        row[anchor] = 1 - beta * (len(members) - 1)
    return rows


def last_anchor(options: GrowthOptions, num_layers: int) -> DevFT:
    """Eq. 5 around the last layer of every group.

    Args:
      options: gives capacities and beta.
      num_layers: L.
    """
    return Anchored(_capacities(options, num_layers), beta=options.beta, place="last")


def middle_anchor(options: GrowthOptions, num_layers: int) -> DevFT:
    """Eq. 5 around the middle layer of every group.

    Args:
      options: gives capacities and beta.
      num_layers: L.
    """
    return Anchored(_capacities(options, num_layers), beta=options.beta, place="middle")


def _comparing(selected: Callable[[str], bool]) -> Callable[[GrowthOptions, int], DevFT]:
    """A growth whose Eq. 1 compares only the selected weights."""

    def make(options: GrowthOptions, num_layers: int) -> DevFT:
        return DevFT(_capacities(options, num_layers), beta=options.beta, select=selected)

    return make


def _capacities(options: GrowthOptions, num_layers: int) -> tuple[int, ...]:
    return (num_layers,) if options.capacities is None else options.capacities


without_norms = _comparing(lambda path: "norm" not in path)
"""Eq. 1 without the norms' weights."""
norms_alone = _comparing(lambda path: "norm" in path)
"""Eq. 1 on the norms' weights alone."""
attention_alone = _comparing(lambda path: re.search(r"\.[qkvo]$", path) is not None)
"""Eq. 1 on the frozen projections of the attention alone."""
feed_forward_alone = _comparing(lambda path: re.search(r"\.(gate|up|down)$", path) is not None)
"""Eq. 1 on the projections of the feed-forward network alone."""
