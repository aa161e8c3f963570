"""FedMomentum (Yan et al., FedMomentum: Preserving LoRA Training Momentum in Federated Fine-Tuning, arXiv:2603.08014, 2026):
the mean of the products, divided into its strongest directions, which stay trainable, and a correction of the frozen
weights.

With the clients' factors a_i, b_i after training, q = min(K r, in, out), and s = alpha / r, the server decomposes

    X = sum_i w_i a_i b_i = U S V^T,
    a <- U_r S_r^(1/2),    b <- S_r^(1/2) V_r^T,    D <- D + s sum_{r < k <= q} S_k u_k v_k^T,

so that W + D + s a b is the mean of the clients' models: exact, like FedEx-LoRA, but the adapter holds the best
approximation of X of rank r instead of the product of means. The "momentum" of the name is that direction, kept trainable;
it is no state of an optimiser.

The downlink is (a, b) and the last correction, as factors of rank (K - 1) r or dense, whichever is smaller; the correction
is an increment of what clients have, as in FedEx-LoRA, whose messages, state and rules at a stage change these are. The
decomposition uses the stacked factors and never forms X; the server needs all messages of a round at once.

The formulas are those of a digest of the paper, without access to the authors' code. A public re-implementation drops the
last directions, beyond 99.99 % of the squared singular values, and leaves s out of the correction, which is wrong unless
s = 1; here all directions are kept, times s. Directions with singular value zero get b = 0 with a nonzero, because with two
zero factors they could never learn, and a layer that no client has changed keeps its factors. Each decomposition chooses its
own directions, so nothing that a client or the server kept in those of an earlier round could be combined with it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from devft_jax.federated.aggregation import (
    Slots,
    best_factors,
    changed_layers,
    chosen_layers,
    product,
    shared_mean,
    stacked,
)
from devft_jax.federated.algorithm import Algorithm, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedex_lora import Server, dense_is_smaller, fedex_lora, residual_norm
from devft_jax.federated.algorithms.flexlora import clients_factors
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.models.adapter import LoraFactors
from devft_jax.models.options import lora_scale


def parted(whole: LoraFactors, rank: int) -> tuple[LoraFactors, LoraFactors]:
    """The product of factors as the sum of its best approximation of rank `rank` and the rest.

    Args:
      whole: [L, in, K r], [L, K r, out].
      rank: r.

    Returns:
      Balanced factors of rank r, and those of the rest, padded with zeros to rank (K - 1) r.
    """
    fan_in, width = whole.a.shape[-2:]
    directions = min(width, fan_in, whole.b.shape[-1])
    every = best_factors(whole, directions)
    missing = width - directions
    rest = LoraFactors(
        a=jnp.pad(every.a[..., rank:], ((0, 0), (0, 0), (0, missing))),
        b=jnp.pad(every.b[:, rank:], ((0, 0), (0, missing), (0, 0))),
    )
    return LoraFactors(a=every.a[..., :rank], b=every.b[:, :rank]), rest


def fedmomentum(config: MethodOptions) -> Algorithm:
    """FedMomentum with the configured adapters; `message_dtype` is the dtype of factors and correction in messages.

    Args:
      config: the options of the run's methods.
    """
    exact, slots, scale = fedex_lora(config), config.clients_per_round, lora_scale(config)

    def finalize(server: Server, sums: Slots) -> tuple[Server, dict[str, jax.Array]]:
        changes, shares = sums.apart()
        lora, increment = {}, {}
        for name, change in changes.items():
            old = server.adapter.lora[name]
            new, rest = parted(stacked(clients_factors(old, change), shares), config.rank)
            moved = changed_layers(change, 1)
            lora[name] = chosen_layers(moved, new, old)
            if slots > 1:
                rest = rest.replace(a=jnp.where(moved[:, None, None], scale * rest.a, 0.0))
                fan_in, width = rest.a.shape[-2:]
                increment[name] = product(rest) if dense_is_smaller(fan_in, rest.b.shape[-1], width) else rest
        increment = in_message_dtype(increment, config.message_dtype)
        step = shared_mean(changes, shares)
        metrics = {"update_norm": optax.tree.norm(step), "residual_norm": residual_norm(increment)}
        correction = server.correction.followed_by(increment)
        return Server(server.adapter.replace(lora=lora), correction, jnp.ones_like(server.due)), metrics

    return dataclasses.replace(
        exact,
        **described("fedmomentum"),
        finalize=finalize,
        weighting="examples",
    )
