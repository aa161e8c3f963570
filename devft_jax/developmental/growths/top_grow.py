"""Top-grow: the exact model, in which the top k_s layers learn, k_1 < ... < k_S. Our own.

    rows = the layers L - k_s .. L - 1, each by itself; below them the base is unchanged.

Nothing is approximated: the gradient is that of the full model restricted to its top layers. What is saved are the messages
of the layers below, which have no adapter yet, and the backward pass through them: L + k_s layer passes per token instead of
2 L. The output of these layers for an example is the same in every visit, so it may be stored (`prefix_cache`): with v
visits of each example 2 k_s + (L - k_s) / v passes remain. Layer-wise adapters of only the top layers are known from
AdapterDrop (Rueckle et al. 2021) and LEGEND (Liu et al. 2024); what is new here is to grow them downwards, with the base's
prefix exact and frozen.
"""

import dataclasses

from devft_jax.developmental.growth import FixedGrowth, Growth
from devft_jax.developmental.growths.by_tier import by_tier
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import TierOptions
from devft_jax.developmental.schedule import planned_capacities, validate_capacities


@dataclasses.dataclass(frozen=True)
class TopGrow(FixedGrowth):
    """The full model in which the top layers learn, more of them in each stage.

    Attributes:
      capacities: number of layers that learn in each stage, ascending.
    """

    capacities: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse options that are wrong for any model."""
        object.__setattr__(self, "capacities", validate_capacities(self.capacities))

    def stage_map(self, stage: int, num_layers: int) -> LayerMap | None:
        """The model with an adapter on its top layers.

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
        """
        capacities = validate_capacities(self.capacities, num_layers)
        if stage >= len(capacities):
            return None
        return LayerMap.top(num_layers, capacities[stage])


def make(options: TierOptions, num_layers: int) -> Growth:
    """Top-grow with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    return by_tier(TopGrow(planned_capacities(options, num_layers)), options.by_tier, num_layers)
