"""LoRA-FAIR (Bian et al., LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement, ICCV 2025):
FedIT with b corrected towards the mean of the products.

With a_m, b_m the means over a round's participants, and X = sum_i w_i a_i b_i = a_m b_m + C (C as in FedEx-LoRA), the server
keeps a_m and adds to b_m the d that minimises

    ||X - a_m (b_m + d)||_F^2 + lambda ||d||_F^2,    d = (a_m^T a_m + lambda I)^-1 a_m^T C,

with lambda = `fair_penalty`; a <- a_m, b <- b_m + d. Only the part of C in the column space of a_m can be recovered. The
error is never larger than FedIT's, which is d = 0, the limit of a large lambda; with a lambda near zero d can be large.

Departure: the paper minimises a dissimilarity of the two products, a cosine, by gradient steps; no code of the authors was
found, and we use the squared error, whose minimum is the closed form above (one r x r system per layer and projection).

Messages are FedIT's. The server needs all messages of a round at once, K times the adapter. `aggregation_error` is the
relative size of what remains of the error. With a growth the adapter is mapped over layers like FedIT's; nothing else is
kept.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from devft_jax.federated.aggregation import Slots, in_slot, shared_mean
from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedex_lora import covariance
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import LoraFairOptions
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.lora import factor_norm


def correction_of_b(a: jax.Array, error: LoraFactors, penalty: float) -> jax.Array:
    """d of every layer, f32[L, r, out].

    Args:
      a: the mean factor, f32[L, in, r].
      error: C, as factors [L, in, q], [L, q, out].
      penalty: lambda.
    """
    gram = jnp.einsum("lir,lis->lrs", a, a, precision="highest")
    across = jnp.einsum("lir,liq->lrq", a, error.a, precision="highest")
    wanted = jnp.einsum("lrq,lqo->lro", across, error.b, precision="highest")
    return jnp.linalg.solve(gram + penalty * jnp.eye(gram.shape[-1], dtype=jnp.float32)[None], wanted)


def side_by_side(one: LoraFactors, other: LoraFactors) -> LoraFactors:
    """Factors of the sum of two products.

    Args:
      one: [L, in, q], [L, q, out].
      other: [L, in, r], [L, r, out].
    """
    return LoraFactors(a=jnp.concatenate([one.a, other.a], axis=-1), b=jnp.concatenate([one.b, other.b], axis=-2))


def lora_fair(config: LoraFairOptions) -> Algorithm:
    """LoRA-FAIR with the configured adapters and `fair_penalty`; K is `clients_per_round`.

    Args:
      config: the options of the run's methods.
    """
    averaging, slots = fedit(config), config.clients_per_round

    def finalize(server: Adapter, sums: Slots) -> tuple[Adapter, dict[str, jax.Array]]:
        changes, shares = sums.apart()
        step = shared_mean(changes, shares)
        mean = optax.tree.add(server.lora, step)
        lora, error, product = {}, {}, {}
        for name, factors in mean.items():
            lost = covariance(changes[name], shares)
            shift = correction_of_b(factors.a, lost, config.fair_penalty)
            lora[name] = factors.replace(b=factors.b + shift)
            error[name] = side_by_side(lost, LoraFactors(a=factors.a, b=-shift))
            product[name] = side_by_side(lost, factors)
        size = factor_norm(product)
        metrics = {
            "update_norm": optax.tree.norm(optax.tree.sub(lora, server.lora)),
            "aggregation_error": jnp.where(size > 0, factor_norm(error) / size, 0.0),
        }
        return server.replace(lora=lora), metrics

    return dataclasses.replace(
        averaging,
        **described("lora-fair"),
        contribution=lambda up, share: in_slot(up, share, slots),
        finalize=finalize,
    )
