"""FlexLoRA (Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources,
NeurIPS 2024): the mean of the products, reduced to the server's rank.

The server holds a [L, in, r], b [L, r, out] with r = `rank`. Client i has its own rank r_i <= r (`client_ranks` in turn),
receives the first r_i directions, and trains them. With the clients' factors a_i, b_i the server decomposes

    X = sum_i w_i a_i b_i = U S V^T,    a <- U_r,    b <- S_r V_r^T,

so that a b is the best approximation of X of rank r, and the first r_i directions are the best of rank r_i. X has up to K r
directions; what is beyond the first r is lost (`truncation_error`, relative to X). The decomposition uses the stacked
factors and never forms X.

With `svd_split` orthonormal, as published, a has orthonormal columns and all singular values are in b: a is then about three
times as large as LoRA's first a, which changes how fast the factors learn. With balanced both get the square roots.

Departures: the scale is alpha / r for every client, because alpha / r_i, as published, would change the function of the
directions that a truncation keeps; a direction with singular value zero gets b = 0 with a nonzero, because with two zero
factors it could never learn; and a layer that no client has changed keeps its factors. With ranks that differ, a direction
beyond a client's rank counts as zero in that client's product.

Messages are FedIT's, up to each client's rank. The server needs all messages of a round at once, K times the adapter. With a
growth the adapter is mapped over layers like FedIT's; since every decomposition chooses its own directions, layers of a
group agree less in their factors than FedIT's, and gauge alignment helps more.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from devft_jax.federated.aggregation import (
    Slots,
    Split,
    best_factors,
    changed_layers,
    chosen_layers,
    in_slot,
    ranks_within,
    shared_mean,
    stacked,
)
from devft_jax.federated.algorithm import Algorithm, Participant, Share, as_float32, change_of, empty, same_message
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import FlexLoraOptions
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.lora import factor_norm
from devft_jax.typing import PyTree


def up_to_rank(factors: LoraFactors, ranks: jax.Array) -> LoraFactors:
    """Clients' factors [K, L, ., .] with the directions from their ranks on set to zero.

    Args:
      factors: [K, L, in, r], [K, L, r, out].
      ranks: i32[K].
    """
    held = jnp.arange(factors.a.shape[-1], dtype=jnp.int32)[None] < ranks[:, None]
    return LoraFactors(
        a=jnp.where(held[:, None, None, :], factors.a, 0.0), b=jnp.where(held[:, None, :, None], factors.b, 0.0)
    )


def clients_factors(server: LoraFactors, change: LoraFactors) -> LoraFactors:
    """The factors of all clients after training, [K, L, ., .], from the server's own and their changes.

    Args:
      server: the server's factors before the round, [L, ., .].
      change: the clients' changes, [K, L, ., .].
    """
    return jax.tree.map(lambda leaf, moved: leaf[None] + moved, server, change)


def flexlora(config: FlexLoraOptions) -> Algorithm:
    """FlexLoRA with the configured adapters, ranks and `svd_split`; if ranks differ, a row is {"rank": i32[]}.

    Args:
      config: the options of the run's methods.

    Raises:
      InputError: a client's rank is above `rank`.
    """
    averaging, ranks = fedit(config), ranks_within(config.client_ranks, config.rank)
    slots = config.clients_per_round
    split: Split = "orthonormal" if config.svd_split == "orthonormal" else "balanced"

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return as_float32(participant.down.lora if ranks.differ else participant.down), ()

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        if not ranks.differ:
            return averaging.finish(participant, train)
        down = participant.down
        return ranks.message(change_of(train, down.lora, config.message_dtype), down.rank), participant.row

    def contribution(up: PyTree, share: Share) -> Slots:
        return in_slot((up.lora, up.rank) if ranks.differ else (up, jnp.int32(max(ranks.ranks))), share, slots)

    def finalize(server: Adapter, sums: Slots) -> tuple[Adapter, dict[str, jax.Array]]:
        (changes, taken), shares = sums.apart()
        lora, whole = {}, {}
        for name, change in changes.items():
            old = server.lora[name]
            own = up_to_rank(clients_factors(old, change), jnp.round(taken).astype(jnp.int32))
            whole[name] = stacked(own, shares)
            best = best_factors(whole[name], config.rank, split=split)
            lora[name] = chosen_layers(changed_layers(change, 1), best, old)
        mean = shared_mean(changes, shares)
        size, kept = factor_norm(whole), factor_norm(lora)
        lost = jnp.sqrt(jnp.maximum(size**2 - kept**2, 0.0))
        metrics = {"update_norm": optax.tree.norm(mean), "truncation_error": jnp.where(size > 0, lost / size, 0.0)}
        return server.replace(lora=lora), metrics

    return dataclasses.replace(
        averaging,
        **described("flexlora"),
        principal=not ranks.differ,
        address=(lambda down, row: ranks.message(down, row["rank"])) if ranks.differ else same_message,
        start=start,
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        traits=ranks.traits if ranks.differ else empty,
    )
