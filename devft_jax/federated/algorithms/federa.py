"""FeDeRA (Yan et al., FeDeRA: Efficient Fine-tuning of Language Models in Federated Learning Leveraging Weight
Decomposition, arXiv:2404.18848, 2024): FedIT from the principal directions of the weights.

With the singular value decomposition W = U S V^T of every adapted weight, its first r triplets, and s = alpha / r,

    a_0 = U_r (S_r / s)^(1/2),    b_0 = (S_r / s)^(1/2) V_r^T,    W_res = W - s a_0 b_0,

clients start at (a_0, b_0) beside the frozen W_res, so that the model equals the base at first, whatever alpha; the rest is
FedIT. The sign of each triplet is chosen so that its largest entry of U is positive. A weight of lower rank than r has
directions with singular value zero; these begin like LoRA's, with b = 0 and a nonzero, because with two zero factors they
could never learn.

Every client decomposes the same weights, so (a_0, b_0) is not sent. What is sent are a - a_0 and b - b_0, of the size
of FedIT's message: in half precision, rounding a_0 itself would change the model more than a round does. W_res is
represented by W as it is stored, packed or not, and a float32 correction beside it.

No code of the authors was found; the formulas are theirs as reported by others, with s taken out of the factors, which
makes no difference for s = 1.

A run that begins with an adapter has its product in the correction, and so in what the first stage decomposes.

With a growth, each stage decomposes its own frozen weights, and only the learned part s (a b - a_0 b_0) returns to the
layers of a group, as a dense correction: a b itself would put the principal directions of the stage's weight into
each of them. The decomposition, and what a full-depth stage needs of earlier ones (their final factors),
are not counted as messages.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.adapters import adapter_of, initial_adapter, probe
from devft_jax.federated.aggregation import WeightedSum, product
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, as_float32, change_of, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit, mean_change
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.federated.corrections import no_delta
from devft_jax.federated.principal import check_principal_rank, residuals
from devft_jax.models.adapter import LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.options import lora_scale
from devft_jax.typing import PyTree


class Server(struct.PyTreeNode):
    """The factors and the dense correction.

    At full depth between stages both pairs of factors are zero and `delta` has everything that was learned.

    Attributes:
      change: change of the factors since the beginning of the stage.
      initial: the factors at that time.
      delta: W_res - W plus what earlier stages learned, {projection: f32[G, in, out]}.
    """

    change: dict[str, LoraFactors]
    initial: dict[str, LoraFactors]
    delta: dict[str, jax.Array]

    @property
    def lora(self) -> dict[str, LoraFactors]:
        """The current factors."""
        return jax.tree.map(jnp.add, self.initial, self.change)


def federa(config: MethodOptions) -> Algorithm:
    """FeDeRA with the configured adapters.

    `message_dtype` is the dtype of the factors' changes in messages.

    Args:
      config: the options of the run's methods.
    """
    averaging = fedit(config)
    scale = lora_scale(config)

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        adapter = initial_adapter(key, model, config)
        check_principal_rank(config.rank, model, adapter, "federa")
        nothing = jax.tree.map(jnp.zeros_like, adapter.lora)
        return Server(change=nothing, initial=nothing, delta=no_delta(model, tuple(adapter.lora)))

    def enter(server: Server, base: Base) -> Server:
        initial, delta = residuals(base, server.delta, config.rank, scale)
        return server.replace(initial=initial, delta=delta)

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        initial, delta = participant.known
        return jax.tree.map(jnp.add, initial, as_float32(participant.down)), delta

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        since = jax.tree.map(jnp.subtract, train, participant.known[0])
        return change_of(since, participant.down, config.message_dtype), participant.row

    def finalize(server: Server, sums: WeightedSum) -> tuple[Server, dict[str, jax.Array]]:
        step, error = mean_change(sums)
        after = server.replace(change=optax.tree.add(server.change, step))
        learned = jax.tree.map(lambda new, old, lost: new - old + lost, probe(after.lora), probe(server.initial), error)
        size = optax.tree.norm(learned)
        metrics = {
            "update_norm": optax.tree.norm(step),
            "aggregation_error": jnp.where(size > 0, optax.tree.norm(error) / size, 0.0),
        }
        return after, metrics

    def transfer(full: Server, stage: Server, layer_map: LayerMap, mode: str) -> Server:
        learned = {name: leaf + scale * product(stage.lora[name]) for name, leaf in stage.delta.items()}
        return full.replace(delta=inherit(layer_map, learned, full.delta, mode="delta"))

    return dataclasses.replace(
        averaging,
        **described("federa"),
        init_server=init_server,
        broadcast=lambda server: in_message_dtype(server.change, config.message_dtype),
        start=start,
        adapter=lambda train, frozen: adapter_of(train, config, frozen),
        finish=finish,
        finalize=finalize,
        view=lambda server: adapter_of(server.lora, config, server.delta),
        submodel=lambda server, layer_map: fuse(layer_map, server),
        transfer=transfer,
        enter=enter,
        start_from=lambda server, start: server.replace(delta=start.products(server.delta)),
        known=lambda server: (server.initial, server.delta),
        principal=False,
    )
