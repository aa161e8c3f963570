"""Skip-grow: stages of selected, nested layers in place of DevFT's fused ones. Our own.

    rows = one layer each, S_1 within S_2 within ... within S_S, |S_s| = k_s,  assign = -1 for the layers left out.

The first and the last layer are always included; the others are added in the order of their block influence, how much a
layer changes its input,

    BI_l = 1 - mean over tokens of cos(h_l, h_{l+1})    (ShortGPT, Men et al. 2024),

largest first, measured once on the untuned base by a forward pass over public text. Layers are used unchanged, so a packed
base stays bit-exact and nothing dense has to be sent, and learned LoRA returns only to the layers that learned it: a
stage change does not change the full model.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from devft_jax.developmental.growth import FixedGrowth, Growth
from devft_jax.developmental.growths.by_tier import by_tier
from devft_jax.developmental.maps import LayerMap
from devft_jax.developmental.options import TextOptions
from devft_jax.developmental.schedule import planned_capacities, validate_capacities
from devft_jax.developmental.stage_shape import StageShape


@dataclasses.dataclass(frozen=True)
class SkipGrow(FixedGrowth):
    """Stage s has the `capacities[s]` layers of largest influence, always including the first and the last.

    Attributes:
      capacities: layers of each stage, ascending.
      influence: of every layer, f[L]; None until `prepared` has measured it.
    """

    capacities: tuple[int, ...]
    influence: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse options that are wrong for any model."""
        object.__setattr__(self, "capacities", validate_capacities(self.capacities))

    @property
    def measured(self) -> bool:
        """Whether the layers' influence is known."""
        return self.influence is not None

    def prepared(self, measure: Callable[..., np.ndarray]) -> "SkipGrow":
        """This growth with the layers' influence, which is requested once.

        Args:
          measure: () -> f32[L].
        """
        if self.influence is not None:
            return self
        return dataclasses.replace(self, influence=tuple(map(float, measure())))

    def shapes(self, num_layers: int) -> tuple[StageShape, ...]:
        """The shape of every stage, which does not depend on the influence.

        Args:
          num_layers: L, the depth of the model.
        """
        return tuple(StageShape(each, each, picks=True) for each in validate_capacities(self.capacities, num_layers))

    def most_influential(self, count: int) -> list[int]:
        """The layers of a stage, ascending: the first, the last, and those of largest influence.

        Args:
          count: number of layers.

        Raises:
          ValueError: the influence has not been measured, or is not finite.
        """
        if self.influence is None:
            raise ValueError("skip-grow has not measured its layers: give their influence, or call prepared(measure) first.")
        if not np.isfinite(self.influence).all():
            raise ValueError("skip-grow measured an influence that is not finite: look for non-finite weights in the model.")
        last = len(self.influence) - 1
        # A stable sort, so that of equal layers the lower one is taken.
        others = sorted(range(1, last), key=lambda layer: -self.influence[layer])  # type: ignore[index]
        return sorted([0, last, *others][:count]) if last else [0]

    def stage_map(self, stage: int, num_layers: int) -> LayerMap | None:
        """The selection of a stage; None after the last stage.

        Args:
          stage: 0, 1, ...
          num_layers: L, the depth of the model.
        """
        capacities = validate_capacities(self.capacities, num_layers)
        if stage >= len(capacities):
            return None
        if capacities[stage] == num_layers:
            return LayerMap.identity(num_layers)
        return LayerMap.of_layers(num_layers, self.most_influential(capacities[stage]))


def make(options: TextOptions, num_layers: int) -> Growth:
    """Skip-grow with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    return by_tier(SkipGrow(planned_capacities(options, num_layers)), options.by_tier, num_layers)
