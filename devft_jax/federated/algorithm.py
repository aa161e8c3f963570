"""A federated algorithm as a record of pure functions over two pytrees, written like an optax transform.

`Server` is the one global state, `Bank` the state that clients keep between rounds (every leaf leads with the number of
clients N; most algorithms keep none and use `{}`). One round is

    down          = broadcast(server)                               the downlink message
    train, frozen = start(down, row)                                per client, under vmap
    train         = local training on adapter(train, frozen)
    up, row       = finish(down, train, row)                        the uplink message
    sums         += contribution(up, weight)                        over clients, devices and chunks
    server        = finalize(server, sums)

`down` and `up` are exactly what travels: their leaves' sizes are the bytes that are reported. Aggregation is a plain sum
of contributions, so it streams over chunks of clients and over devices in any order; `finalize` divides by the weight that
the sums carry. At a stage change `submodel` carries the full-depth server state into the new stage's submodel, and
`transfer` brings what the stage learned back to every layer; `submodel_row` and `transfer_row` do the same for what each
client keeps, without a message.

What is judged is `view(server)`, the one global model, or, where an algorithm gives `personal`, every client's own model
`personal(server, row)`: all of them on the same held-out data, as the mean and the spread over clients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from devft_jax.developmental import LayerMap
from devft_jax.models.llama import Adapter, ModelConfig

PyTree = Any


def no_bank(num_clients: int, server: PyTree) -> PyTree:
    """The bank of an algorithm whose clients remember nothing."""
    return {}


def same_row(row: PyTree, layer_map: LayerMap) -> PyTree:
    """The row of a stage where nothing in it belongs to a layer."""
    return row


def newest_row(full: PyTree, stage: PyTree, layer_map: LayerMap, mode: str) -> PyTree:
    """The row after a stage where nothing in it belongs to a layer."""
    return stage


@dataclass(frozen=True)
class Algorithm:
    """The record; every function is pure and traceable.

    Attributes:
      name: what the command line calls it.
      reference: paper and year.
      message: what travels, for `devft list`.
      init_server: (key, model config) -> Server at full depth.
      broadcast: Server -> Down, in the dtype in which it travels.
      start: (Down, Row) -> (train, frozen): what a client optimises and what it only uses.
      adapter: (train, frozen) -> Adapter for the forward pass.
      finish: (Down, train, Row) -> (Up, Row).
      contribution: (Up, weight f32[]) -> Sums, linear in the weight, accumulated in float32.
      finalize: (Server, Sums) -> (Server, metrics: dict of f32[]). The summed weight is positive.
      view: Server -> Adapter, the global model that is evaluated and exported; where models are personal, the part that
        the server knows. Growth sees its layers.
      submodel: (Server at full depth, LayerMap) -> Server of the stage.
      transfer: (Server at full depth, Server of the stage, LayerMap, mode) -> Server at full depth.
      init_bank: (number of clients, Server at full depth) -> Bank at full depth.
      submodel_row: (Row at full depth, LayerMap) -> Row of the stage.
      transfer_row: (Row at full depth, Row of the stage, LayerMap, mode) -> Row at full depth.
      personal: (Server, Row) -> Adapter, a client's own model, of a stage or at full depth; None where the global model is
        what clients use.
      pools: whether one participant holds all clients' examples and trains a round's steps of all its clients one after
        the other. It is the server itself, so nothing travels and no byte is counted.
    """

    name: str
    reference: str
    message: str
    init_server: Callable[[jax.Array, ModelConfig], PyTree]
    broadcast: Callable[[PyTree], PyTree]
    start: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    adapter: Callable[[PyTree, PyTree], Adapter]
    finish: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]]
    contribution: Callable[[PyTree, jax.Array], PyTree]
    finalize: Callable[[PyTree, PyTree], tuple[PyTree, dict[str, jax.Array]]]
    view: Callable[[PyTree], Adapter]
    submodel: Callable[[PyTree, LayerMap], PyTree]
    transfer: Callable[[PyTree, PyTree, LayerMap, str], PyTree]
    init_bank: Callable[[int, PyTree], PyTree] = no_bank
    submodel_row: Callable[[PyTree, LayerMap], PyTree] = same_row
    transfer_row: Callable[[PyTree, PyTree, LayerMap, str], PyTree] = newest_row
    personal: Callable[[PyTree, PyTree], Adapter] | None = None
    pools: bool = False


def message_bytes(message: PyTree) -> int:
    """Bytes of a message: the sizes of its leaves in the dtype in which it travels."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(message))


def as_float32(tree: PyTree) -> PyTree:
    """Every leaf in float32: low-rank factors train and accumulate in it whatever the message's dtype."""
    return jax.tree.map(lambda leaf: leaf.astype("float32"), tree)
