"""A stage as linear algebra on the layer axis: building its submodel and transferring LoRA back.

`LayerMap` is all that the rest of a program knows about a stage. `fuse` M f32[G, L] builds the G representative layers of
the submodel from the L layers of the model. `assign` i32[L] gives, for every layer, the representative from which it gets
its LoRA back. `train` bool[G] marks the rows that learn. Below the rows the lowest `bare` layers of the model may run
unchanged. DevFT's stages, a prefix, a selection of layers, the top of the exact model and end-to-end training differ only in
these.

The transfer back has two interpretations. The paper's text copies a representative's LoRA to all layers of its group
("copy"); its appendix has a formula whose symbols are lost but which contains the anchor, most likely

    theta_j + (vartheta_g - theta_anchor)            ("anchor_delta")

"delta" subtracts the fused layer instead of the anchor, so that a stage that learns nothing changes nothing; "anchor_only"
updates only the first layer of each group.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.developmental import streaming
from devft_jax.developmental.fusion import anchors, check_fusion, fusion_matrix
from devft_jax.developmental.grouping import check_grouping, group_layers
from devft_jax.developmental.leaves import count_layers, is_concrete, map_leaves, named_leaves, weight_shape
from devft_jax.developmental.options import MODES, SIMILARITY_METHODS
from devft_jax.developmental.similarity import LayerGrams, Select, layer_similarity


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LayerMap:
    """A submodel of G representative layers made from the L layers of a model.

    Attributes:
      fuse: f32[G, L], the coefficient of every layer in every representative layer.
      assign: i32[L], the group from which each layer gets its LoRA back; -1 for a layer that is absent from
        this stage and keeps its own.
      train: bool[G], the rows that learn; the others are computed but not changed. By default all learn.
      bare: number of the lowest layers that run below the rows, frozen and without an adapter. The rows are
        then the layers above, each by itself, so that the submodel is the model with an adapter on top.
      align: whether low-rank factors are rotated to their anchor's before they are fused (`align_factors`).
    """

    fuse: jax.Array
    assign: jax.Array
    train: jax.Array = None  # type: ignore[assignment]
    bare: int = dataclasses.field(default=0, metadata={"static": True})
    align: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        """Let every row train by default."""
        if self.train is None and hasattr(self.fuse, "shape"):
            object.__setattr__(self, "train", jnp.asarray(np.ones(self.fuse.shape[0], bool)))

    @classmethod
    def identity(cls, num_layers: int) -> Self:
        """The full model: every layer represents itself.

        Args:
          num_layers: L.
        """
        return cls(jnp.asarray(np.eye(num_layers, dtype=np.float32)), jnp.asarray(np.arange(num_layers, dtype=np.int32)))

    @classmethod
    def of_layers(cls, num_layers: int, layers: Sequence[int] | np.ndarray) -> Self:
        """A submodel of some of the layers, each unchanged; the layers left out keep their own LoRA.

        Args:
          num_layers: L.
          layers: the layers of the submodel, in the order in which they run, each once.

        Raises:
          ValueError: there is none, one is outside 0..L-1, or one occurs twice.
        """
        chosen = np.asarray(layers)
        whole = chosen.ndim == 1 and chosen.size > 0 and np.issubdtype(chosen.dtype, np.integer)
        if not whole or len(set(chosen.tolist())) < chosen.size or chosen.min() < 0 or chosen.max() >= num_layers:
            raise ValueError(
                f"layers {chosen.tolist()} are no selection: give one or more of the layers 0..{num_layers - 1}, each once."
            )
        assign = np.full(num_layers, -1, np.int32)
        assign[chosen] = np.arange(chosen.size)
        return cls(jnp.asarray(np.eye(num_layers, dtype=np.float32)[chosen]), jnp.asarray(assign))

    @classmethod
    def top(cls, num_layers: int, num_groups: int) -> Self:
        """The full model, whose last `num_groups` layers have an adapter.

        Args:
          num_layers: L.
          num_groups: G.
        """
        bare = num_layers - num_groups
        layers = jnp.arange(num_layers, dtype=jnp.int32)
        rows = jnp.eye(num_groups, num_layers, bare, dtype=jnp.float32)
        return cls(rows, jnp.maximum(layers - bare, -1), bare=bare)

    @classmethod
    def shapes(cls, num_groups: int, num_layers: int, bare: int = 0) -> Self:
        """Shapes and dtypes of any map, for tracing and for restoring one.

        Args:
          num_groups: G.
          num_layers: L.
          bare: layers that run below the rows without an adapter.
        """
        return jax.eval_shape(
            lambda: cls(jnp.zeros((num_groups, num_layers), jnp.float32), jnp.zeros(num_layers, jnp.int32), bare=bare)
        )

    @property
    def num_groups(self) -> int:
        """G, the layers of the submodel that have an adapter."""
        return self.fuse.shape[0]

    @property
    def depth(self) -> int:
        """The layers that the submodel runs."""
        return self.bare + self.num_groups

    @property
    def runs_base(self) -> bool:
        """Whether the frozen layers of the submodel are those of the model itself."""
        return self.bare > 0 or self.is_identity

    @property
    def num_layers(self) -> int:
        """L, the depth of the model."""
        return self.fuse.shape[1]

    @property
    def is_identity(self) -> bool:
        """Whether the submodel is the model itself (`train` may still exclude rows). False if traced."""
        return (
            is_concrete(self.fuse)
            and np.array_equal(np.asarray(self.fuse), np.eye(self.num_groups, self.num_layers))
            and self.num_groups == self.num_layers
        )

    def selected(self) -> np.ndarray | None:
        """i64[G], the layers that the rows select, if every row selects a single one; otherwise, or if traced, None."""
        if not is_concrete(self.fuse):
            return None
        fuse = np.asarray(self.fuse)
        one_hot = ((fuse == 0) | (fuse == 1)).all() and (fuse.sum(axis=1) == 1).all()
        return fuse.argmax(axis=1) if one_hot else None


def frozen_below(train: np.ndarray) -> int:
    """Number of rows below the lowest row that trains; 0 if none trains.

    Args:
      train: bool[G].
    """
    return int(train.argmax())


def check_layer_map(layer_map: Any, num_layers: int) -> None:
    """Check that a concrete map describes a submodel of a model.

    A group to which no layer is assigned may be computed but not trained, because what it learned would be lost.

    Args:
      layer_map: the result of a growth.
      num_layers: L, the depth of the model.

    Raises:
      ValueError: it does not describe a submodel.
    """
    if not isinstance(layer_map, LayerMap):
        raise ValueError(f"the growth gave a {type(layer_map).__name__}: give a LayerMap, or None to end.")
    fuse, assign, train = (np.asarray(array) for array in (layer_map.fuse, layer_map.assign, layer_map.train))
    if fuse.ndim != 2 or fuse.shape[0] < 1 or fuse.shape[1] != num_layers:
        raise ValueError(f"fuse has shape {fuse.shape}: give one coefficient per group and layer, [G, {num_layers}].")
    if not np.isfinite(fuse).all():
        raise ValueError("fuse holds NaN or infinite coefficients: give finite ones.")
    groups = len(fuse)
    if assign.shape != (num_layers,) or not np.issubdtype(assign.dtype, np.integer):
        raise ValueError(
            f"assign has shape {assign.shape} and dtype {assign.dtype}: give one group per layer, i32[{num_layers}]."
        )
    if assign.min() < -1 or assign.max() >= groups:
        raise ValueError(
            f"assign holds groups from {assign.min()} to {assign.max()} and fuse has {groups} rows: "
            f"use 0..{groups - 1}, or -1 for an absent layer."
        )
    if train.shape != (groups,) or train.dtype != bool:
        raise ValueError(f"train has shape {train.shape} and dtype {train.dtype}: give one flag per group, bool[{groups}].")
    if layer_map.bare and not (
        layer_map.depth == num_layers
        and np.array_equal(fuse, np.eye(groups, num_layers, layer_map.bare))
        and np.array_equal(assign, np.maximum(np.arange(num_layers) - layer_map.bare, -1))
    ):
        raise ValueError(
            f"{layer_map.bare} bare layers run below rows that are not the {num_layers - layer_map.bare} layers above them: "
            "make such a map by LayerMap.top, or run no layer bare."
        )
    lost = sorted(set(np.flatnonzero(train).tolist()) - set(assign.tolist()))
    if lost:
        raise ValueError(
            f"group {lost[0]} trains but no layer is assigned to it, so what it learns would be lost: "
            "assign a layer to it, or do not train it."
        )


def layer_map(
    tree: Any,
    num_groups: int,
    *,
    grouping: str = "dglg",
    fusion: str = "dblf",
    beta: float | str = 0.1,
    select: Select | None = None,
    key: jax.Array | None = None,
    similarity: jax.Array | None = None,
    laplacian: str = "paper",
    lone_ends: bool = False,
) -> LayerMap:
    """Eqs. 1-5: the map from a model to its submodel of `num_groups` representative layers.

    The weights are read once, or not at all if the groups do not depend on them: with `num_groups` = L the result is the
    identity, whatever the methods.

    Args:
      tree: any pytree whose leaves begin with axis L, such as (base blocks, LoRA), or `LayerGrams` of one.
      num_groups: G.
      grouping: method of `group_layers`.
      fusion: method of `fusion_matrix`.
      beta: as in `fusion_matrix`.
      select: restricts what is compared, see `layer_gram`.
      key: split into one for the groups and one for the fusion.
      similarity: f32[L, L] in place of Eq. 1's; the weights are then not read.
      laplacian: as in `group_layers`.
      lone_ends: as in `group_layers`.

    Raises:
      ValueError: as in the functions named here.
    """
    num_layers = tree.num_layers if isinstance(tree, LayerGrams) else count_layers(tree)
    check_grouping(grouping, num_groups, num_layers, has_key=key is not None, laplacian=laplacian)
    check_fusion(fusion, beta, has_key=key is not None)
    if num_groups == num_layers:
        return LayerMap.identity(num_layers)
    group_key, fusion_key = (None, None) if key is None else jax.random.split(key)
    compared = grouping in SIMILARITY_METHODS and num_groups > 1
    if similarity is None:
        similarity = layer_similarity(tree, select=select) if compared else jnp.eye(num_layers, dtype=jnp.float32)
    assign = group_layers(similarity, num_groups, method=grouping, key=group_key, laplacian=laplacian, lone_ends=lone_ends)
    matrix = fusion_matrix(assign, num_groups=num_groups, method=fusion, beta=beta, key=fusion_key)
    return LayerMap(matrix, assign)


def fuse(layer_map: LayerMap, tree: Any) -> Any:
    """The representative layers of a tree `[L, ...]`: the same tree with leaves `[G, ...]`.

    Sums are float32, leaves keep their float dtype, weights that `dequantize` become float32. A map that fuses nothing
    rounds nothing: the identity returns `tree` itself, and a map that only selects layers (concrete rows with a single 1)
    returns those layers as they are stored, 4-bit codes included. numpy leaves give numpy leaves. Differentiable with
    respect to the tree and `layer_map.fuse`.

    Args:
      layer_map: the stage's map.
      tree: any pytree whose leaves begin with axis L.

    Raises:
      ValueError: a leaf does not begin with the map's L.
    """
    count_layers(tree, expected=layer_map.num_layers)
    if layer_map.is_identity:
        return tree
    selected = layer_map.selected()
    if selected is not None:
        return map_leaves(lambda leaf: streaming.take(selected, leaf), tree)
    return map_leaves(lambda leaf: streaming.combine(layer_map.fuse, leaf), tree)


def inherit(layer_map: LayerMap, trained: Any, full: Any, *, mode: str = "copy") -> Any:
    """Transfer a trained submodel `[G, ...]` back into the full-depth tree `[L, ...]` (Eq. 12).

    A layer takes part if `assign` gives it a group and that group trains; every other layer keeps its value in `full`, bit
    for bit. With g the group of layer j and M = `layer_map.fuse`:

    * `copy`: trained[g].
    * `anchor_only`: trained[g] for the first layer of each group, no change for the others.
    * `delta`: full[j] + (trained - M full)[g].
    * `anchor_delta`: full[j] + trained[g] - full[anchor of g].

    The result has the dtypes of `full` (float32 for weights that `dequantize`); numpy leaves give numpy leaves. Written for
    LoRA, correct for any tree. For an identity map on which all rows train the result is `trained` itself.

    Args:
      layer_map: the stage's map.
      trained: the submodel's tree `[G, ...]` after training.
      full: the full-depth tree `[L, ...]` before the stage.
      mode: one of the above.

    Raises:
      ValueError: the mode is unknown, or leaves do not match.
    """
    if mode not in MODES:
        raise ValueError(f"inherit mode {mode!r} is unknown: choose from {', '.join(MODES)}.")
    count_layers(full, expected=layer_map.num_layers)
    _check_match(layer_map, trained, full)
    if _returns_everything(layer_map):
        return trained
    anchor = anchors(layer_map.assign, layer_map.num_groups)
    source = _sources(layer_map, anchor, anchors_only=mode == "anchor_only")
    if mode in ("copy", "anchor_only"):
        return map_leaves(lambda t, f: streaming.replace(source, t, f), trained, full)
    before = layer_map.fuse if mode == "delta" else jax.nn.one_hot(anchor, layer_map.num_layers)
    return map_leaves(lambda t, f: streaming.shift(before, source, t, f), trained, full)


@jax.jit
def transition_gap(gram: jax.Array, layer_map: LayerMap) -> jax.Array:
    """The distance of a stage's submodel from its anchors, the quantity that Lemma 1 bounds: f32[].

        sum_g sum_{j in g, j != anchor} |fuse[g, j]| * ||theta_j - theta_anchor||

    With DBLF |fuse[g, j]| is beta. The weights are not read again. A distance below about 1e-3 of the layers' norms is lost
    in float32 rounding.

    Args:
      gram: f32[L, L], of `layer_gram`.
      layer_map: the stage's map.
    """
    layers = jnp.arange(layer_map.num_layers, dtype=jnp.int32)
    group = jnp.maximum(layer_map.assign, 0)
    anchor = anchors(layer_map.assign, layer_map.num_groups)[group]
    squares = jnp.diagonal(gram)
    square = jnp.maximum(squares + squares[anchor] - 2 * gram[layers, anchor], 0.0)
    weight = jnp.where(layer_map.assign >= 0, jnp.abs(layer_map.fuse[group, layers]), 0.0)
    distance = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return jnp.sum(weight * distance)


@functools.partial(jax.jit, static_argnames="anchors_only")
def _sources(layer_map: LayerMap, anchor: jax.Array, *, anchors_only: bool) -> jax.Array:
    """i32[L], the trained row that every layer takes, -1 for none."""
    assign = jnp.asarray(layer_map.assign)
    group = jnp.maximum(assign, 0)
    takes = (assign >= 0) & jnp.asarray(layer_map.train)[group]
    if anchors_only:
        takes &= anchor[group] == jnp.arange(layer_map.num_layers, dtype=jnp.int32)
    return jnp.where(takes, assign, -1)


def _returns_everything(layer_map: LayerMap) -> bool:
    concrete = is_concrete(layer_map.assign) and is_concrete(layer_map.train)
    return (
        concrete
        and layer_map.is_identity
        and bool(np.asarray(layer_map.train).all())
        and np.array_equal(np.asarray(layer_map.assign), np.arange(layer_map.num_layers))
    )


def _check_match(layer_map: LayerMap, trained: Any, full: Any) -> None:
    old, new = dict(named_leaves(full)), dict(named_leaves(trained))
    if old.keys() != new.keys():
        odd = sorted(old.keys() ^ new.keys())[0]
        raise ValueError(f"trained and full differ at leaf {odd or 'root'}: give two trees of the same structure.")
    for path, leaf in new.items():
        shape, wanted = weight_shape(leaf), weight_shape(old[path])
        if shape != (layer_map.num_groups, *wanted[1:]):
            raise ValueError(
                f"Leaf {path or 'root'} of trained has shape {shape}, but the layer map has "
                f"{layer_map.num_groups} groups and full has shape {wanted} there: "
                f"give {(layer_map.num_groups, *wanted[1:])}."
            )
