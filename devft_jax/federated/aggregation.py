"""The three kinds of aggregation that most methods need, ready to use.

A round's aggregation is a sum of contributions over clients, chunks and devices, from which `finalize` computes the server's
step. Most methods need one of the following; N is the number of elements of one client's message, K the clients of the
cohort, r the rank, L the stage's layers.

* **A mean** of messages, of factors or anything else: `weighted` is the contribution, `WeightedSum.mean` the result.
4 N bytes, whatever the cohort; 2 N FLOPs per client.

      contribution = weighted                              # (up, share) -> WeightedSum
      finalize:      change = sums.mean()                  # sum_i w_i x_i / sum_i w_i

  The mean of the products is not the product of the mean factors: see `devft_jax.federated.algorithms.fedit`.

* **A mean of products** sum_i w_i a_i b_i, which is not a sum of factors. `in_slot` keeps every client's factors separate
until the end, `Slots.apart` returns them with their shares: 4 K N bytes. The mean is then computed dense by
`mean_of_products` (4 L in out bytes, 2 K L in out r FLOPs) or exactly in low rank K r by `stacked` (4 K N bytes, K N FLOPs),
and reduced to rank r by `best_factors`.

      contribution = in_slot(up, share, cohort)
      finalize:      clients, shares = sums.apart()        # leaves [K, ...], f32[K]
                     lora = {name: best_factors(stacked(each, shares), rank) for name, each in clients.items()}

  New factors of an unchanged product differ from the old ones by rounding; `chosen_layers` keeps the old ones of the layers
  that no client has changed (`changed_layers`).

* **Ranks per client**: `ClientRanks` gives every client its own rank as a trait, cuts factors to it and wraps messages so
that padding is not counted. Clients of one cohort train under `vmap` with factors of the largest rank, so memory
and FLOPs are those of the largest rank.

      traits  = ranks.traits                               # row: {"rank": i32[]}
      address = lambda down, row: ranks.message(down, row["rank"])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Clients, Share, as_float32
from devft_jax.federated.messages import Ranked
from devft_jax.models.adapter import LoraFactors
from devft_jax.typing import PyTree

# ---------------------------------------------------------------------------------------------------
# A mean


class WeightedSum(struct.PyTreeNode):
    """A sum of messages, each times its weight.

    Attributes:
      total: the weighted sum, with the messages' shape, in float32.
      weight: f32[], the sum of the weights.
    """

    total: PyTree
    weight: jax.Array

    def mean(self) -> PyTree:
        """The weighted mean of the messages; there must be at least one."""
        return jax.tree.map(lambda leaf: leaf / self.weight, self.total)


def weighted(message: PyTree, share: Share) -> WeightedSum:
    """A client's contribution to a mean.

    Args:
      message: any pytree of floats of any dtype.
      share: its weight and slot in the aggregation.
    """
    return WeightedSum(jax.tree.map(lambda leaf: share.weight * leaf, as_float32(message)), share.weight)


# ---------------------------------------------------------------------------------------------------
# A mean of products


class Slots(struct.PyTreeNode):
    """The messages of a cohort, kept separate: a sum in which each term is zero except in its client's slot.

    Everything in a slot is multiplied by the message's weight, which is also stored in the slot: a contribution is therefore
    linear in its weight, like any other.

    Attributes:
      leaves: [K, ...] in float32, each multiplied by its weight.
      weights: f32[K].
    """

    leaves: PyTree
    weights: jax.Array

    def apart(self) -> tuple[PyTree, jax.Array]:
        """The separate messages, leaves f32[K, ...], and the clients' shares f32[K], which sum to one; zero in empty
        slots."""
        divisor = jnp.where(self.weights > 0, self.weights, 1.0)
        messages = jax.tree.map(lambda leaf: leaf / divisor.reshape(-1, *[1] * (leaf.ndim - 1)), self.leaves)
        return messages, self.weights / jnp.sum(self.weights)


def shared_mean(messages: PyTree, shares: jax.Array) -> PyTree:
    """The mean of separate messages, sum_k w_k m_k.

    Args:
      messages: leaves f32[K, ...], as from `Slots.apart`.
      shares: w, f32[K].
    """
    return jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, 1, precision="highest"), messages)


def in_slot(message: PyTree, share: Share, count: int) -> Slots:
    """A client's contribution for an aggregation that needs separate messages.

    Args:
      message: any pytree of numbers.
      share: its weight and slot in the aggregation; `share.slot` is the client's place in the cohort.
      count: K, the clients of a round.
    """
    mine = jnp.arange(count, dtype=jnp.int32) == share.slot

    def one(leaf: jax.Array) -> jax.Array:
        # Selected from a broadcast, so that XLA need not store the zeros when summing over clients.
        chosen = mine.reshape(-1, *[1] * leaf.ndim)
        return jnp.where(chosen, share.weight * leaf, 0.0)

    return Slots(leaves=jax.tree.map(one, as_float32(message)), weights=one(jnp.float32(1.0)))


def product(factors: LoraFactors) -> jax.Array:
    """a b, f32[L, in, out]; 2 L in out r FLOPs.

    Args:
      factors: [L, in, r], [L, r, out], in any float dtype.
    """
    a, b = (leaf.astype(jnp.float32) for leaf in (factors.a, factors.b))
    return jnp.einsum("lir,lro->lio", a, b, precision="highest")


def zero_factors(shape: tuple[int, ...], rank: int) -> LoraFactors:
    """Factors of rank `rank` that are zero, [L, in, rank], [L, rank, out] in float32.

    Args:
      shape: (L, in, out) of their product.
      rank: rank of the factors.
    """
    layers, fan_in, fan_out = shape
    return LoraFactors(a=jnp.zeros((layers, fan_in, rank), jnp.float32), b=jnp.zeros((layers, rank, fan_out), jnp.float32))


def stacked(factors: LoraFactors, shares: jax.Array) -> LoraFactors:
    """sum_k w_k a_k b_k exactly, as one pair of factors of rank K r: a = [w_1 a_1, ..., w_K a_K], b = [b_1; ...; b_K].

    Args:
      factors: factors of all clients, [K, L, in, r], [K, L, r, out].
      shares: w, f32[K].

    Returns:
      Factors [L, in, K r], [L, K r, out]; 4 K N bytes in float32.
    """
    a, b = shares[:, None, None, None] * factors.a, factors.b
    count, layers, fan_in, rank = a.shape
    return LoraFactors(
        a=jnp.moveaxis(a, 0, 2).reshape(layers, fan_in, count * rank),
        b=jnp.moveaxis(b, 0, 1).reshape(layers, count * rank, b.shape[-1]),
    )


def mean_of_products(factors: LoraFactors, shares: jax.Array) -> jax.Array:
    """sum_k w_k a_k b_k, dense: f32[L, in, out], of 4 L in out bytes; 2 K L in out r FLOPs.

    Args:
      factors: factors of all clients, [K, L, in, r], [K, L, r, out].
      shares: w, f32[K].
    """
    return product(stacked(factors, shares))


Split = Literal["balanced", "orthonormal"]
"""How the singular values are divided between the factors; see `best_factors`."""


def best_factors(matrix: LoraFactors | jax.Array, rank: int, scale: float = 1.0, split: Split = "balanced") -> LoraFactors:
    """Factors of rank `rank` whose product, times `scale`, is nearest to a matrix in the Frobenius norm.

    With the singular value decomposition U S V^T,

        balanced       a = U_r (S_r / scale)^(1/2),    b = (S_r / scale)^(1/2) V_r^T
        orthonormal    a = U_r,                        b = (S_r / scale) V_r^T

    with the sign of each triplet chosen so that its largest entry of U is positive. Directions with singular value zero,
    such as all those of a zero matrix, get b = 0 with a nonzero a, like LoRA's initialisation: with two zero factors they
    could never learn again.

    A dense matrix costs about 14 in out min(in, out) FLOPs per layer. Factors of rank q are decomposed through their QR
    decompositions, about 4 (in + out) q^2 + 14 q^3 FLOPs per layer, and the matrix is never formed.

    Args:
      matrix: f32[L, in, out], or its factors [L, in, q], [L, q, out].
      rank: rank of the result, at most the number of singular values: min(in, out), and q if that is smaller.
      scale: the factor by which the model multiplies the product.
      split: how the singular values are divided between the factors.

    Returns:
      Factors [L, in, rank], [L, rank, out].

    Raises:
      ValueError: the matrix has fewer singular values than `rank`.
    """
    most = min(_extents(matrix))
    if rank > most:
        raise ValueError(f"rank {rank} exceeds the {most} singular values of the matrix; lower it.")

    return jax.lax.map(lambda layer: best_factors_of_layer(layer, rank, scale, split), matrix)


def best_factors_of_layer(
    matrix: LoraFactors | jax.Array, rank: int, scale: float = 1.0, split: Split = "balanced"
) -> LoraFactors:
    """`best_factors` of one layer.

    Args:
      matrix: f32[in, out], or its factors [in, q], [q, out].
      rank: rank of the result.
      scale: the factor by which the model multiplies the product.
      split: how the singular values are divided between the factors.

    Returns:
      Factors [in, rank], [rank, out].
    """
    if not isinstance(matrix, LoraFactors):
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
        return _leading(left, values, right, rank, scale, split)
    of_a, triangle = jnp.linalg.qr(matrix.a)
    of_b, other = jnp.linalg.qr(matrix.b.T)
    left, values, right = jnp.linalg.svd(jnp.matmul(triangle, other.T, precision="highest"), full_matrices=False)
    left, right = jnp.matmul(of_a, left, precision="highest"), jnp.matmul(right, of_b.T, precision="highest")
    return _leading(left, values, right, rank, scale, split)


# Expected norm of a column of LoRA's initial a, whose entries are uniform within 1 / sqrt(in).
FIRST_NORM = 3**-0.5


def _extents(matrix: LoraFactors | jax.Array) -> tuple[int, ...]:
    if isinstance(matrix, LoraFactors):
        return (*matrix.a.shape[1:], matrix.b.shape[-1])
    return matrix.shape[1:]


def _leading(left: jax.Array, values: jax.Array, right: jax.Array, rank: int, scale: float, split: Split) -> LoraFactors:
    """Factors of the first triplets of a decomposition; see `best_factors`."""
    # The threshold of numpy's matrix_rank.
    none = values[:rank] <= values[0] * max(left.shape[0], right.shape[1]) * jnp.finfo(jnp.float32).eps
    left, right, sizes = left[:, :rank], right[:rank], values[:rank] / scale
    largest = jnp.take_along_axis(left, jnp.argmax(jnp.abs(left), axis=0)[None], axis=0)[0]
    sign = jnp.where(largest < 0, -1.0, 1.0)
    if split == "orthonormal":
        of_a, of_b = jnp.ones_like(sizes), jnp.where(none, 0.0, sizes)
    else:
        of_a, of_b = jnp.where(none, FIRST_NORM, jnp.sqrt(sizes)), jnp.where(none, 0.0, jnp.sqrt(sizes))
    return LoraFactors(a=left * (sign * of_a)[None], b=(sign * of_b)[:, None] * right)


def changed_layers(change: LoraFactors | jax.Array, layers_axis: int = 0) -> jax.Array:
    """The layers that training has changed, bool[L].

    Args:
      change: the change of one or both factors, [L, ., .] with axes before it for several clients.
      layers_axis: the axis of the layers.
    """

    def one(leaf: jax.Array) -> jax.Array:
        return jnp.any(leaf != 0, axis=tuple(axis for axis in range(leaf.ndim) if axis != layers_axis))

    found = [one(leaf) for leaf in jax.tree.leaves(change)]
    return jnp.any(jnp.stack(found), axis=0)


def chosen_layers(which: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """The new leaves of some layers and the old ones of the others.

    Args:
      which: bool[L].
      new: leaves [L, ., .].
      old: leaves of the same shapes.
    """
    return jax.tree.map(lambda one, other: jnp.where(which[:, None, None], one, other), new, old)


# ---------------------------------------------------------------------------------------------------
# Ranks per client


def masked(factors: LoraFactors, mask: jax.Array) -> LoraFactors:
    """Factors with some directions set to zero.

    Args:
      factors: [L, in, r], [L, r, out].
      mask: bool[r], the directions to keep.
    """
    return LoraFactors(a=jnp.where(mask, factors.a, 0), b=jnp.where(mask[:, None], factors.b, 0))


def first_directions(lora: dict[str, LoraFactors], rank: jax.Array) -> dict[str, LoraFactors]:
    """Factors with all directions from `rank` on set to zero.

    Args:
      lora: factors [L, in, r], [L, r, out] of every projection.
      rank: i32[], number of directions to keep.
    """
    return {name: masked(factors, jnp.arange(factors.a.shape[-1], dtype=jnp.int32) < rank) for name, factors in lora.items()}


@dataclass(frozen=True)
class ClientRanks:
    """Ranks that are assigned to clients in turn, by their index in the population.

    Attributes:
      ranks: such as (32, 16, 8); a single rank applies to all clients.
      most: rank to which factors are padded, at least the largest of them.
    """

    ranks: Sequence[int]
    most: int

    @property
    def differ(self) -> bool:
        """Whether there is more than one rank."""
        return len(set(self.ranks)) > 1

    def traits(self, clients: Clients) -> PyTree:
        """An algorithm's `traits`: {"rank": i32[N]}.

        Args:
          clients: the population.
        """
        return {"rank": jnp.asarray(np.resize(self.ranks, clients.size), jnp.int32)}

    def message(self, lora: dict[str, LoraFactors], rank: jax.Array) -> Ranked:
        """The first directions of factors as a message: (a + b elements) rank / most, and 4 bytes for the rank.

        Args:
          lora: factors [L, in, most], [L, most, out] of every projection, in the messages' dtype.
          rank: i32[], number of directions to send.
        """
        return Ranked(lora=first_directions(lora, rank), rank=rank, most=self.most)


def ranks_within(ranks: Sequence[int] | None, most: int) -> ClientRanks:
    """The clients' ranks for a method whose server has an adapter of rank `most`.

    Args:
      ranks: ranks in turn; None for `most` for all.
      most: the option `rank`.

    Raises:
      InputError: a client's rank is above `most`.
    """
    found = ClientRanks(ranks or (most,), most=most)
    if max(found.ranks) > most:
        raise InputError(
            f"client_ranks {','.join(map(str, found.ranks))} has a rank above rank {most}; raise rank to the "
            "largest of them."
        )
    return found
