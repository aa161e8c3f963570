"""FedEx-LoRA (Singhal et al., FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language
Models, ACL 2025): FedIT with its aggregation error added to the frozen weights.

With a_m, b_m the means over a round's K participants, and C their covariance,

    sum_i w_i a_i b_i = a_m b_m + C,    C = sum_i w_i (a_i - a_m)(b_i - b_m),

the server takes a <- a_m, b <- b_m, and W + D is corrected by D <- D + s C: the aggregation is exact. C has at most rank
(K - 1) r, with explicit factors, since sum_i w_i (a_i - a_m) = 0:

    C = sum_{i < K} w_i (a_i - a_m)(b_i - b_K).

The downlink is (a, b) and the residual s C of the previous round, as these factors or dense, whichever is smaller for the
projection's shape. The residual is an increment of what clients have, so a client that missed rounds needs every residual of
them. The first round of a run has none, nor has the first of a stage that fuses layers. Means are uniform, as in the
authors' code.

The aggregation is exact with float32 messages. In 16 bits the residual is rounded, and it belongs to the factors from which
the clients started, the rounded (a, b), while the server adds the mean of their changes to (a, b) itself.

That code adds the residual transposed, which is right for weights stored [in, out] and wrong for the others, but unnoticed
if these are square. The authors change the weights themselves; here D stays in float32 beside them, because repacking the
weights would lose changes that are small relative to their precision.

With a growth, a and b are mapped over layers like FedIT's; D is fused like the layers that it corrects, and each of them
gets the change of the stage back.
"""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.developmental import LayerMap
from devft_jax.federated.adapters import adapter_of, initial_adapter, returned_adapter, stage_adapter
from devft_jax.federated.aggregation import Slots, in_slot, product, shared_mean, stacked, zero_factors
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, as_float32, change_of, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.federated.corrections import (
    Correction,
    corrected,
    keeps_increment,
    no_delta,
    returned_correction,
    stage_correction,
)
from devft_jax.federated.messages import Due
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.lora import adapter_norms
from devft_jax.models.options import lora_scale
from devft_jax.typing import PyTree


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      adapter: the adapter of the means.
      correction: its increment is the last residual; there is none with one participant.
      due: bool[], whether there is a residual that has not been sent yet.
    """

    adapter: Adapter
    correction: Correction
    due: jax.Array


def covariance(factors: LoraFactors, shares: jax.Array) -> LoraFactors:
    """C of clients' factors, or of their changes, as factors of rank (K - 1) r.

    The last client's own term is left out. It is zero because b_K - b_K is, or, if its slot is empty, because w_K is.

    Args:
      factors: [K, L, in, r], [K, L, r, out].
      shares: w, f32[K].
    """
    weights = shares[:, None, None, None]
    apart = LoraFactors(
        a=(factors.a - jnp.sum(weights * factors.a, axis=0, keepdims=True))[:-1], b=factors.b[:-1] - factors.b[-1:]
    )
    return stacked(apart, shares[:-1])


def dense_is_smaller(fan_in: int, fan_out: int, width: int) -> bool:
    """Whether a matrix [in, out] has fewer elements than its factors of rank `width`.

    Args:
      fan_in: inputs of the weight.
      fan_out: outputs of the weight.
      width: the rank.
    """
    return fan_in * fan_out < width * (fan_in + fan_out)


def no_residual(shape: tuple[int, ...], width: int) -> LoraFactors | jax.Array:
    """The residual before the first round, zero, in the form in which residuals are sent.

    Args:
      shape: (L, in, out) of the projection.
      width: (K - 1) r, the rank of a residual.
    """
    _, fan_in, fan_out = shape
    return jnp.zeros(shape, jnp.float32) if dense_is_smaller(fan_in, fan_out, width) else zero_factors(shape, width)


def residual(factors: LoraFactors, shares: jax.Array, scale: float) -> LoraFactors | jax.Array:
    """s C of clients' factors, dense or in low rank, whichever is smaller.

    Args:
      factors: [K, L, in, r], [K, L, r, out].
      shares: w, f32[K].
      scale: s.
    """
    found = covariance(factors, shares)
    scaled = found.replace(a=scale * found.a)
    fan_in, width = found.a.shape[-2:]
    return product(scaled) if dense_is_smaller(fan_in, found.b.shape[-1], width) else scaled


def residual_norm(increment: dict[str, LoraFactors | jax.Array]) -> jax.Array:
    """Frobenius norm of a residual over all layers and projections, f32[].

    Args:
      increment: the residual by projection, dense or in low rank.
    """
    wide = as_float32(increment)
    factors = {name: leaf for name, leaf in wide.items() if isinstance(leaf, LoraFactors)}
    dense = {name: leaf for name, leaf in wide.items() if name not in factors}
    if not wide:
        return jnp.float32(0.0)
    return jnp.linalg.norm(adapter_norms(Adapter(lora=factors, scale=jnp.float32(1.0), delta=dense)))


def submodel(full: Server, layer_map: LayerMap) -> Server:
    """The stage's state: the last residual is still sent if the stage's layers are the model's own.

    Args:
      full: the server at full depth.
      layer_map: the stage's map.
    """
    due = full.due if keeps_increment(layer_map) else jnp.zeros_like(full.due)
    return Server(stage_adapter(full.adapter, layer_map), stage_correction(full.correction, layer_map), due)


def transfer(full: Server, stage: Server, layer_map: LayerMap, mode: str) -> Server:
    """The state at full depth after a stage.

    Args:
      full: the server at full depth before the stage.
      stage: the stage's server after training.
      layer_map: the stage's map.
      mode: mode of `inherit`.
    """
    adapter = returned_adapter(full.adapter, stage.adapter, layer_map, mode)
    return Server(adapter, returned_correction(full.correction, stage.correction, layer_map), stage.due)


def fedex_lora(config: MethodOptions) -> Algorithm:
    """FedEx-LoRA with the configured adapters.

    `message_dtype` is the dtype of factors and residual in messages. K is `clients_per_round`.

    Args:
      config: the options of the run's methods.
    """
    slots, scale = config.clients_per_round, lora_scale(config)

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        adapter = initial_adapter(key, model, config)
        delta = no_delta(model, tuple(adapter.lora))
        width = (slots - 1) * config.rank
        increment = {name: no_residual(leaf.shape, width) for name, leaf in delta.items()} if slots > 1 else {}
        return Server(adapter, Correction(delta, in_message_dtype(increment, config.message_dtype)), jnp.zeros((), bool))

    def broadcast(server: Server) -> PyTree:
        lora = in_message_dtype(server.adapter.lora, config.message_dtype)
        return lora, Due(server.correction.increment, server.due)

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        lora, increment = participant.down
        return as_float32(lora), corrected(participant.known, increment.value)

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        return change_of(train, participant.down[0], config.message_dtype), participant.row

    def finalize(server: Server, sums: Slots) -> tuple[Server, dict[str, jax.Array]]:
        clients, shares = sums.apart()
        change = shared_mean(clients, shares)
        lora = optax.tree.add(server.adapter.lora, change)
        increment = {name: residual(factors, shares, scale) for name, factors in clients.items()} if slots > 1 else {}
        increment = in_message_dtype(increment, config.message_dtype)
        metrics = {"update_norm": optax.tree.norm(change), "residual_norm": residual_norm(increment)}
        correction = server.correction.followed_by(increment)
        return Server(server.adapter.replace(lora=lora), correction, jnp.ones_like(server.due)), metrics

    return Algorithm(
        **described("fedex-lora"),
        init_server=init_server,
        broadcast=broadcast,
        start=start,
        adapter=lambda train, frozen: adapter_of(train, config, frozen),
        finish=finish,
        contribution=lambda up, share: in_slot(up, share, slots),
        finalize=finalize,
        view=lambda server: server.adapter.replace(delta=server.correction.total()),
        submodel=submodel,
        transfer=transfer,
        known=lambda server: server.correction.delta,
        weighting="uniform",
        cumulative=lambda down: down[1],
    )
