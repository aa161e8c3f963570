"""Sums that keep the participants' messages apart, for a server that must see each of them.

A contribution is zero but in the slot of its client, so that adding contributions collects them, in any order, over chunks
and devices. Everything in a slot is multiplied by the message's weight, which the slot carries too and by which it is
divided in the end: a contribution is then linear in its weight, like any other.
"""

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.federated.algorithm import Share, as_float32
from devft_jax.typing import PyTree


class Slots(struct.PyTreeNode):
    """Messages of a cohort: `leaves` [K, ...] in float32, each times its weight, and the `weights` f32[K]."""

    leaves: PyTree
    weights: jax.Array


def in_slot(message: PyTree, share: Share, count: int) -> Slots:
    """A client's message in its slot of `count`."""
    mine = jnp.arange(count, dtype=jnp.int32) == share.slot

    def one(leaf: jax.Array) -> jax.Array:
        # Chosen from a broadcast, which a sum over clients never has to write down.
        chosen = mine.reshape(-1, *[1] * leaf.ndim)
        return jnp.where(chosen, share.weight * leaf, 0.0)

    return Slots(leaves=jax.tree.map(one, as_float32(message)), weights=one(jnp.float32(1.0)))


def apart(slots: Slots) -> tuple[PyTree, jax.Array]:
    """The messages, leaves f32[K, ...], and the clients' shares f32[K], which sum to one; both zero where nobody is."""
    divisor = jnp.where(slots.weights > 0, slots.weights, 1.0)
    messages = jax.tree.map(lambda leaf: leaf / divisor.reshape(-1, *[1] * (leaf.ndim - 1)), slots.leaves)
    return messages, slots.weights / jnp.sum(slots.weights)


def side_by_side(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Factors [K, L, in, r], [K, L, r, out] as one pair [L, in, K r], [L, K r, out], whose product is the sum of theirs."""
    count, layers, fan_in, rank = a.shape
    joined = jnp.moveaxis(a, 0, 2).reshape(layers, fan_in, count * rank)
    return joined, jnp.moveaxis(b, 0, 1).reshape(layers, count * rank, b.shape[-1])
