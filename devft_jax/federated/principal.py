"""Factors that begin at the principal directions of the weights (PiSSA: Meng et al., PiSSA: Principal Singular Values and
Singular Vectors Adaptation of Large Language Models, NeurIPS 2024), for any algorithm.

With the singular value decomposition W = U S V^T of every adapted weight, its first r triplets, and the scale s,

    a_0 = U_r (S_r / s)^(1/2),    b_0 = (S_r / s)^(1/2) V_r^T,    W_res = W - s a_0 b_0.

`from_principal_directions` wraps an algorithm so that its adapter begins at (a_0, b_0) beside the frozen W_res: the model is
the base at first, whatever the scale, and all else is the algorithm's own. Every client decomposes the same weights, so
W_res is not sent; it is represented by W as it is stored, packed or not, and a float32 correction beside it. `federa` is
FedIT with this initialisation, and sends changes of the factors instead of the factors, for messages in 16 bits.

A stage decomposes its own frozen weights, in which the corrections of earlier stages are fused, and its algorithm begins
anew there. Only what the stage has learned returns, s (a b - a_0 b_0) and the algorithm's own corrections, as a dense
correction of every layer of a group: a b itself would put the principal directions of the stage's weight into each of them.
A run that begins with an adapter has its product as such a correction before the first stage.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.errors import InputError
from devft_jax.federated.aggregation import best_factors_of_layer, product
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, own_traits
from devft_jax.federated.corrections import no_delta
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.options import LoraOptions, lora_scale
from devft_jax.models.weights import dense_weight
from devft_jax.typing import PyTree


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      inner: the algorithm's own state; at full depth always its first one, whose adapter adds nothing.
      delta: W_res - W plus what earlier stages learned, {projection: f32[G, in, out]}; at full depth what was learned.
    """

    inner: PyTree
    delta: dict[str, jax.Array]


@functools.partial(jax.jit, static_argnames=("rank", "scale"))
def principal_factors(weights: Any, delta: jax.Array, rank: int, scale: float) -> LoraFactors:
    """a_0 and b_0 of weights with a correction, computed layer by layer.

    Args:
      weights: [L, in, out], floats or packed.
      delta: f32[L, in, out], the weights' correction.
      rank: r.
      scale: s.
    """

    def one(layer: tuple[Any, jax.Array]) -> LoraFactors:
        weight, correction = layer
        return best_factors_of_layer(dense_weight(weight, jnp.float32) + correction, rank, scale)

    return jax.lax.map(one, (weights, delta))


def residuals(
    base: Base, delta: dict[str, jax.Array], rank: int, scale: float
) -> tuple[dict[str, LoraFactors], dict[str, jax.Array]]:
    """a_0 and b_0 of a stage's weights with their corrections, and the corrections less s a_0 b_0.

    Args:
      base: the stage's frozen weights.
      delta: f32[G, in, out] of every adapted projection.
      rank: r.
      scale: s.
    """
    initial = {name: principal_factors(getattr(base.blocks, name), leaf, rank, scale) for name, leaf in delta.items()}
    return initial, {name: leaf - scale * product(initial[name]) for name, leaf in delta.items()}


def check_principal_rank(rank: int, model: ModelConfig, adapter: Adapter, user: str) -> None:
    """Raise `InputError` if a projection has fewer singular values than the rank.

    Args:
      rank: r.
      model: the architecture of the model.
      adapter: has the adapted projections.
      user: what uses the singular values, for the message.
    """
    for name in adapter.lora:
        most = min(model.projection_shape(name))
        if rank > most:
            raise InputError(
                f"rank {rank} exceeds the {most} singular values of projection '{name}', of which {user} uses the "
                "largest; lower the rank."
            )


def with_factors(state: PyTree, lora: dict[str, LoraFactors]) -> PyTree:
    """An algorithm's state whose adapter has other factors.

    Args:
      state: a state with one adapter.
      lora: the factors, of the shapes of the adapter's.
    """

    def one(node: Any) -> Any:
        return node.replace(lora=lora) if isinstance(node, Adapter) else node

    return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, Adapter))


def _require_one_adapter(algorithm: Algorithm, inner: PyTree, rank: int) -> None:
    """Raise `InputError` unless a state has one adapter of low-rank factors [L, in, r], [L, r, out]."""
    nodes = jax.tree.leaves(inner, is_leaf=lambda node: isinstance(node, Adapter))
    adapters = [node for node in nodes if isinstance(node, Adapter) and node.lora]
    factors = [each for adapter in adapters for each in adapter.lora.values()]
    if len(adapters) != 1 or any(each.a.ndim != 3 or each.a.shape[-1] != rank for each in factors):
        raise _unfit(algorithm)


def _check_fit(algorithm: Algorithm, message_dtype: str) -> None:
    """Raise `InputError` for an algorithm or messages that do not allow principal directions."""
    if not algorithm.principal or algorithm.personal is not None:
        raise _unfit(algorithm)
    if message_dtype != "float32":
        raise InputError(
            f"message_dtype {message_dtype} would round the principal directions, which changes the model more than a "
            "round does; use --message-dtype float32, or --algorithm federa, whose messages are changes."
        )


def _unfit(algorithm: Algorithm) -> InputError:
    return InputError(
        f"initialization pissa needs an algorithm whose clients all start from one adapter of the server, and "
        f"{algorithm.name} is none; use --initialization lora, or another algorithm."
    )


def from_principal_directions(algorithm: Algorithm, options: LoraOptions, message_dtype: str) -> Algorithm:
    """An algorithm whose adapter begins at the principal directions of the weights.

    Args:
      algorithm: any algorithm whose state has one adapter, from which all clients start.
      options: the adapter's options.
      message_dtype: dtype of messages.

    Raises:
      InputError: the algorithm has no such adapter, or messages are rounded.
    """
    _check_fit(algorithm, message_dtype)
    scale = lora_scale(options)

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        inner = algorithm.init_server(key, model, clients)
        _require_one_adapter(algorithm, inner, options.rank)
        adapter = algorithm.view(inner)
        check_principal_rank(options.rank, model, adapter, "pissa")
        return Server(inner, no_delta(model, tuple(adapter.lora)))

    def enter(server: Server, base: Base) -> Server:
        initial, delta = residuals(base, server.delta, options.rank, scale)
        return Server(algorithm.enter(with_factors(server.inner, initial), base), delta)

    def own(participant: Participant) -> Participant:
        return participant.replace(known=participant.known[0])

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        train, frozen = algorithm.start(own(participant))
        return train, (frozen, participant.known[1])

    def finalize(server: Server, sums: PyTree) -> tuple[Server, dict[str, jax.Array]]:
        inner, metrics = algorithm.finalize(server.inner, sums)
        return server.replace(inner=inner), metrics

    def transfer(full: Server, stage: Server, layer_map: LayerMap, mode: str) -> Server:
        adapter = view(stage)
        learned = {name: leaf + scale * product(adapter.lora[name]) for name, leaf in adapter.delta.items()}
        return full.replace(delta=inherit(layer_map, learned, full.delta, mode="delta"))

    def view(server: Server) -> Adapter:
        return _corrected(algorithm.view(server.inner), server.delta)

    rows: dict[str, Any] = {}
    if algorithm.init_row is not own_traits:
        rows = {"init_row": lambda server, trait: algorithm.init_row(server.inner, trait)}
    return dataclasses.replace(
        algorithm,
        state=f"{algorithm.state}; from the weights' principal directions: a dense correction of every adapted weight",
        init_server=init_server,
        enter=enter,
        broadcast=lambda server: algorithm.broadcast(server.inner),
        known=lambda server: (algorithm.known(server.inner), server.delta),
        start=start,
        adapter=lambda train, frozen: _corrected(algorithm.adapter(train, frozen[0]), frozen[1]),
        penalty=lambda train, frozen: algorithm.penalty(train, frozen[0]),
        optimizer=lambda rule, frozen, rate: algorithm.optimizer(rule, frozen[0], rate),
        finish=lambda participant, train: algorithm.finish(own(participant), train),
        finalize=finalize,
        view=view,
        submodel=lambda full, layer_map: Server(algorithm.submodel(full.inner, layer_map), fuse(layer_map, full.delta)),
        transfer=transfer,
        start_from=lambda server, start: server.replace(delta=start.products(server.delta)),
        **rows,
    )


def _corrected(adapter: Adapter, delta: dict[str, jax.Array]) -> Adapter:
    """An adapter with one more dense correction."""
    return adapter.replace(delta={name: leaf + adapter.delta.get(name, 0.0) for name, leaf in delta.items()})
