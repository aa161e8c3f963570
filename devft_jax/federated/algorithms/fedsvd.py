"""FedSVD (Lee et al., FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA, NeurIPS 2025): FFA-LoRA
whose a follows what b has learned.

Clients train and send b alone beside a common a, so that the mean of b gives the mean of the products, as in FFA-LoRA. After
each round the server decomposes the product,

    b_m = sum_i w_i b_i,    a b_m = U S V^T,    a <- U_r,    b <- S_r V_r^T.

The product does not change, since its rank is at most r; a turns towards the directions in which the model has moved, and
its columns are orthonormal, a^T a = I, which makes the steps of all directions equally large.

The downlink is (a, b), because clients cannot compute a themselves; the uplink is b. In the first round of a run a is LoRA's
draw, as in FFA-LoRA, and b = 0. A change of b is one in the directions of the a of its round, so a channel, which adds to a
message what earlier ones left out, cannot be used. Departures: a layer that no client has changed keeps its factors; the
authors' method is meant for differentially private training, which clips and adds noise to the gradients of b, while here it
is used without.

With a growth, a and b are mapped over layers like FedIT's; fused columns of a are not orthonormal, and are again after the
stage's first round.
"""

import dataclasses

import jax
import optax

from devft_jax.federated.adapters import adapter_of, both_factors, one_factor
from devft_jax.federated.aggregation import WeightedSum, best_factors, changed_layers, chosen_layers, weighted
from devft_jax.federated.algorithm import Algorithm, Participant, as_float32, change_of
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.typing import PyTree


def fedsvd(config: MethodOptions) -> Algorithm:
    """FedSVD with the configured adapters; `message_dtype` is the dtype of factors in messages.

    Args:
      config: the options of the run's methods.
    """

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        lora = as_float32(participant.down)
        return one_factor(lora, "b"), one_factor(lora, "a")

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        return change_of(train, one_factor(participant.down, "b"), config.message_dtype), participant.row

    def finalize(server: Adapter, sums: WeightedSum) -> tuple[Adapter, dict[str, jax.Array]]:
        change = sums.mean()
        lora = {}
        for name, old in server.lora.items():
            new = best_factors(LoraFactors(a=old.a, b=old.b + change[name]), config.rank, split="orthonormal")
            lora[name] = chosen_layers(changed_layers(change[name]), new, old)
        return server.replace(lora=lora), {"update_norm": optax.tree.norm(change)}

    return dataclasses.replace(
        fedit(config),
        **described("fedsvd"),
        start=start,
        adapter=lambda train, frozen: adapter_of(both_factors(frozen, train), config),
        finish=finish,
        contribution=weighted,
        finalize=finalize,
    )
