"""A federated algorithm as a record of pure functions over two pytrees, written like an optax transform.

`Server` is the one global state, `Row` is what a client keeps between rounds (most algorithms keep nothing and use `{}`); a
client's first row is `init_row(server, trait)`, made when it first takes part, from the server's first state and the
client's own part of `traits(clients)`. One round is

    down          = broadcast(server)                               the downlink message
    known         = known(server)                                   what every client has without a message
    participant   = a client with its message, its row, its key     per client, under vmap
    train, frozen = start(participant)
    train         = local training on adapter(train, frozen), its loss with penalty(train, frozen) added,
                    by optimizer(the run's optimiser, frozen, learning rate)
    up, row       = finish(participant, train)                      the uplink message
    sums         += contribution(up, share)                         over clients, devices and chunks
    server        = finalize(server, sums)

`address(down, row)` and `up` are exactly what is sent to and from one client: the sizes of their leaves are the reported
bytes. `known` is for what a client computes itself, from the seed, from the stage's groups or from earlier messages;
an algorithm that needs every earlier message for that declares which part of it, `cumulative`, and is
charged for those parts of the messages that returning clients have missed. Aggregation is a plain sum of contributions, so
it can be streamed over chunks of clients and over devices in any order; `finalize` divides by the weight in the sums.

What a client trains is sent as its difference from what the client received (`change_of`), and the server adds the mean
difference to its own float32 state, never to what it had sent. A step far below the precision of a message's dtype is
therefore sent with all its digits and kept, and small steps add up until they show in the rounded downlink, at the bytes of
whole factors. Clients start from the rounded downlink, which both sides know, also after a client has missed rounds.

A method whose server needs its participants' messages separately puts each into its own slot of the sums (`Share.slot`),
whose memory then grows with the cohort.

At a stage change `submodel` maps the full-depth server state to the new stage's submodel, `orient` and `enter` complete it
from the gradient of the loss and from the stage's frozen weights if a method uses them, and `transfer` maps what the stage
learned back to every layer; `submodel_row` and `transfer_row` do the same for what each client keeps, without a message.

The evaluated model is `view(server)`, the one global model; or, if an algorithm has `personal`, every client's own model
`personal(server, row)`, all of them on the same held-out data, reported as mean and spread over clients. `consensus` is then
the one model that represents all of theirs, if there is one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from devft_jax.developmental import LayerMap
from devft_jax.federated.description import Description
from devft_jax.federated.warm_start import WarmStart, with_factors
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base
from devft_jax.typing import PyTree


class Participant(struct.PyTreeNode):
    """A client at the start of its round.

    Attributes:
      down: the message that it received.
      known: what it knows without a message.
      row: what it has kept.
      key: random key of the algorithm; training uses another key for dropout.
      learning_rate: f32[], learning rate of the round.
      steps: the local steps that it will take: S, or i32[] where clients may take fewer than others.
    """

    down: PyTree
    known: PyTree
    row: PyTree
    key: jax.Array
    learning_rate: jax.Array
    steps: int | jax.Array = struct.field(pytree_node=False)


class Share(struct.PyTreeNode):
    """The weight and slot of a message in the aggregation.

    Attributes:
      weight: f32[], such as the client's number of examples; positive, and zero for the padding of a chunk.
      slot: i32[], the client's place in the cohort, 0 to K - 1.
    """

    weight: jax.Array
    slot: jax.Array

    @property
    def count(self) -> jax.Array:
        """f32[]: one for a participant and zero for padding, for sums over clients in which all count equally."""
        return jnp.where(self.weight > 0, 1.0, 0.0)


@dataclass(frozen=True)
class Clients:
    """The population, as far as an algorithm may inspect it before training.

    Attributes:
      size: N.
      domains: (J) -> i32[N], a division of the clients into J groups by their instructions.
      histograms: (C) -> f32[N, C], the shares of each client's examples in C clusters of instructions.

    Without data, as in a plan, only their number is known: clients are then assigned to the groups in turn, and their
    histograms are uniform.
    """

    size: int
    domains: Callable[[int], np.ndarray] = field(default=None)  # type: ignore[assignment]
    histograms: Callable[[int], np.ndarray] = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Fill in what is known without data."""
        if self.domains is None:
            object.__setattr__(self, "domains", lambda count: np.arange(self.size, dtype=np.int32) % count)
        if self.histograms is None:
            flat = lambda count: np.full((self.size, count), 1 / count, np.float32)  # noqa: E731
            object.__setattr__(self, "histograms", flat)


def empty(*_: Any) -> dict[str, Any]:
    """No state and no message, whatever the arguments."""
    return {}


def same_message(down: PyTree, row: PyTree) -> PyTree:
    """Every client receives the same message.

    Args:
      down: what the server sends.
      row: the client's row.
    """
    return down


def no_penalty(train: PyTree, frozen: PyTree) -> float:
    """Nothing is added to the loss.

    Args:
      train: the trained leaves.
      frozen: the leaves that are not trained.
    """
    return 0.0


def same_optimizer(
    rule: optax.GradientTransformation, frozen: PyTree, learning_rate: jax.Array
) -> optax.GradientTransformation:
    """The run's own optimiser.

    Args:
      rule: the run's optimiser.
      frozen: the leaves that are not trained.
      learning_rate: f32[], learning rate of the round.
    """
    return rule


def same_server(server: PyTree, base: Base) -> PyTree:
    """A stage's state that does not depend on the frozen weights.

    Args:
      server: the server's state in the stage.
      base: the stage's frozen weights.
    """
    return server


def own_traits(server: PyTree, trait: PyTree) -> PyTree:
    """A first row that consists only of the client's traits.

    Args:
      server: the server's state at full depth.
      trait: the client's part of the traits.
    """
    return trait


def same_row(row: PyTree, layer_map: LayerMap) -> PyTree:
    """The row of a stage for rows without a layer axis.

    Args:
      row: the row at full depth.
      layer_map: the stage's map.
    """
    return row


def newest_row(full: PyTree, stage: PyTree, layer_map: LayerMap, mode: str) -> PyTree:
    """The row after a stage for rows without a layer axis.

    Args:
      full: the row at full depth before the stage.
      stage: the stage's row after training.
      layer_map: the stage's map.
      mode: mode of `inherit`.
    """
    return stage


@dataclass(frozen=True, kw_only=True)
class Algorithm(Description):
    """An algorithm's record: its description, and functions that are all pure and traceable.

    Attributes:
      init_server: (key, model config, Clients) -> Server at full depth.
      broadcast: Server -> Down, in the messages' dtype.
      start: Participant -> (train, frozen): what a client optimises and what it uses without training it.
      adapter: (train, frozen) -> Adapter for the forward pass.
      finish: (Participant, train) -> (Up, Row).
      contribution: (Up, Share) -> Sums in float32, all zero at weight zero.
      finalize: (Server, Sums) -> (Server, metrics: dict of f32[]). At least one participant has contributed.
      view: Server -> Adapter, the global model that is evaluated and exported; if models are personal, the part that
        the server knows. Growth uses its layers.
      submodel: (Server at full depth, LayerMap) -> Server of the stage.
      transfer: (Server at full depth, Server of the stage, LayerMap, mode) -> Server at full depth.
      enter: (Server of the stage, the stage's Base) -> Server of the stage, called once at its beginning, outside of `jit`;
        the base is on one device or, if it does not fit there, in host memory (numpy). It is also traced for the shapes
        of its result.
      orient: (Server of the stage, gradient {projection: f32[G, in, out]} of the loss on public text with respect to the
        adapted weights) -> Server of the stage, called once at its beginning before `enter`; shapes stay. None if the state
        does not depend on the gradient, which is then not measured.
      start_from: (Server at full depth before the first round, WarmStart) -> Server of a run that begins with an adapter; by
        default the factors of the adapter that the state is, or has as `adapter`, are replaced.
      known: Server -> what every client knows without a message.
      address: (Down, Row) -> the message to one client, if clients receive different messages.
      penalty: (train, frozen) -> f32[], added to the loss that is minimised, not to the reported loss.
      optimizer: (optax rule, frozen, learning rate) -> optax rule, for methods that correct steps.
      traits: Clients -> properties in which clients differ before training, every leaf [N, ...]; small, because it is held
        for all.
      init_row: (Server at full depth, Traits of one client) -> Row at full depth; by default the traits themselves.
      submodel_row: (Row at full depth, LayerMap) -> Row of the stage.
      transfer_row: (Row at full depth, Row of the stage, LayerMap, mode) -> Row at full depth.
      personal: (Server, Row) -> Adapter, a client's own model, of a stage or at full depth; None if clients use the global
        model.
      consensus: (Server, Rows [M, ...] of the clients that have taken part, or of a single client before that) -> Adapter,
        the one model that represents all personal ones; None if there is none.
      weighting: the default weight of a message: its client's "examples", or "uniform".
      cumulative: Down -> the part of it that is an increment of what clients hold, so that they need that of every round,
        also of rounds that they missed; None if a single message is all that a client needs.
      layered: whether the first axis of every trained leaf is the stage's layers, so that some layers can be frozen.
      low_rank: whether its models are low-rank adapters and corrections of weights, which can be written for other tools.
      principal: whether its factors may begin anywhere, such as at the principal directions of the weights
        (`devft_jax.federated.directions`): its state has one adapter, and all clients start from whole factors of it.
      pools: whether one participant holds all clients' examples and trains the steps of all clients of a round one after
        the other. It is the server itself, so nothing is sent and no byte is counted.
    """

    init_server: Callable[[jax.Array, ModelConfig, Clients], PyTree]
    broadcast: Callable[[PyTree], PyTree]
    start: Callable[[Participant], tuple[PyTree, PyTree]]
    adapter: Callable[[PyTree, PyTree], Adapter]
    finish: Callable[[Participant, PyTree], tuple[PyTree, PyTree]]
    contribution: Callable[[PyTree, Share], PyTree]
    finalize: Callable[[PyTree, PyTree], tuple[PyTree, dict[str, jax.Array]]]
    view: Callable[[PyTree], Adapter]
    submodel: Callable[[PyTree, LayerMap], PyTree]
    transfer: Callable[[PyTree, PyTree, LayerMap, str], PyTree]
    enter: Callable[[PyTree, Base], PyTree] = same_server
    orient: Callable[[PyTree, Mapping[str, Any]], PyTree] | None = None
    start_from: Callable[[PyTree, WarmStart], PyTree] = with_factors
    known: Callable[[PyTree], PyTree] = empty
    address: Callable[[PyTree, PyTree], PyTree] = same_message
    penalty: Callable[[PyTree, PyTree], jax.Array | float] = no_penalty
    optimizer: Callable[[optax.GradientTransformation, PyTree, jax.Array], optax.GradientTransformation] = same_optimizer
    traits: Callable[[Clients], PyTree] = empty
    init_row: Callable[[PyTree, PyTree], PyTree] = own_traits
    submodel_row: Callable[[PyTree, LayerMap], PyTree] = same_row
    transfer_row: Callable[[PyTree, PyTree, LayerMap, str], PyTree] = newest_row
    personal: Callable[[PyTree, PyTree], Adapter] | None = None
    consensus: Callable[[PyTree, PyTree], Adapter] | None = None
    weighting: Literal["examples", "uniform"] = "examples"
    cumulative: Callable[[PyTree], PyTree] | None = None
    layered: bool = True
    low_rank: bool = True
    principal: bool = True
    pools: bool = False

    @property
    def has_global_model(self) -> bool:
        """Whether one model represents all clients."""
        return self.personal is None or self.consensus is not None

    def init_bank(self, clients: Clients, server: PyTree) -> PyTree:
        """The first rows [N, ...] of all clients at once, for populations that are small enough.

        Args:
          clients: the population.
          server: the server's state at full depth.
        """
        make = jax.vmap(lambda trait: self.init_row(server, trait), axis_size=clients.size)
        return make(jax.tree.map(jnp.asarray, self.traits(clients)))

    def global_model(self, server: PyTree, bank: PyTree) -> Adapter:
        """The one model that represents all clients; only for an algorithm that has one.

        Args:
          server: the server's state of a stage or at full depth.
          bank: rows [M, ...] of the clients, as in `consensus`.
        """
        if self.personal is None:
            return self.view(server)
        assert self.consensus is not None
        return self.consensus(server, bank)


def as_float32(tree: PyTree) -> PyTree:
    """Every leaf in float32, in which low-rank factors train and accumulate whatever the message's dtype.

    Args:
      tree: a tree of floats of any dtype.
    """
    return jax.tree.map(lambda leaf: leaf.astype("float32"), tree)


def change_of(train: PyTree, received: PyTree, dtype: str) -> PyTree:
    """The change of a message's leaves by training, relative to their rounded values, in the messages' dtype.

    Args:
      train: the leaves after training, float32.
      received: the leaves of the message.
      dtype: data type of messages.
    """
    return in_message_dtype(jax.tree.map(jnp.subtract, train, as_float32(received)), dtype)


def in_message_dtype(tree: PyTree, dtype: str) -> PyTree:
    """Every leaf in the messages' dtype.

    Args:
      tree: a tree of floats.
      dtype: data type of messages.
    """
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
