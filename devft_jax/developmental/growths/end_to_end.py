"""End-to-end training: one stage of the full model, the identity on the layer axis, as in FedIT and other methods."""

import dataclasses

from devft_jax.developmental.growth import FixedGrowth, NamedGrowth
from devft_jax.developmental.layer_map import LayerMap


@dataclasses.dataclass(frozen=True)
class EndToEnd(FixedGrowth):
    """One stage of the full model."""

    def stage_map(self, stage: int, num_layers: int) -> LayerMap | None:
        """The identity at stage 0, then None.

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
        """
        return None if stage else LayerMap.identity(num_layers)


GROWTH = NamedGrowth(
    reference="the full model throughout, which plain federated methods train",
    message="the full model's adapter",
    state="none",
    make=lambda options, num_layers: EndToEnd(),
    ignores=("stage_end", "plateau_rounds", "plateau_improvement", "min_stage_rounds", "evaluate_full"),
    because="has one stage",
)
