"""The options of growth: which layers make a stage's submodel, and how what they learned returns."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """How the submodel grows, stage by stage."""

    growth: str = "devft"
    """devft (fused submodels that grow) or end-to-end (the full model throughout)."""
    capacities: tuple[int, ...] | None = None
    """Layers of each stage's submodel, ascending, such as 4,8,16,32; by default doubling from an eighth of the model."""
    stage_rounds: tuple[int, ...] | None = None
    """Rounds of each stage; by default `rounds` in equal shares."""
    grouping: str = "dglg"
    """Which layers form a group: dglg (Eqs. 1-3), random, even_blocks or even_strides."""
    fusion: str = "dblf"
    """How a group becomes its representative layer: dblf (Eq. 5), sum, r_one, mean or anchor."""
    beta: float | Literal["auto"] = 0.1
    """Weight of each difference from the anchor in dblf; auto takes min(0.1, 1 / group size)."""
    transfer: str = "copy"
    """How learned LoRA returns to a group: copy, anchor_only, delta or anchor_delta."""
