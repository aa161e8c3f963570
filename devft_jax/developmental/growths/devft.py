"""DevFT (Wu et al., Developmental Federated Tuning, 2025): a submodel of fused layers that grows stage by stage.

Stage s groups the L layers by similarity into L_s groups (Eqs. 1-3) and fuses each into one representative layer,

    vartheta_g = theta_anchor + beta * sum_{j in g} (theta_j - theta_anchor)    (Eq. 5),

trains LoRA on these, and transfers what they learned back to the layers of their groups. L_1 < ... < L_S = L.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax

from devft_jax.developmental import fusion as fusions
from devft_jax.developmental import grouping as groupings
from devft_jax.developmental.grouping import laplacian_spectrum
from devft_jax.developmental.growth import GramGrowth, NamedGrowth
from devft_jax.developmental.layer_map import MODES, LayerMap, layer_map
from devft_jax.developmental.options import CapacityOptions, option, planned_capacities
from devft_jax.developmental.schedule import capacity_windows, equal_shares, validate_capacities, widest_gap
from devft_jax.developmental.similarity import LayerGrams, Select, layer_similarity


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevFTOptions(CapacityOptions):
    """DevFT's options."""

    grouping: str = option("dglg", of="growth", choices=groupings.METHODS)
    """How layers are grouped: dglg (Eqs. 1-3), random, even_blocks or even_strides."""
    fusion: str = option("dblf", of="growth", choices=fusions.METHODS)
    """How a group is fused into its representative layer: dblf (Eq. 5), sum, r_one, mean or anchor."""
    beta: float | Literal["auto"] = option(
        0.1,
        of="growth",
        within="[0, 1]",
        remedy="the paper has 0.1, a tenth of each difference",
        when={"fusion": ("dblf",)},
    )
    """Weight of each difference from the anchor in dblf; auto uses min(0.1, 1 / group size)."""
    gauge_alignment: bool = option(False, of="growth")
    """Rotate each layer's low-rank factors to those of its group's first layer before they are fused. This changes no
    layer's product and brings the fusion of factors closer to the fusion of products."""
    transfer: str = option("copy", of="growth", choices=MODES)
    """How learned LoRA is transferred back to a group: copy, anchor_only, delta or anchor_delta."""


@dataclasses.dataclass(frozen=True)
class DevFT(GramGrowth):
    """The paper's growth: stage s has `capacities[s]` representative layers (Eqs. 1-5).

    Attributes:
      capacities: layers of each stage, ascending, at most the depth of the model.
      eigengap: whether the widest gap of the spectrum chooses a stage's capacity, within the window
        of `capacity_windows` around the one given here; the last stage is not changed.
      grouping: method of `group_layers`.
      fusion: method of `fusion_matrix`.
      beta: weight of the differences in DBLF, or "auto".
      select: predicate on leaf paths that restricts what Eq. 1 compares; None compares everything.
    """

    capacities: tuple[int, ...]
    eigengap: bool = dataclasses.field(default=False, kw_only=True)
    grouping: str = "dglg"
    fusion: str = "dblf"
    beta: float | str = 0.1
    select: Select | None = None

    def __post_init__(self) -> None:
        """Refuse options that are wrong for any model, before a model is read."""
        object.__setattr__(self, "capacities", validate_capacities(self.capacities))
        groupings.check_grouping(self.grouping, 1, 1, has_key=True)
        fusions.check_fusion(self.fusion, self.beta, has_key=True)

    def depths(self, num_layers: int) -> tuple[int, ...] | None:
        """The depth of every stage; None if the weights choose it.

        Args:
          num_layers: L, the depth of the model.

        Raises:
          ValueError: one exceeds `num_layers`.
        """
        capacities = validate_capacities(self.capacities, num_layers)
        return None if self.eigengap and len(capacities) > 1 else capacities

    def stage_rounds(self, rounds: int, num_layers: int) -> tuple[int, ...]:
        """Equal shares.

        Args:
          rounds: rounds of the whole run.
          num_layers: L, the depth of the model.
        """
        return equal_shares(rounds, len(self.capacities))

    def from_grams(self, stage: int, grams: LayerGrams, history: Sequence[Any], key: jax.Array) -> LayerMap | None:
        """Group and fuse the layers; the last, full-depth stage reads no weights. See `Growth.from_grams`.

        Args:
          stage: 0, 1, ...
          grams: inner products between the layers.
          history: not read.
          key: random key for groups and fusion that are drawn.
        """
        capacities = validate_capacities(self.capacities, grams.num_layers)
        if stage >= len(capacities):
            return None
        return layer_map(
            grams,
            self._by_gap(stage, grams) if self.eigengap else capacities[stage],
            grouping=self.grouping,
            fusion=self.fusion,
            beta=self.beta,
            select=self.select,
            key=key,
        )

    def _by_gap(self, stage: int, grams: LayerGrams) -> int:
        lowest, highest = capacity_windows(self.capacities)[stage]
        if lowest == highest:
            return lowest
        return widest_gap(laplacian_spectrum(layer_similarity(grams, select=self.select)), lowest, highest)


def _make(options: DevFTOptions, num_layers: int) -> DevFT:
    return DevFT(
        capacities=planned_capacities(options, num_layers),
        eigengap=options.capacities is None and options.capacity_schedule == "eigengap",
        grouping=options.grouping,
        fusion=options.fusion,
        beta=options.beta,
    )


GROWTH = NamedGrowth(
    reference="fused submodels of growing depth (Wu et al., Developmental Federated Tuning, 2025)",
    message="the submodel's adapter; the fused layers once per stage",
    state="none",
    make=_make,
    reads=(
        *("capacities", "capacity_schedule", "stages"),
        *("grouping", "fusion", "beta", "gauge_alignment", "transfer"),
        *("fused_precision", "fuse_from"),
    ),
)
