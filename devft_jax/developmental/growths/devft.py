"""DevFT (Wu et al., Developmental Federated Tuning, 2025): a submodel of fused layers that grows stage by stage.

Stage s groups the L layers by similarity into L_s groups (Eqs. 1-3) and fuses each into one representative layer,

    vartheta_g = theta_anchor + beta * sum_{j in g} (theta_j - theta_anchor)    (Eq. 5),

trains LoRA on these, and transfers what they learned back to the layers of their groups. L_1 < ... < L_S = L.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import fusion as fusions
from devft_jax.developmental import grouping as groupings
from devft_jax.developmental.grouping import SIMILARITY_METHODS, laplacian_spectrum
from devft_jax.developmental.growth import GramGrowth, NamedGrowth
from devft_jax.developmental.layer_map import MODES, LayerMap, layer_map
from devft_jax.developmental.measures import OF_TEXT, OF_WEIGHTS, SIMILARITIES, influence_similarity, weight_similarity
from devft_jax.developmental.options import TextOptions, option, planned_capacities
from devft_jax.developmental.schedule import capacity_windows, equal_shares, validate_capacities, widest_gap
from devft_jax.developmental.similarity import LayerGrams, Select


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevFTOptions(TextOptions):
    """DevFT's options."""

    grouping: str = option("dglg", of="growth", choices=groupings.METHODS)
    """How layers are grouped: dglg (Eqs. 1-3), random, even_blocks, even_strides, or contiguous (runs of neighbouring layers
    that are as similar as possible)."""
    similarity: str = option("weights", of="growth", choices=SIMILARITIES, when={"grouping": groupings.SIMILARITY_METHODS})
    """What is compared: all weights (weights, the paper's Eq. 1), without_norms, norms, the mean over all projections
    (projections) or one of them; or, on public text (`probe_data`), the layers' outputs (hidden: cosine, cka: linear CKA) or
    the influence of the layers between two (influence)."""
    laplacian: str = option("paper", of="growth", choices=groupings.LAPLACIANS, when={"grouping": ("dglg",)})
    """Laplacian and embedding of dglg: paper (Eq. 3), normalised (normalised cuts), or row_normalised (also with rows of the
    embedding scaled to length 1)."""
    lone_ends: bool = option(False, of="growth")
    """Keep the first and the last layer in groups of their own."""
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
    gain_matching: bool = option(False, of="growth", when={"fusion": ("dblf", "sum", "mean")})
    """Scale every fused projection to the mean norm of its group's; fusing nearly orthogonal layers shrinks them."""
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
      similarity: what is compared, a member of `SIMILARITIES`.
      laplacian: the Laplacian of `group_layers`.
      lone_ends: whether the first and the last layer are groups of their own.
      on_text: f[L, L], the similarity if it is one of `OF_TEXT`; None until `prepared` has measured it.
    """

    capacities: tuple[int, ...]
    eigengap: bool = dataclasses.field(default=False, kw_only=True)
    grouping: str = "dglg"
    fusion: str = "dblf"
    beta: float | str = 0.1
    select: Select | None = None
    similarity: str = "weights"
    laplacian: str = "paper"
    lone_ends: bool = False
    on_text: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Refuse options that are wrong for any model, before a model is read."""
        object.__setattr__(self, "capacities", validate_capacities(self.capacities))
        groupings.check_grouping(self.grouping, 1, 1, has_key=True, laplacian=self.laplacian)
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"similarity {self.similarity!r} is unknown: choose from {', '.join(SIMILARITIES)}.")
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

    @property
    def measured(self) -> bool:
        """Whether the similarity on text is known, or none is needed."""
        return self.similarity not in OF_TEXT or self.grouping not in SIMILARITY_METHODS or self.on_text is not None

    def prepared(self, measure: Callable[..., np.ndarray]) -> "DevFT":
        """This growth with the layers' similarity on public text, which is requested once.

        Args:
          measure: as in `Growth.prepared`.
        """
        if self.measured:
            return self
        if self.similarity == "influence":
            found = influence_similarity(jnp.asarray(measure(), jnp.float32))
        else:
            found = jnp.asarray(measure(self.similarity))
        return dataclasses.replace(self, on_text=tuple(map(tuple, np.asarray(found, float).tolist())))

    @property
    def logged_laplacian(self) -> str:
        """The Laplacian by which layers are grouped."""
        return self.laplacian

    def logged_similarity(self, grams: LayerGrams) -> jax.Array:
        """The similarity by which layers are grouped: f32[L, L].

        Args:
          grams: inner products between the layers.

        Raises:
          ValueError: it is to be measured on text and is not known, or is not of this many layers.
        """
        if self.similarity in OF_WEIGHTS or self.grouping not in SIMILARITY_METHODS:
            measure = self.similarity if self.similarity in OF_WEIGHTS else "weights"
            return weight_similarity(grams, measure, select=self.select)
        if self.on_text is None:
            raise ValueError("devft has not measured its layers: call prepared(measure) first.")
        return jnp.asarray(self.on_text, jnp.float32)

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
        groups = self._by_gap(stage, grams) if self.eigengap else capacities[stage]
        compares = self.grouping in SIMILARITY_METHODS and 1 < groups < grams.num_layers
        return layer_map(
            grams,
            groups,
            grouping=self.grouping,
            fusion=self.fusion,
            beta=self.beta,
            key=key,
            similarity=self.logged_similarity(grams) if compares else None,
            laplacian=self.laplacian,
            lone_ends=self.lone_ends,
        )

    def _by_gap(self, stage: int, grams: LayerGrams) -> int:
        lowest, highest = capacity_windows(self.capacities)[stage]
        if lowest == highest:
            return lowest
        return widest_gap(laplacian_spectrum(self.logged_similarity(grams), self.laplacian), lowest, highest)


def _make(options: DevFTOptions, num_layers: int) -> DevFT:
    return DevFT(
        capacities=planned_capacities(options, num_layers),
        eigengap=options.capacities is None and options.capacity_schedule == "eigengap",
        grouping=options.grouping,
        fusion=options.fusion,
        beta=options.beta,
        similarity=options.similarity,
        laplacian=options.laplacian,
        lone_ends=options.lone_ends,
    )


GROWTH = NamedGrowth(
    reference="fused submodels of growing depth (Wu et al., Developmental Federated Tuning, 2025)",
    message="the submodel's adapter; the fused layers once per stage",
    state="none",
    make=_make,
    reads=(
        *("capacities", "capacity_schedule", "stages"),
        *("grouping", "similarity", "laplacian", "lone_ends"),
        *("fusion", "beta", "gauge_alignment", "gain_matching", "transfer", "probe_data", "probe_examples"),
        *("fused_precision", "fuse_from"),
    ),
)
