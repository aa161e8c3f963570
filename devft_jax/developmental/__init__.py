"""Developmental federated tuning as linear algebra on the layer axis (Eqs. 1-5 of the DevFT paper).

The layers of a model are stacked, every leaf `[L, ...]`. They are compared (`layer_similarity`, Eq. 1), grouped
(`group_layers`, Eqs. 2-3) and fused into G representative layers (`fusion_matrix` and `fuse`, Eqs. 4-5). `layer_map` does
these three steps; `inherit` transfers what the submodel learned back to the layers.

    stage = layer_map((blocks, lora), 4)          # LayerMap(fuse f32[4, L], assign i32[L], train bool[4])
    small_blocks, small_lora = fuse(stage, (blocks, lora))
    lora = inherit(stage, trained_lora, lora)

Needs jax and numpy only.
"""

from typing import TYPE_CHECKING

from devft_jax.lazy import lazy_names

if TYPE_CHECKING:
    from devft_jax.developmental.alignment import align_factors
    from devft_jax.developmental.class_growth import ClassGrowth
    from devft_jax.developmental.classes import ClassShape
    from devft_jax.developmental.fusion import anchors, fusion_matrix, norm_gains
    from devft_jax.developmental.grouping import (
        contiguous_groups,
        group_layers,
        kmeans,
        laplacian,
        laplacian_spectrum,
        normalised_laplacian,
        spectral_embedding,
    )
    from devft_jax.developmental.growth import FixedGrowth, GramGrowth, Growth
    from devft_jax.developmental.growths import GROWTHS, make_growth
    from devft_jax.developmental.growths.devft import DevFT
    from devft_jax.developmental.growths.end_to_end import EndToEnd
    from devft_jax.developmental.growths.progfed import ProgFed
    from devft_jax.developmental.growths.skip_grow import SkipGrow
    from devft_jax.developmental.growths.top_grow import TopGrow
    from devft_jax.developmental.maps import LayerMap, fuse, inherit, layer_map, transition_gap
    from devft_jax.developmental.measures import influence_similarity, linear_cka, token_cosines, weight_similarity
    from devft_jax.developmental.records import NamedGrowth
    from devft_jax.developmental.rotation import nearest_orthogonal, nearest_rotation
    from devft_jax.developmental.schedule import geometric_schedule, validate_capacities
    from devft_jax.developmental.similarity import LayerGrams, layer_gram, layer_similarity, similarity_from_gram
    from devft_jax.developmental.stage_shape import StageShape
    from devft_jax.developmental.transition import Transition, next_stage

__all__ = [
    "GROWTHS",
    "ClassGrowth",
    "ClassShape",
    "DevFT",
    "EndToEnd",
    "FixedGrowth",
    "GramGrowth",
    "Growth",
    "LayerGrams",
    "LayerMap",
    "NamedGrowth",
    "ProgFed",
    "SkipGrow",
    "StageShape",
    "TopGrow",
    "Transition",
    "align_factors",
    "anchors",
    "contiguous_groups",
    "fuse",
    "fusion_matrix",
    "geometric_schedule",
    "group_layers",
    "influence_similarity",
    "inherit",
    "kmeans",
    "laplacian",
    "laplacian_spectrum",
    "layer_gram",
    "layer_map",
    "layer_similarity",
    "linear_cka",
    "make_growth",
    "nearest_orthogonal",
    "nearest_rotation",
    "next_stage",
    "norm_gains",
    "normalised_laplacian",
    "similarity_from_gram",
    "spectral_embedding",
    "token_cosines",
    "transition_gap",
    "validate_capacities",
    "weight_similarity",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    __all__,
    {
        "alignment": ("align_factors",),
        "class_growth": ("ClassGrowth",),
        "classes": ("ClassShape",),
        "fusion": ("anchors", "fusion_matrix", "norm_gains"),
        "grouping": (
            "contiguous_groups",
            "group_layers",
            "kmeans",
            "laplacian",
            "laplacian_spectrum",
            "normalised_laplacian",
            "spectral_embedding",
        ),
        "growth": ("FixedGrowth", "GramGrowth", "Growth"),
        "growths": ("GROWTHS", "make_growth"),
        "growths.devft": ("DevFT",),
        "growths.end_to_end": ("EndToEnd",),
        "growths.progfed": ("ProgFed",),
        "growths.skip_grow": ("SkipGrow",),
        "growths.top_grow": ("TopGrow",),
        "maps": ("LayerMap", "fuse", "inherit", "layer_map", "transition_gap"),
        "measures": ("influence_similarity", "linear_cka", "token_cosines", "weight_similarity"),
        "records": ("NamedGrowth",),
        "rotation": ("nearest_orthogonal", "nearest_rotation"),
        "schedule": ("geometric_schedule", "validate_capacities"),
        "similarity": ("LayerGrams", "layer_gram", "layer_similarity", "similarity_from_gram"),
        "stage_shape": ("StageShape",),
        "transition": ("Transition", "next_stage"),
    },
)
