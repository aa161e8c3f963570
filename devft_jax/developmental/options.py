"""The options of growth: which layers make a stage's submodel, and how what they learned returns."""

from dataclasses import dataclass
from typing import Literal

from devft_jax.developmental.schedule import geometric_schedule, halving_schedule, linear_schedule, validate_capacities

CAPACITY_SCHEDULES = ("geometric", "linear", "eigengap")
PROGFED_SCHEDULES = ("halving", "equal")
STAGE_ENDS = ("fixed", "plateau")
# Stages where neither they nor capacities are given and the schedule does not tell.
DEFAULT_STAGES = 4


@dataclass(frozen=True, kw_only=True)
class GrowthOptions:
    """How the submodel grows, stage by stage."""

    growth: str = "devft"
    """Which submodel trains when, see `devft list`."""
    capacities: tuple[int, ...] | None = None
    """Layers of each stage, ascending, such as 4,8,16,32; by default those of `capacity_schedule`. progfed has blocks of
    equal size instead (`stages`), and end-to-end one stage."""
    capacity_schedule: str = "geometric"
    """Layers of each stage where `capacities` does not name them: geometric (doubling; from an eighth of the model, or
    back from the full depth in `stages` steps), linear (equal steps), or eigengap (devft only: near the geometric ones,
    where the layers' similarity has its widest spectral gap)."""
    stages: int | None = None
    """Number of stages of a schedule; by default 4, or as many as doubling from an eighth of the model takes."""
    stage_rounds: tuple[int, ...] | None = None
    """Rounds of each stage; by default `rounds` in the growth's own shares, for most equal ones."""
    stage_end: str = "fixed"
    """When a stage ends: fixed (after its rounds) or plateau (as soon as its mean training loss has flattened; what it
    leaves of its rounds goes to the last stage, so that the run stays as long)."""
    plateau_rounds: int = 5
    """Rounds over which a plateau is seen: the mean loss of the last so many is compared with that of as many before."""
    plateau_improvement: float = 0.01
    """Relative fall of that mean loss below which it counts as flat."""
    min_stage_rounds: int = 1
    """Rounds that a stage lasts even on a plateau; those that it was given are the most it may last."""
    progfed_schedule: str = "halving"
    """Rounds of progfed's stages: halving (a half of an equal share for every stage but the last) or equal."""
    warmup_rounds: int = 0
    """Rounds after each growth of progfed in which only the newest block learns; they are rounds of the run."""
    probe_data: str | None = None
    """skip-grow: public text that the layers are measured on, named like `data`; by default generated tasks, none of
    which is a built-in test record."""
    probe_examples: int = 32
    """skip-grow: examples of it."""
    grouping: str = "dglg"
    """Which layers form a group: dglg (Eqs. 1-3), random, even_blocks or even_strides."""
    fusion: str = "dblf"
    """How a group becomes its representative layer: dblf (Eq. 5), sum, r_one, mean or anchor."""
    beta: float | Literal["auto"] = 0.1
    """Weight of each difference from the anchor in dblf; auto takes min(0.1, 1 / group size)."""
    gauge_alignment: bool = False
    """Rotate each layer's low-rank factors to those of its group's first layer before they are fused, which changes no
    layer's product and brings fusing factors closer to fusing products."""
    transfer: str = "copy"
    """How learned LoRA returns to a group: copy, anchor_only, delta or anchor_delta."""


def planned_capacities(options: GrowthOptions, num_layers: int) -> tuple[int, ...]:
    """The capacities that the options name for a model of this depth, of eigengap those that its windows surround.

    Raises ValueError when they do not fit the model.
    """
    if options.capacities is not None:
        return validate_capacities(options.capacities, num_layers)
    if options.capacity_schedule == "linear":
        return linear_schedule(num_layers, min(DEFAULT_STAGES, num_layers) if options.stages is None else options.stages)
    if options.stages is None:
        return geometric_schedule(num_layers, max(1, num_layers // 8), 2)
    return halving_schedule(num_layers, options.stages)
