"""FedIT (Zhang et al., ICASSP 2024): federated averaging of the two low-rank factors.

Every participant i starts from the global (a, b), trains both on its own examples and sends them back; the server takes

    a <- sum_i w_i a_i,    b <- sum_i w_i b_i,    w_i = n_i / sum_j n_j over the round's participants.

The mean of products is not the product of means: with a_m, b_m the weighted means,

    sum_i w_i a_i b_i - a_m b_m = sum_i w_i (a_i - a_m)(b_i - b_m).

The share of that error in the mean product is reported every round. Its Frobenius norms are estimated from
`PROBES` fixed Gaussian vectors x per projection, E ||x M||^2 = ||M||_F^2, because x a_i b_i is a small thing to sum over
any number of clients, while the products themselves are as large as the base model.
"""

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.developmental import LayerMap, fuse, inherit
from devft_jax.federated.algorithm import Algorithm, PyTree, as_float32
from devft_jax.models.llama import PROJECTIONS, Adapter, LoraFactors, ModelConfig
from devft_jax.models.lora import LoraOptions, init_lora

PROBES = 16


class Sums(struct.PyTreeNode):
    """Weighted sums over clients: `lora` of the factors, `probed` of x a_i b_i [G, PROBES, out], and the `weight`."""

    lora: dict[str, LoraFactors]
    probed: dict[str, jax.Array]
    weight: jax.Array


def probe(lora: dict[str, LoraFactors]) -> dict[str, jax.Array]:
    """`x a b` f32[G, PROBES, out] of each projection for its fixed Gaussian probes x."""

    def one(name: str, factors: LoraFactors) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), PROJECTIONS.index(name))
        vectors = jax.random.normal(key, (PROBES, factors.a.shape[-2]))
        return jnp.einsum("pi,gir,gro->gpo", vectors, factors.a, factors.b)

    return {name: one(name, factors) for name, factors in lora.items()}


def _norm(tree: PyTree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(tree)))


def fedit(options: LoraOptions, message_dtype: str = "float32") -> Algorithm:
    """FedIT with adapters as `options` say.

    `message_dtype` is the dtype in which factors travel both ways; they train and accumulate in float32. Scale and dropout
    are known to everyone beforehand and are no part of a message.
    """

    def init_server(key: jax.Array, config: ModelConfig) -> Adapter:
        return init_lora(
            key,
            config,
            rank=options.rank,
            alpha=options.alpha,
            targets=options.targets,
            dropout=options.dropout,
        )

    def travel(lora: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.astype(message_dtype), lora)

    def broadcast(server: Adapter) -> PyTree:
        return travel(server.lora)

    def start(down: PyTree, row: PyTree) -> tuple[PyTree, PyTree]:
        return as_float32(down), ()

    def adapter(train: PyTree, frozen: PyTree) -> Adapter:
        scale = jnp.float32(options.alpha / options.rank)
        return Adapter(lora=train, scale=scale, dropout=options.dropout)

    def finish(down: PyTree, train: PyTree, row: PyTree) -> tuple[PyTree, PyTree]:
        return travel(train), row

    def contribution(up: PyTree, weight: jax.Array) -> Sums:
        lora = as_float32(up)
        weighted = jax.tree.map(lambda leaf: weight * leaf, (lora, probe(lora)))
        return Sums(lora=weighted[0], probed=weighted[1], weight=weight)

    def finalize(server: Adapter, sums: Sums) -> tuple[Adapter, dict[str, jax.Array]]:
        lora, probed = jax.tree.map(lambda leaf: leaf / sums.weight, (sums.lora, sums.probed))
        error = jax.tree.map(jnp.subtract, probed, probe(lora))
        product = _norm(probed)
        metrics = {
            "update_norm": _norm(jax.tree.map(jnp.subtract, lora, server.lora)),
            "aggregation_error": jnp.where(product > 0, _norm(error) / product, 0.0),
        }
        return server.replace(lora=lora), metrics

    def submodel(server: Adapter, layer_map: LayerMap) -> Adapter:
        return server.replace(lora=fuse(layer_map, server.lora))

    def transfer(full: Adapter, stage: Adapter, layer_map: LayerMap, mode: str) -> Adapter:
        return full.replace(lora=inherit(layer_map, stage.lora, full.lora, mode=mode))

    return Algorithm(
        name="fedit",
        reference="Zhang et al., Towards Building the Federated GPT, ICASSP 2024",
        message="a and b of every adapted layer, both ways",
        init_server=init_server,
        broadcast=broadcast,
        start=start,
        adapter=adapter,
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=lambda server: server,
        submodel=submodel,
        transfer=transfer,
    )
