"""SCAFFOLD (Karimireddy et al., ICML 2020): control variates against the drift of clients between aggregations.

The server keeps a control c and every client i its own, c_i, with the shape of the adapter x = (a, b) and zero at first.
After each of its E local steps a client corrects the step of the run's optimiser at learning rate lr by

    x_i <- x_i - lr (c - c_i),

and at the end of its round updates its control by the authors' option II, from where it started and where it arrived,

    c_i+ = c_i - c + (x - x_i) / (E lr).

It sends the changes x_i - x and c_i+ - c_i, and receives x and c, twice FedIT's messages each way. The server takes
FedIT's mean of the x_i and, over all N clients of the population and not only the round's participants S,

    c <- c + (1 / N) sum_{i in S} (c_i+ - c_i),

so that c remains the mean of all c_i: a client adds to its control exactly what it has sent, as rounded for the message.

With plain SGD without clipping the step is the authors', -lr (g - c_i + c), and c_i+ is the mean of the round's gradients.
With AdamW it is OpenFedLLM's, and c_i+ is the mean of the directions that AdamW took (entries near 1 in magnitude):
consistent in AdamW's own units, but not the variance reduction that the authors prove. If the learning rate is zero the
gradient is unknown, and the controls are unchanged.

A stage has its own layers, and so its own gradients: all controls begin each stage at zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.developmental import LayerMap
from devft_jax.federated.adapters import stage_adapter, with_returned_adapter
from devft_jax.federated.aggregation import WeightedSum
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share, as_float32, change_of, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import MethodOptions
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.typing import PyTree


class Server(struct.PyTreeNode):
    """The state.

    Attributes:
      adapter: the global adapter.
      control: c, with the shape of its factors.
      clients: N.
    """

    adapter: Adapter
    control: dict[str, LoraFactors]
    clients: int = struct.field(pytree_node=False)


class Message(struct.PyTreeNode):
    """Factors, with the server's control on the way down and the change of the client's control on the way up.

    Attributes:
      lora: the factors.
      control: c on the way down, the change of c_i on the way up.
    """

    lora: dict[str, LoraFactors]
    control: dict[str, LoraFactors]


class Sums(struct.PyTreeNode):
    """FedIT's weighted sums, and the plain sum of the controls' changes.

    Attributes:
      federated: FedIT's weighted sums.
      control: sum of the changes of the controls.
    """

    federated: WeightedSum
    control: dict[str, LoraFactors]


def corrected_optimizer(rule: optax.GradientTransformation, frozen: PyTree, rate: jax.Array) -> optax.GradientTransformation:
    """The run's optimiser, with every step corrected by -lr (c - c_i).

    Args:
      rule: the run's optimiser.
      frozen: c - c_i, with the adapter's shape.
      rate: lr, f32[].
    """

    def corrected(updates: PyTree, train: PyTree) -> PyTree:
        return jax.tree.map(lambda update, correction: update - rate * correction, updates, frozen)

    return optax.chain(rule, optax.stateless(corrected))


def change_of_control(down: Message, train: PyTree, length: jax.Array) -> PyTree:
    """c_i+ - c_i = (x - x_i) / (E lr) - c; zero if the learning rate is zero.

    Args:
      down: x and c, in float32.
      train: x_i.
      length: E lr, f32[].
    """
    learned = length > 0

    def one(before: jax.Array, after: jax.Array, control: jax.Array) -> jax.Array:
        return jnp.where(learned, (before - after) / jnp.where(learned, length, 1) - control, 0)

    return jax.tree.map(one, down.lora, train, down.control)


def submodel(server: Server, layer_map: LayerMap) -> Server:
    """The stage's state, in which the control begins at zero.

    Args:
      server: the server at full depth.
      layer_map: the stage's map.
    """
    adapter = stage_adapter(server.adapter, layer_map)
    return server.replace(adapter=adapter, control=optax.tree.zeros_like(adapter.lora))


def submodel_row(row: PyTree, layer_map: LayerMap) -> PyTree:
    """A client's control at the beginning of a stage, zero.

    Args:
      row: the row at full depth.
      layer_map: the stage's map.
    """
    return jax.tree.map(lambda leaf: jnp.zeros((layer_map.num_groups, *leaf.shape[1:]), jnp.float32), row)


def scaffold(config: MethodOptions) -> Algorithm:
    """SCAFFOLD with the configured adapters; a row is the client's control c_i, {projection: LoraFactors}.

    Args:
      config: the options of the run's methods.
    """
    federated = fedit(config)

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        adapter = federated.init_server(key, model, clients)
        return Server(adapter=adapter, control=optax.tree.zeros_like(adapter.lora), clients=clients.size)

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        down = as_float32(participant.down)
        return down.lora, optax.tree.sub(down.control, participant.row)

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        down = as_float32(participant.down)
        change = change_of_control(down, train, participant.steps * participant.learning_rate)
        moved = change_of(train, participant.down.lora, config.message_dtype)
        up = Message(lora=moved, control=in_message_dtype(change, config.message_dtype))
        return up, optax.tree.add(participant.row, as_float32(up.control))

    def contribution(up: Message, share: Share) -> Sums:
        changes = jax.tree.map(lambda leaf: share.count * leaf, as_float32(up.control))
        return Sums(federated=federated.contribution(up.lora, share), control=changes)

    def finalize(server: Server, sums: Sums) -> tuple[Server, dict[str, jax.Array]]:
        adapter, metrics = federated.finalize(server.adapter, sums.federated)
        control = jax.tree.map(lambda leaf, change: leaf + change / server.clients, server.control, sums.control)
        return server.replace(adapter=adapter, control=control), metrics | {"control_norm": optax.tree.norm(control)}

    return dataclasses.replace(
        federated,
        **described("scaffold"),
        init_server=init_server,
        broadcast=lambda server: in_message_dtype(
            Message(lora=server.adapter.lora, control=server.control), config.message_dtype
        ),
        start=start,
        adapter=lambda train, frozen: federated.adapter(train, ()),
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=lambda server: server.adapter,
        submodel=submodel,
        transfer=with_returned_adapter,
        optimizer=corrected_optimizer,
        init_row=lambda server, trait: optax.tree.zeros_like(server.control),
        submodel_row=submodel_row,
        transfer_row=lambda full, stage, layer_map, mode: full,
        # A client adds to its control exactly what it has sent.
    )
