"""Aggregation of messages from clients that hold different layers, layer by layer and direction by direction.

Let Z_l be the server's layer l, z_kl what client k returned for it, m_kl whether the client trained it, w_k its weight and
pi_kl the probability with which a client of its class trains the layer. With one of the rules

    active    Z_l + sum_k w_k m_kl (z_kl - Z_l) / sum_k w_k m_kl         the mean over those who hold the layer
    all       Z_l + sum_k w_k m_kl (z_kl - Z_l) / sum_k w_k              others count as no change
    ht        Z_l + sum_k w_k m_kl (z_kl - Z_l) / pi_kl / sum_k w_k      Horvitz and Thompson (1952)

A layer that nobody holds is unchanged. `ht` is unbiased: averaged over the draws of layers it is the mean with everybody
holding every layer, if the changes do not depend on the draws; where pi is small it varies much. Ranks are treated alike: m
and pi belong to a direction of a layer, and a client of smaller rank does not hold the others.

The clients that share one `LayerMap` are summed first, as a `WeightedSum` of changes. Rows that are single layers are added
to these. If rows are fused from several layers, every layer of a row's group counts as held, and z_kl follows from the row
by `devft_jax.developmental.inherit`, with the row before training fused from Z.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from devft_jax.developmental import LayerMap, anchors, fuse, inherit
from devft_jax.federated.aggregation import WeightedSum
from devft_jax.models.adapter import LoraFactors
from devft_jax.typing import PyTree

Lora = dict[str, LoraFactors]


class Held(struct.PyTreeNode):
    """What the groups of a round returned, at full depth.

    Attributes:
      change: sum of the factors' changes, each with its weight, [L, in, r], [L, r, out]; divided by pi for `ht`.
      others: the same of other quantities, [L, ...].
      weight: f32[L, r], sum of the weights of those who hold a direction.
      total: f32[], sum of all weights.
    """

    change: Lora
    others: PyTree
    weight: jax.Array
    total: jax.Array


def rank_mask(ranks: Sequence[int] | None, rows: int, rank: int) -> np.ndarray:
    """The directions that a client holds in each row, bool[G, r].

    Args:
      ranks: rank of every row; None for all directions.
      rows: G.
      rank: r.
    """
    return np.arange(rank) < np.full((rows, 1), rank) if ranks is None else np.arange(rank) < np.array(ranks)[:, None]


def cut(tree: PyTree, ranks: tuple[int, ...] | None) -> PyTree:
    """A state whose factors have the ranks of a class: zero directions above a row's rank, none above the largest.

    Zero directions of both factors stay zero in training.

    Args:
      tree: any tree; its `LoraFactors` [G, in, r], [G, r, out] are cut.
      ranks: rank of every row; None for the tree itself.
    """
    if ranks is None:
        return tree
    most = max(ranks)
    mask = jnp.asarray(rank_mask(ranks, len(ranks), most))

    def one(node: Any) -> Any:
        if not isinstance(node, LoraFactors):
            return node
        return LoraFactors(
            a=jnp.where(mask[:, None, :], node.a[..., :most], 0), b=jnp.where(mask[:, :, None], node.b[:, :most], 0)
        )

    return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, LoraFactors))


def padded(lora: Lora, rank: int) -> Lora:
    """Factors with directions of zeros up to a rank.

    Args:
      lora: factors [G, in, r'], [G, r', out].
      rank: r, at least r'.
    """

    def one(factors: LoraFactors) -> LoraFactors:
        more = rank - factors.a.shape[-1]
        return LoraFactors(
            a=jnp.pad(factors.a, ((0, 0), (0, 0), (0, more))), b=jnp.pad(factors.b, ((0, 0), (0, more), (0, 0)))
        )

    return {name: one(factors) for name, factors in lora.items()}


def nothing_held(lora: Lora, others: PyTree) -> Held:
    """The sums of no client.

    Args:
      lora: the server's factors at full depth.
      others: of other quantities, arrays or shapes with any number of rows.
    """
    layers, _, rank = next(iter(lora.values())).a.shape
    return Held(
        change=jax.tree.map(jnp.zeros_like, lora),
        others=jax.tree.map(lambda leaf: jnp.zeros((layers, *leaf.shape[1:]), jnp.float32), others),
        weight=jnp.zeros((layers, rank), jnp.float32),
        total=jnp.float32(0.0),
    )


@partial(jax.jit, static_argnames=("ranks", "rule", "mode", "selects"))
def add_group(
    held: Held,
    lora: Lora,
    sums: WeightedSum,
    layer_map: LayerMap,
    inclusion: jax.Array,
    *,
    ranks: tuple[int, ...] | None,
    rule: str,
    mode: str,
    selects: bool,
) -> Held:
    """The sums with one group added; `lora`, the server's factors, are those before the round.

    Args:
      held: the sums so far.
      lora: the server's factors at full depth.
      sums: the group's sum of (changes of factors, other quantities), rows [G, ...].
      layer_map: what the group's clients hold.
      inclusion: pi f32[L], read by `ht`.
      ranks: rank of every row; None for the server's.
      rule: active, all or ht.
      mode: mode of `inherit` for fused rows.
      selects: whether every row is a single layer.
    """
    change, others = sums.total
    rank = held.weight.shape[1]
    change = padded(change, rank)
    group = jnp.maximum(layer_map.assign, 0)
    present = (layer_map.assign >= 0) & layer_map.train[group]
    if mode == "anchor_only":
        layers = jnp.arange(layer_map.num_layers, dtype=jnp.int32)
        present &= anchors(layer_map.assign, layer_map.num_groups)[group] == layers
    directions = jnp.asarray(rank_mask(ranks, layer_map.num_groups, rank))[group] & present[:, None]
    times = jnp.where(directions, 1.0, 0.0)
    by_layer = jnp.where(present, 1.0, 0.0)
    if rule == "ht":
        times, by_layer = times / inclusion[:, None], by_layer / inclusion

    def spread(leaf: jax.Array) -> jax.Array:
        shape = (-1, *[1] * (leaf.ndim - 1))
        return jnp.where(present.reshape(shape), leaf[group], 0.0)

    moved = jax.tree.map(spread, change)
    if not selects:
        moved = jax.tree.map(lambda leaf: sums.weight * leaf, _transferred(lora, change, sums.weight, layer_map, mode))

    def added(before: LoraFactors, own: LoraFactors) -> LoraFactors:
        return LoraFactors(a=before.a + _times(times[:, None, :], own.a), b=before.b + _times(times[:, :, None], own.b))

    return Held(
        change={name: added(held.change[name], moved[name]) for name in moved},
        others=jax.tree.map(
            lambda before, own: before + _times(by_layer.reshape(-1, *[1] * (own.ndim - 1)), spread(own)),
            held.others,
            others,
        ),
        weight=held.weight + sums.weight * jnp.where(directions, 1.0, 0.0),
        total=held.total + sums.weight,
    )


def _times(factor: jax.Array, leaf: jax.Array) -> jax.Array:
    """factor * leaf, and 0 where the factor is 0."""
    return jnp.where(factor > 0, factor * leaf, 0.0)


def _transferred(lora: Lora, change: Lora, weight: jax.Array, layer_map: LayerMap, mode: str) -> Lora:
    """The mean change of every layer of a group whose rows are fused; finite also if nobody's update is."""
    mean = jax.tree.map(lambda leaf: leaf / jnp.where(weight > 0, weight, 1.0), change)
    trained = jax.tree.map(jnp.add, fuse(layer_map, lora), mean)
    return jax.tree.map(jnp.subtract, inherit(layer_map, trained, lora, mode=mode), lora)


def sum_for_all(held: Held, rule: str) -> WeightedSum:
    """A sum over all participants whose mean is the step of every layer, as an algorithm's `finalize` takes it.

    What only some hold is scaled by total / weight for `active`. Where everybody holds everything, this factor is exactly 1
    and the server's step is bit for bit that of a round in which all clients hold the same.

    Args:
      held: the sums over all groups, of one client at least.
      rule: active, all or ht.
    """
    if rule != "active":
        return WeightedSum((held.change, held.others), held.total)
    times = jnp.where(held.weight > 0, held.total / jnp.where(held.weight > 0, held.weight, 1.0), 0.0)
    change = {
        name: LoraFactors(a=times[:, None, :] * factors.a, b=times[:, :, None] * factors.b)
        for name, factors in held.change.items()
    }
    # Whoever holds a layer holds its first direction.
    by_layer = times[:, 0]
    others = jax.tree.map(lambda leaf: by_layer.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf, held.others)
    return WeightedSum((change, others), held.total)


def kept_where_nobody_holds(new: PyTree, old: PyTree, weight: jax.Array) -> PyTree:
    """The server's state after a step, with factors, and moments of their shape, as before where nobody holds a direction.

    Args:
      new: the state after the step.
      old: the state before it.
      weight: f32[L, r], as in `Held`.
    """
    some = weight > 0

    def one(after: Any, before: Any) -> Any:
        if not isinstance(after, LoraFactors):
            return after
        return LoraFactors(
            a=jnp.where(some[:, None, :], after.a, before.a), b=jnp.where(some[:, :, None], after.b, before.b)
        )

    return jax.tree.map(one, new, old, is_leaf=lambda node: isinstance(node, LoraFactors))
