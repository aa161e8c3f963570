"""End-to-end training: one stage of the full model, the identity on the layer axis. What FedIT and the others do."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from devft_jax.developmental.growth import NamedGrowth
from devft_jax.developmental.layer_map import LayerMap
from devft_jax.developmental.similarity import LayerGrams


@dataclasses.dataclass(frozen=True)
class EndToEnd:
    """One stage of the full model: what FedIT and the other rivals do."""

    def depths(self, num_layers: int) -> tuple[int, ...]:
        """One stage of all layers."""
        return (num_layers,)

    def next(self, stage: int, tree: Any, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """The identity at stage 0, then None; see `Growth.next`."""
        return self.from_grams(stage, LayerGrams(tree), history, key)

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """See `GramGrowth.from_grams`; reads no weights."""
        return None if stage else LayerMap.identity(grams.num_layers)


GROWTH = NamedGrowth(
    reference="the full model throughout, which plain federated methods train",
    message="the full model's adapter",
    state="none",
    make=lambda options, num_layers: EndToEnd(),
)
