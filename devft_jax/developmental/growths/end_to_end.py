"""End-to-end training: one stage of the full model, the identity on the layer axis, as in FedIT and other methods."""

import dataclasses

from devft_jax.developmental.growth import FixedGrowth
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import StageOptions


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


def make(options: StageOptions, num_layers: int) -> EndToEnd:
    """One stage of the full model, whatever the options.

    Args:
      options: not read.
      num_layers: L, the depth of the model.
    """
    return EndToEnd()
