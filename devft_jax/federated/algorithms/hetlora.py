"""HETLoRA (Cho et al., EMNLP 2024): clients of different ranks share one adapter of the largest rank.

The server holds a [L, in, r], b [L, r, out] with r = `rank`. Client i has its own rank r_i <= r (`client_ranks` in turn) and
receives the first r_i directions, a[:, :r_i] and b[:r_i]. It trains them to minimise

    f_i + lambda T(g),   T(g) = sum over adapted matrices of ||a[:, g:r_i]||_F ||b[g:r_i]||_F,   g = floor(gamma r_i),

with lambda = `rank_penalty`, gamma = `rank_shrink`; g is at most r_i - 1, so that there is a tail, and at least 1, so that a
client of rank 1 is unchanged. If T(g) has become smaller during the round than it was at its beginning, the tail is pruned:
r_i <- g from then on, a rank never rises, and the client sends its first r_i directions. The server pads them with zeros
and takes

    a <- sum_i u_i a_i,   b <- sum_i u_i b_i,   u_i = ||a_i b_i||_F / sum_j ||a_j b_j||_F,

one weight per client, with the norm over all matrices. Every norm has a lower bound far below any that training reaches, so
that this is the plain mean if all products are zero. A run's `weighting` by examples multiplies the norms. What is sent up
is the difference from what the client received, of which the server knows the rest.

No public code of the authors is known. Choices made here: the scale is alpha / r for every client, because alpha / r_i
would change the function of the directions that a truncation keeps; the penalty has gradients, whereas a public
reimplementation has none; norms are added over matrices, whereas the paper writes of one; a direction that no participant of
a round holds is unchanged, because with two zero factors it could never learn again. Properties of the paper's method: a
direction that few clients hold is diluted by the others' zeros, and the mean of factors has FedIT's error.

Clients of one cohort train under `vmap` with factors of rank r whose directions from r_i on are masked; these zeros are not
sent (`Ranked`). Ranks are kept across stages, because a stage changes layers and not directions; gauge alignment, if it is
on, rotates the directions of a group's layers into the order of its first layer's.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.federated.adapters import adapter_of, probe
from devft_jax.federated.aggregation import first_directions, masked, ranks_within
from devft_jax.federated.algorithm import Algorithm, Participant, Share, as_float32, change_of
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import HetLoraOptions
from devft_jax.federated.messages import Ranked, Unsent
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.lora import adapter_norms
from devft_jax.typing import PyTree

# Below any norm that training reaches, and far enough from the smallest float32 to be multiplied and divided by.
SMALLEST_NORM = 1e-20


class Sums(struct.PyTreeNode):
    """Sums over clients; the weights of the first four include their norms.

    Attributes:
      change: sum of the factors' changes.
      absent: f32[r], of the clients that do not hold a direction.
      probed: of x a_i b_i [G, PROBES, out].
      norm: f32[], of the weights themselves.
      holders: f32[r], number of clients that hold a direction.
      rank: of the ranks.
      weight: f32[], of the weights without norms.
    """

    change: dict[str, LoraFactors]
    absent: jax.Array
    probed: dict[str, jax.Array]
    norm: jax.Array
    holders: jax.Array
    rank: jax.Array
    weight: jax.Array


def pruned_ranks(most: int, shrink: float) -> list[int]:
    """g for every rank from 0 to the largest: the rank after pruning.

    Args:
      most: the largest rank.
      shrink: gamma.
    """
    return [max(1, min(math.floor(shrink * rank), rank - 1)) for rank in range(most + 1)]


def tail_norm(lora: dict[str, LoraFactors], kept: jax.Array, rank: jax.Array) -> jax.Array:
    """T(g) f32[], the norm of the directions that pruning would remove.

    Args:
      lora: factors [L, in, r], [L, r, out] of every projection.
      kept: g, i32[].
      rank: r_i, i32[].
    """

    def one(factors: LoraFactors) -> jax.Array:
        directions = jnp.arange(factors.a.shape[-1], dtype=jnp.int32)
        part = masked(factors, (directions >= kept) & (directions < rank))
        return jnp.sum(_norms(part.a) * _norms(part.b))

    return sum((one(factors) for factors in lora.values()), start=jnp.float32(0))


def _norms(leaf: jax.Array) -> jax.Array:
    """Frobenius norms f32[L] of matrices [L, ., .], with zero gradient where they are zero."""
    squares = jnp.sum(leaf**2, axis=(1, 2))
    zero = squares == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squares)))


def finalize(server: Adapter, sums: Sums) -> tuple[Adapter, dict[str, jax.Array]]:
    """The mean of factors, in which a direction that no participant holds is unchanged.

    Args:
      server: the server before the round.
      sums: the sums of the round.
    """
    change, absent, probed = jax.tree.map(lambda leaf: leaf / sums.norm, (sums.change, sums.absent, sums.probed))
    held = sums.holders > 0
    zeros = jnp.where(held, absent, 0.0)

    def step_of(factors: LoraFactors, moved: LoraFactors) -> LoraFactors:
        return LoraFactors(a=moved.a - zeros[None, None] * factors.a, b=moved.b - zeros[None, :, None] * factors.b)

    step = {name: step_of(factors, change[name]) for name, factors in server.lora.items()}
    lora = optax.tree.add(server.lora, step)
    mean = {name: masked(factors, held) for name, factors in lora.items()}
    error, product = jax.tree.map(jnp.subtract, probed, probe(mean)), optax.tree.norm(probed)
    metrics = {
        "update_norm": optax.tree.norm(step),
        "aggregation_error": jnp.where(product > 0, optax.tree.norm(error) / product, 0.0),
        "mean_rank": sums.rank / sums.weight,
    }
    return server.replace(lora=lora), metrics


def hetlora(config: HetLoraOptions) -> Algorithm:
    """HETLoRA with the configured adapters, ranks, `rank_shrink` and `rank_penalty`.

    A row is the client's rank, {"rank": i32[]}.

    Args:
      config: the options of the run's methods.

    Raises:
      InputError: a client's rank is above `rank`.
    """
    federated, ranks = fedit(config), ranks_within(config.client_ranks, config.rank)

    def kept(rank: jax.Array) -> jax.Array:
        return jnp.array(pruned_ranks(ranks.most, config.rank_shrink), jnp.int32)[rank]

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return as_float32(participant.down.lora), participant.down.rank

    def adapter(train: PyTree, frozen: PyTree) -> Adapter:
        return federated.adapter(first_directions(train, frozen), ())

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        received, rank = as_float32(participant.down.lora), participant.down.rank
        falls = tail_norm(train, kept(rank), rank) < tail_norm(received, kept(rank), rank)
        rank = jnp.where(falls, kept(rank), rank)
        change = first_directions(change_of(train, participant.down.lora, config.message_dtype), rank)
        arrived = optax.tree.add(received, as_float32(change))
        return (ranks.message(change, rank), Unsent(first_directions(arrived, rank))), {"rank": rank}

    def contribution(up: tuple[Ranked, Unsent], share: Share) -> Sums:
        sent, lora = up[0], up[1].value
        # The common scale in this norm cancels between clients.
        norm = optax.tree.norm(adapter_norms(adapter_of(lora, config)))
        weight = share.weight * jnp.maximum(norm, SMALLEST_NORM)
        holds = jnp.where(jnp.arange(ranks.most) < sent.rank, 1.0, 0.0)
        change, absent, probed = jax.tree.map(lambda leaf: weight * leaf, (as_float32(sent.lora), 1 - holds, probe(lora)))
        return Sums(
            change=change,
            absent=absent,
            probed=probed,
            norm=weight,
            holders=share.count * holds,
            rank=share.weight * sent.rank,
            weight=share.weight,
        )

    return dataclasses.replace(
        federated,
        **described("hetlora"),
        principal=False,
        address=lambda down, row: ranks.message(down, row["rank"]),
        start=start,
        adapter=adapter,
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        penalty=lambda train, rank: config.rank_penalty * tail_norm(train, kept(rank), rank),
        traits=ranks.traits,
        weighting="uniform",
    )
