"""Factors that begin at directions of the weights or of the loss's gradient, for any algorithm.

`from_directions` wraps an algorithm so that its adapter begins at factors (a_0, b_0) beside the frozen W_0 = W - s a_0 b_0:
the model is the base at first, whatever the scale, and all else is the algorithm's own. The factors are the principal
directions of every adapted weight (`devft_jax.federated.principal`) or of the loss's gradient with respect to it
(`devft_jax.federated.gradient_directions`). Every client computes them from what it knows, so W_0 is not sent; it is
represented by W as it is stored, packed or not, and a float32 correction beside it.

A stage takes the directions of its own frozen weights, in which the corrections of earlier stages are fused, and its
algorithm begins anew there. Only what the stage has learned returns, s (a b - a_0 b_0) and the algorithm's own
corrections, as a dense correction of every layer of a group: a b itself would put the directions of the stage's weight into
each of them. A run that begins with an adapter has its product as such a correction before the first stage.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.errors import InputError
from devft_jax.federated.aggregation import product
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, own_traits, same_server
from devft_jax.federated.corrections import no_delta
from devft_jax.federated.gradient_directions import check_gradient_rank, initial_factors
from devft_jax.federated.principal import check_principal_rank, residuals
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.models.options import LoraOptions, lora_scale
from devft_jax.typing import PyTree

DIRECTIONS = {"pissa": "principal directions", "lora-ga": "gradient's directions"}
"""What the factors begin at, by the initialisation's name."""


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      inner: the algorithm's own state; at full depth always its first one, whose adapter adds nothing.
      delta: W_0 - W plus what earlier stages learned, {projection: f32[G, in, out]}; at full depth what was learned.
    """

    inner: PyTree
    delta: dict[str, jax.Array]


def with_factors(state: PyTree, lora: dict[str, LoraFactors]) -> PyTree:
    """An algorithm's state whose adapter has other factors.

    Args:
      state: a state with one adapter.
      lora: the factors, of the shapes of the adapter's.
    """

    def one(node: Any) -> Any:
        return node.replace(lora=lora) if isinstance(node, Adapter) else node

    return jax.tree.map(one, state, is_leaf=lambda node: isinstance(node, Adapter))


def _has_one_adapter(inner: PyTree, rank: int) -> bool:
    """Whether a state has one adapter of low-rank factors [L, in, r], [L, r, out]."""
    nodes = jax.tree.leaves(inner, is_leaf=lambda node: isinstance(node, Adapter))
    adapters = [node for node in nodes if isinstance(node, Adapter) and node.lora]
    factors = [each for adapter in adapters for each in adapter.lora.values()]
    return len(adapters) == 1 and all(each.a.ndim == 3 and each.a.shape[-1] == rank for each in factors)


def _check_fit(algorithm: Algorithm, initialization: str, message_dtype: str) -> None:
    """Raise `InputError` for an algorithm or messages that do not allow other first factors."""
    if not algorithm.principal or algorithm.personal is not None or algorithm.orient is not None:
        raise _unfit(algorithm, initialization)
    if message_dtype != "float32":
        instead = ", or --algorithm federa, whose messages are changes" if initialization == "pissa" else ""
        raise InputError(
            f"message_dtype {message_dtype} would round the {DIRECTIONS[initialization]}, which changes the model more than "
            f"a round does; use --message-dtype float32{instead}."
        )


def _check_rank(options: LoraOptions, model: ModelConfig, adapter: Adapter) -> None:
    """Raise `InputError` if a projection has fewer directions than are used."""
    if options.initialization == "pissa":
        check_principal_rank(options.rank, model, adapter, "pissa")
    else:
        check_gradient_rank(options.rank, model, adapter)


def _unfit(algorithm: Algorithm, initialization: str) -> InputError:
    return InputError(
        f"initialization {initialization} needs an algorithm whose clients all start from one adapter of the server, and "
        f"{algorithm.name} is none; use --initialization lora, or another algorithm."
    )


def _beginning(algorithm: Algorithm, kind: str, rank: int, scale: float) -> dict[str, Any]:
    """The functions that complete a stage's state, for `Algorithm`."""

    def from_weights(server: Server, base: Base) -> Server:
        initial, delta = residuals(base, server.delta, rank, scale)
        return Server(algorithm.enter(with_factors(server.inner, initial), base), delta)

    def from_gradient(server: Server, gradient: Mapping[str, Any]) -> Server:
        initial = initial_factors(gradient, rank)
        delta = {name: leaf - scale * product(initial[name]) for name, leaf in server.delta.items()}
        return Server(with_factors(server.inner, initial), delta)

    def enter(server: Server, base: Base) -> Server:
        return server.replace(inner=algorithm.enter(server.inner, base))

    if kind == "pissa":
        return {"enter": from_weights}
    return {"enter": same_server if algorithm.enter is same_server else enter, "orient": from_gradient}


def from_directions(algorithm: Algorithm, options: LoraOptions, message_dtype: str) -> Algorithm:
    """An algorithm whose adapter begins at the directions that `initialization` names.

    Args:
      algorithm: any algorithm whose state has one adapter, from which all clients start.
      options: the adapter's options.
      message_dtype: dtype of messages.

    Raises:
      InputError: the algorithm has no such adapter, or messages are rounded.
    """
    kind = options.initialization
    _check_fit(algorithm, kind, message_dtype)
    scale, rank = lora_scale(options), options.rank

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        inner = algorithm.init_server(key, model, clients)
        if not _has_one_adapter(inner, rank):
            raise _unfit(algorithm, kind)
        adapter = algorithm.view(inner)
        _check_rank(options, model, adapter)
        return Server(inner, no_delta(model, tuple(adapter.lora)))

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
        state=f"{algorithm.state}; from the {DIRECTIONS[kind]}: a dense correction of every adapted weight",
        init_server=init_server,
        **_beginning(algorithm, kind, rank, scale),
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
