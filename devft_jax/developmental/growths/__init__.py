"""The package's own growths, one module each, with what they send, keep and read, and the options of all of them.

The modules are imported only when a growth is made.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devft_jax.developmental.options import (
    CapacityOptions,
    ClassOptions,
    DevFTOptions,
    HelloOptions,
    LegendOptions,
    PilotOptions,
    ProgFedOptions,
    TextOptions,
    TierOptions,
)
from devft_jax.developmental.records import OwnGrowth, own

if TYPE_CHECKING:
    from devft_jax.developmental.growth import Growth

__all__ = ["GROWTHS", "OPTIONS", "GrowthOptions", "make_growth"]

_ONE_STAGE = (
    *("stage_end", "plateau_rounds", "plateau_improvement", "gain_every", "gain_cost", "min_stage_rounds"),
    "evaluate_full",
)
_TIERS = ("by_tier", "class_shares", "class_ranks", "holders")
_TOP = ("class_layers", "class_shares", "class_ranks", "holders")
_CLASSES = ("class_layers", "class_shares", "class_ranks", "holders", "layer_draws")

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
            *_TIERS,
        ),
    ),
    "end-to-end": own(
        "devft_jax.developmental.growths.end_to_end",
        reference="the full model throughout, which plain federated methods train",
        message="the full model's adapter",
        state="none",
        ignores=_ONE_STAGE,
        because="has one stage",
    ),
    "fed-hello": own(
        "devft_jax.developmental.growths.fed_hello",
        reference="the full model, of which every client trains drawn layers (Fed-HeLLo, Zhang et al., 2025)",
        message="down the full model's adapter; up that of the layers that the client trained, and their numbers",
        state="none",
        reads=(*_CLASSES, "hello_pattern", "probe_data", "probe_examples"),
        ignores=_ONE_STAGE,
        because="has one stage",
    ),
    "fed-pilot": own(
        "devft_jax.developmental.growths.fed_pilot",
        reference="the full model, of which a client trains the most informative layers that its memory holds (after "
        "Fed-pilot, Zhang et al., 2024)",
        message="down the full model's adapter; up that of the layers that the client trained",
        state="none",
        reads=(*_TOP, "layer_cost", "probe_data", "probe_examples"),
        ignores=_ONE_STAGE,
        because="has one stage",
    ),
    "fedpruner": own(
        "devft_jax.developmental.growths.fedpruner",
        reference="one layer of each group of similar layers for every client and round (after FedPruner, Wu et al., 2025)",
        message="the adapter of the client's layers, and their numbers, both ways",
        state="none",
        reads=(*_CLASSES, "probe_data", "probe_examples"),
        ignores=_ONE_STAGE,
        because="has one stage",
    ),
    "fedquad": own(
        "devft_jax.developmental.growths.fedquad",
        reference="as many top layers as a device holds (after FedQuad, Li et al., 2026, without quantised activations)",
        message="the adapter of the client's top layers, both ways",
        state="none",
        reads=_TOP,
        ignores=_ONE_STAGE,
        because="has one stage",
    ),
    "fedra": own(
        "devft_jax.developmental.growths.fedra",
        reference="random layers for every client and round (FedRA, Su et al., ECCV 2024)",
        message="the adapter of the client's layers, and their numbers, both ways",
        state="none",
        reads=_CLASSES,
        ignores=_ONE_STAGE,
        because="has one stage",
    ),
    "legend": own(
        "devft_jax.developmental.growths.legend",
        reference="top layers whose ranks rise towards the output (after LEGEND, Liu et al., 2025)",
        message="the adapter of the client's top layers, each at its own rank, both ways",
        state="none",
        reads=(*_TOP, "lowest_rank_share"),
        ignores=_ONE_STAGE,
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
            *_TIERS,
        ),
    ),
    "top-grow": own(
        "devft_jax.developmental.growths.top_grow",
        reference="the exact model whose top layers learn, more of them in each stage (ours)",
        message="the adapter of the layers that learn",
        state="none",
        reads=("capacities", "capacity_schedule", "stages", *_TIERS),
    ),
}
"""The package's own growths by name."""

OPTIONS = (
    *(CapacityOptions, TierOptions, TextOptions, DevFTOptions, ProgFedOptions),
    *(ClassOptions, HelloOptions, LegendOptions, PilotOptions),
)
"""The dataclasses that declare options of single growths."""


@dataclass(frozen=True, kw_only=True)
class GrowthOptions(DevFTOptions, ProgFedOptions, HelloOptions, LegendOptions, PilotOptions):
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
