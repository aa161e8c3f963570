"""C2A (Kim et al., Findings of ACL 2023): client-customised adapters from a hypernetwork that all clients share.

No adapter is sent. A client receives a hypernetwork psi, which generates bottleneck adapters from the client's mixture of
topics y_i and from each example's prompt, trains psi on its own examples and sends it back; the server takes

    psi <- sum_i w_i psi_i,    w_i = n_i / sum_j n_j over the round's participants.

The mathematics of psi is in `devft_jax.models.hypernetwork`. With r, c and C as `hyper_rank`, `hyper_width` and
`hyper_clusters`, D the model's width and L its layers, a message has

    8 r c + c D + 8 L + (8 C + 8) + (8 D + 8) + r D + r + D

elements, and one more for the gate if there is one: 237,936 for LLaMA2-7B with the defaults, 1.4% of FedIT's at rank 32.

Choices for language models, where the original classifies with DistilBERT:
* y_i is the shares of the client's examples in C clusters of instructions (`Clients.histograms`), because there are no
labels. It belongs to the client, as in the paper; the released code takes each batch's labels and never uses the client's.
* The context is read from the prompt of one example. Over the whole sequence it would reveal the answer at its own first
tokens; over a batch, as in the released code, a result would depend on the other examples of the batch. Gradients pass
through it.
* A gate that begins at zero (unless `hyper_ungated`) leaves the untuned model unchanged. Until it has moved, in a client's
first step, nothing else learns, as with the factor a of a low-rank adapter whose b is zero. The published method has none.
* No head is trained.

The evaluated model is the shared hypernetwork with a uniform y, as in the released code. In a submodel only the layer tokens
are fused and returned; everything else is independent of depth. Its parts are shared by all layers, so a growth cannot
freeze some of the layers. Other tools have no such adapter: a run keeps it in its checkpoints.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.aggregation import WeightedSum, weighted
from devft_jax.federated.algorithm import Algorithm, Participant, as_float32, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import C2AOptions
from devft_jax.models.adapter import Adapter
from devft_jax.models.hypernetwork import HyperAdapter, Hypernetwork, init_hypernetwork
from devft_jax.typing import PyTree


def c2a(config: C2AOptions) -> Algorithm:
    """C2A with the `hyper_*` options; options of low-rank adapters have no effect.

    Server: the hypernetwork. Row: {"histogram": f32[C]}, the client's shares of examples in the clusters.

    Args:
      config: the options of the run's methods.
    """

    def adapter(network: Hypernetwork, histogram: jax.Array) -> Adapter:
        return Adapter(lora={}, scale=jnp.float32(1.0), hyper=HyperAdapter(network, histogram))

    def view(server: Hypernetwork) -> Adapter:
        return adapter(server, jnp.full(config.hyper_clusters, 1 / config.hyper_clusters, jnp.float32))

    def start(participant: Participant) -> tuple[PyTree, PyTree]:
        return as_float32(participant.down), participant.row["histogram"]

    def finalize(server: Hypernetwork, sums: WeightedSum) -> tuple[Hypernetwork, dict[str, jax.Array]]:
        change = sums.mean()
        return optax.tree.add(server, change), {"update_norm": optax.tree.norm(change)}

    def submodel(server: Hypernetwork, layer_map: LayerMap) -> Hypernetwork:
        return server.replace(layer_tokens=fuse(layer_map, server.layer_tokens))

    def transfer(full: Hypernetwork, stage: Hypernetwork, layer_map: LayerMap, mode: str) -> Hypernetwork:
        return stage.replace(layer_tokens=inherit(layer_map, stage.layer_tokens, full.layer_tokens, mode=mode))

    return dataclasses.replace(
        fedit(config),
        **described("c2a"),
        principal=False,
        init_server=lambda key, model, clients: init_hypernetwork(
            key,
            width=model.width,
            layers=model.layers,
            rank=config.hyper_rank,
            inner=config.hyper_width,
            clusters=config.hyper_clusters,
            gate=not config.hyper_ungated,
        ),
        broadcast=lambda server: in_message_dtype(server, config.message_dtype),
        start=start,
        adapter=adapter,
        contribution=weighted,
        finalize=finalize,
        view=view,
        submodel=submodel,
        transfer=transfer,
        traits=lambda clients: {"histogram": jnp.asarray(clients.histograms(config.hyper_clusters))},
        layered=False,
        low_rank=False,
    )
