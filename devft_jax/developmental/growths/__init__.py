"""The package's own growths, one module each, with what they send, keep and read, and the options of all of them.

The modules are imported only when a growth is made.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devft_jax.developmental.options import CapacityOptions, DevFTOptions, ProgFedOptions, TextOptions
from devft_jax.developmental.records import OwnGrowth, own

if TYPE_CHECKING:
    from devft_jax.developmental.growth import Growth

__all__ = ["GROWTHS", "OPTIONS", "GrowthOptions", "make_growth"]

GROWTHS: dict[str, OwnGrowth] = {
    "devft": own(
        "devft_jax.developmental.growths.devft",
        reference="fused submodels of growing depth (Wu et al., Developmental Federated Tuning, 2025)",
        message="the submodel's adapter; the fused layers once per stage",
        state="none",
        reads=(
            *("capacities", "capacity_schedule", "stages"),
            *("grouping", "similarity", "laplacian", "lone_ends"),
            *("fusion", "beta", "gauge_alignment", "gain_matching", "transfer"),
            *("distil_steps", "distil_rate", "probe_data", "probe_examples"),
            *("fused_precision", "fuse_from"),
        ),
    ),
    "end-to-end": own(
        "devft_jax.developmental.growths.end_to_end",
        reference="the full model throughout, which plain federated methods train",
        message="the full model's adapter",
        state="none",
        ignores=(
            *("stage_end", "plateau_rounds", "plateau_improvement", "gain_every", "gain_cost", "min_stage_rounds"),
            "evaluate_full",
        ),
        because="has one stage",
    ),
    "progfed": own(
        "devft_jax.developmental.growths.progfed",
        reference="prefixes of growing depth under the frozen head (ProgFed, Wang et al., ICML 2022)",
        message="the prefix's adapter; the numbers of its layers once per stage",
        state="none",
        reads=("stages", "progfed_schedule", "warmup_rounds", "fused_precision", "fuse_from"),
    ),
    "skip-grow": own(
        "devft_jax.developmental.growths.skip_grow",
        reference="selected layers of growing number, by block influence on public text (ours)",
        message="the selected layers' adapter; their numbers once per stage",
        state="none",
        reads=(
            *("capacities", "capacity_schedule", "stages"),
            *("probe_data", "probe_examples"),
            *("fused_precision", "fuse_from"),
        ),
    ),
    "top-grow": own(
        "devft_jax.developmental.growths.top_grow",
        reference="the exact model whose top layers learn, more of them in each stage (ours)",
        message="the adapter of the layers that learn",
        state="none",
        reads=("capacities", "capacity_schedule", "stages"),
    ),
}
"""The package's own growths by name."""

OPTIONS = (CapacityOptions, TextOptions, DevFTOptions, ProgFedOptions)
"""The dataclasses that declare options of single growths."""


@dataclass(frozen=True, kw_only=True)
class GrowthOptions(DevFTOptions, ProgFedOptions):
    """All options from which a growth is made."""


def make_growth(options: GrowthOptions, num_layers: int) -> "Growth":
    """The growth that the options name.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    return GROWTHS[options.growth].make(options, num_layers)
