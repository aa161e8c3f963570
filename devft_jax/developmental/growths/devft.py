"""DevFT (Wu et al., Developmental Federated Tuning, 2025): a submodel of fused layers that grows stage by stage.

Stage s groups the L layers by similarity into L_s groups (Eqs. 1-3) and fuses each into one representative layer,

    vartheta_g = theta_anchor + beta * sum_{j in g} (theta_j - theta_anchor)    (Eq. 5),

trains LoRA on these, and transfers what they learned back to the layers of their groups. L_1 < ... < L_S = L.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental.fusion import check_fusion
from devft_jax.developmental.grouping import check_grouping, laplacian_spectrum
from devft_jax.developmental.growth import GramGrowth, Growth
from devft_jax.developmental.growths.by_tier import by_tier
from devft_jax.developmental.maps import LayerMap, layer_map
from devft_jax.developmental.measures import influence_similarity, weight_similarity
from devft_jax.developmental.options import OF_TEXT, OF_WEIGHTS, SIMILARITIES, SIMILARITY_METHODS, DevFTOptions
from devft_jax.developmental.schedule import (
    capacity_windows,
    equal_shares,
    planned_capacities,
    validate_capacities,
    widest_gap,
)
from devft_jax.developmental.similarity import LayerGrams, Select


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
        check_grouping(self.grouping, 1, 1, has_key=True, laplacian=self.laplacian)
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"similarity {self.similarity!r} is unknown: choose from {', '.join(SIMILARITIES)}.")
        check_fusion(self.fusion, self.beta, has_key=True)

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


def make(options: DevFTOptions, num_layers: int) -> Growth:
    """DevFT with the given options.

    Args:
      options: the growth options.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: the options do not fit the model.
    """
    growth = DevFT(
        capacities=planned_capacities(options, num_layers),
        eigengap=options.capacities is None and options.capacity_schedule == "eigengap",
        grouping=options.grouping,
        fusion=options.fusion,
        beta=options.beta,
        similarity=options.similarity,
        laplacian=options.laplacian,
        lone_ends=options.lone_ends,
    )
    return by_tier(growth, options.by_tier, num_layers)
