"""FLASC (Kuo et al., 2024): both messages are sparse, local training is dense.

Let P be the vector of all P_n entries of the stage's a and b together, and top_k its k entries of largest magnitude, with
zeros elsewhere. The server sends top_k(P) with k = floor(rho_d P_n), rho_d = `density_down`. Every participant trains all
entries from there,

    x_i <- local training from top_k(P),      delta_i = x_i - top_k(P),

and sends the floor(rho_u P_n) largest entries of delta_i, rho_u = `density_up`. The server takes the plain mean of these as
the negative of a gradient and updates all of P by AdamW (`server_learning_rate`, `server_beta1`, `server_beta2`). The
evaluated model is the server's adapter masked as it is sent, top_k(P).

A sparse message has the values and, whichever is smaller, their positions as int32 or one bit per entry; with density 1 all
entries are sent without positions. At least one entry is sent; of entries of equal magnitude the first are kept.

Differences from the authors' code: their densities are 1 unless set, here a quarter both ways; their server's weight decay
is PyTorch's default, 0.01 times its step size each round, here zero, so that clients that learn nothing change nothing;
their second moment decays by PyTorch's 0.999, here by `server_beta2`; their clients run SGD with momentum, here the run's
optimiser. They evaluate the adapter after a round with the mask from the beginning of that round, here with the mask of the
next message, so that the evaluated model is the one that clients would receive.

A known property of the method: b begins at zero, so the mask is entirely in a, and the evaluated model is the untuned base
until entries of b have outgrown entries of a that the mask would keep, the largest half of a at a quarter of all entries.
Those begin at 0.5 / sqrt(in) and b moves by `server_learning_rate` per round, which takes 0.5 / (sqrt(in)
`server_learning_rate`) rounds of a stage.

A stage's k counts the stage's entries, the mask is that of its own adapter, and AdamW restarts. Layers of a stage that do
not learn compete for the mask with the others, as all layers do in the full model. Masking applies to the messages and to
the evaluated model, never to the server's adapter: values that are not sent are kept.

A run that begins with an adapter needs density 1 down, because the mask would change the adapter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.errors import InputError
from devft_jax.federated.adapters import stage_adapter, with_returned_adapter
from devft_jax.federated.aggregation import WeightedSum, weighted
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import FlascOptions
from devft_jax.federated.sparse import Sparse, sparse
from devft_jax.federated.warm_start import WarmStart, with_factors
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.typing import PyTree


class Server(struct.PyTreeNode):
    """The adapter with all its entries, and AdamW's state for its factors.

    Attributes:
      adapter: with all its entries.
      moments: AdamW's state for the factors.
    """

    adapter: Adapter
    moments: optax.OptState


def flasc(config: FlascOptions) -> Algorithm:
    """FLASC with the configured adapters, densities and `server_` options.

    Args:
      config: the options of the run's methods.
    """
    federated = fedit(config)
    rule = optax.adamw(config.server_learning_rate, b1=config.server_beta1, b2=config.server_beta2, weight_decay=0.0)

    def fresh(adapter: Adapter) -> Server:
        return Server(adapter=adapter, moments=rule.init(adapter.lora))

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        return fresh(federated.init_server(key, model, clients))

    def start_from(server: Server, start: WarmStart) -> Server:
        if config.density_down < 1:
            raise InputError(
                f"density_down {config.density_down:g} keeps only the largest entries of the evaluated adapter, so that "
                f"algorithm flasc cannot begin with {start.what} exactly; give --density-down 1, or choose another "
                "--algorithm."
            )
        return fresh(with_factors(server.adapter, start))

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return participant.down.dense(), ()

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        update = optax.tree.sub(train, participant.down.dense())
        return sparse(update, config.density_up, config.message_dtype), participant.row

    def contribution(up: Sparse, share: Share) -> WeightedSum:
        return weighted(up.dense(), share)

    def finalize(server: Server, sums: WeightedSum) -> tuple[Server, dict[str, jax.Array]]:
        gradient = jax.tree.map(jnp.negative, sums.mean())
        step, moments = rule.update(gradient, server.moments, server.adapter.lora)
        adapter = server.adapter.replace(lora=optax.tree.add(server.adapter.lora, step))
        return Server(adapter=adapter, moments=moments), {"update_norm": optax.tree.norm(step)}

    def view(server: Server) -> Adapter:
        return server.adapter.replace(lora=sparse(server.adapter.lora, config.density_down, "float32").dense())

    return dataclasses.replace(
        federated,
        **described("flasc"),
        principal=False,
        init_server=init_server,
        broadcast=lambda server: sparse(server.adapter.lora, config.density_down, config.message_dtype),
        start=start,
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=view,
        submodel=lambda server, layer_map: fresh(stage_adapter(server.adapter, layer_map)),
        transfer=with_returned_adapter,
        start_from=start_from,
        weighting="uniform",
    )
