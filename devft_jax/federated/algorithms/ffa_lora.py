"""FFA-LoRA (Sun et al., Improving LoRA in Privacy-preserving Federated Learning, ICLR 2024): a is frozen.

Every client draws the same a from the run's seed and never trains it; only b is trained, sent and averaged:

    b <- sum_i w_i b_i,    so that    sum_i w_i a b_i = a sum_i w_i b_i,

the mean of the products, exactly and for any weights. a is drawn as for any other method (`ffa_initialisation` uniform), or
replaced by an orthonormal basis of the same columns (orthonormal, a^T a = I), which makes the steps of all directions
equally large. Half of the adapter does not learn, so the method needs a larger rank or learning rate than FedIT.

With a growth, a is fused and returned with b, because b has no meaning without it. It follows from the seed and the
stages' groups, and is not sent. Factors are not rotated towards each other before they are fused, because a would
then depend on every layer's b, which only the server knows.
"""

import jax
import jax.numpy as jnp
import optax

from devft_jax.developmental import fuse
from devft_jax.errors import InputError
from devft_jax.federated.adapters import adapter_of, both_factors, initial_adapter, one_factor, returned_adapter
from devft_jax.federated.aggregation import WeightedSum, weighted
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, as_float32, change_of, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.options import FFALoraOptions
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.typing import PyTree


def orthonormal(name: str, a: jax.Array) -> jax.Array:
    """An orthonormal basis of the columns of every layer's a.

    Args:
      name: name of the projection.
      a: [L, in, r].

    Raises:
      InputError: r exceeds the inputs.
    """
    fan_in, rank = a.shape[-2:]
    if rank > fan_in:
        raise InputError(
            f"rank {rank} exceeds the {fan_in} inputs of projection '{name}', whose a cannot have orthonormal columns; "
            "lower the rank, or set ffa_initialisation to uniform."
        )
    return jnp.linalg.qr(a)[0]


def ffa_lora(config: FFALoraOptions) -> Algorithm:
    """FFA-LoRA with the configured adapters; `message_dtype` is the dtype of b in messages.

    Args:
      config: the options of the run's methods.
    """

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Adapter:
        adapter = initial_adapter(key, model, config)
        if config.ffa_initialisation == "uniform":
            return adapter
        lora = {name: factors.replace(a=orthonormal(name, factors.a)) for name, factors in adapter.lora.items()}
        return adapter.replace(lora=lora)

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return as_float32(participant.down), participant.known

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        return change_of(train, participant.down, config.message_dtype), participant.row

    def finalize(server: Adapter, sums: WeightedSum) -> tuple[Adapter, dict[str, jax.Array]]:
        change = sums.mean()
        b = optax.tree.add(one_factor(server.lora, "b"), change)
        lora = both_factors(one_factor(server.lora, "a"), b)
        return server.replace(lora=lora), {"update_norm": optax.tree.norm(change)}

    return Algorithm(
        **described("ffa-lora"),
        init_server=init_server,
        broadcast=lambda server: in_message_dtype(one_factor(server.lora, "b"), config.message_dtype),
        start=start,
        adapter=lambda train, frozen: adapter_of(both_factors(frozen, train), config),
        finish=finish,
        contribution=weighted,
        finalize=finalize,
        view=lambda server: server,
        submodel=lambda server, layer_map: server.replace(lora=fuse(layer_map, server.lora)),
        transfer=returned_adapter,
        known=lambda server: one_factor(server.lora, "a"),
    )
