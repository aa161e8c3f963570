"""DoFIT (Xu et al., NeurIPS 2024): federated averaging within domains, and a step that separates the domains.

Clients belong to domains j = 1..J, each with its own adapter (a_j, b_j). Within a domain a round is FedIT's,

    a_j <- sum_i w_i a_i,    b_j <- sum_i w_i b_i,    w_i = n_i / sum of n over the round's participants of domain j;

a domain without participants keeps its adapter. Then the domains' servers exchange matrices. Every factor of every adapted
layer, each a and each b, is a matrix X with one version X_j per domain. A domain offers the k of largest Frobenius norm;
those that all domains offer are shared, and a shared one becomes, with the domains' mean M = sum_j X_j / J,

    dofit:  X_j <- X_j + c |X_j - M| / ||X_j - M||_F            (absolute value of each element)
    mean:   X_j <- M                                            (DoFIT-base)

All other matrices are unchanged. In a submodel of L_s of the L layers k is scaled by L_s / L, and is at least 1.

In the released code domains with the same matrix give 0 / 0, a single domain always. Here their step is zero, also if
they differ only by the rounding of a float32 mean, and a single domain is FedIT. Two consequences of the formula are
kept. The step has norm c whatever the round has learned, and all its elements are positive. With J = 2 both
domains take the same step, which therefore never changes their difference. b is zero at first, so that early on only a is
shared.

Instruction data has no domains: they are groups of clients with similar instructions (`Clients.domains`). All domains
begin with the same adapter.

Clients receive and send the same as in FedIT: the server knows a client's domain. What the domains' servers send to each
other, k matrices each and the shared ones back, is not a client's message and is not counted. The one global model is the
mean of the domains' factors; a client's own model has its domain's adapter, so that `devft export --client` writes that of
any domain, and the run's last evaluation includes each. At a stage change every domain's adapter is fused and returned
separately; growth uses their mean. A layer that does not learn in a stage is ranked with the others but takes no step, which
would only disturb the layers that learn: a change of such a layer is not returned.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.developmental import LayerMap
from devft_jax.federated.adapters import adapter_of, initial_adapter, returned_adapter, stage_adapter
from devft_jax.federated.algorithm import Algorithm, Clients, Participant, Share, as_float32, change_of, in_message_dtype
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.federated.algorithms.options import DoFITOptions
from devft_jax.federated.messages import Unsent
from devft_jax.federated.warm_start import WarmStart
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.options import lora_scale
from devft_jax.typing import PyTree

# Relative to a matrix's norm; above the rounding of means over some hundred clients and below what a step changes.
ROUNDING = 1e-5


class Server(struct.PyTreeNode):
    """Every domain's factors, which layers learn, and the full model's depth.

    Attributes:
      lora: factors of every domain, a [J, L, in, r] and b [J, L, r, out].
      learns: bool[L], which layers learn.
      layers: depth of the full model.
    """

    lora: dict[str, LoraFactors]
    learns: jax.Array
    layers: int = struct.field(pytree_node=False)


class Sums(struct.PyTreeNode):
    """Weighted sums over each domain's participants.

    Attributes:
      lora: sums of the factors' changes, [J, L, ...].
      weight: f32[J], sums of the weights.
    """

    lora: dict[str, LoraFactors]
    weight: jax.Array


def _per_domain(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """`values` [J], reshaped to multiply a leaf [J or 1, ...]."""
    return values.reshape(-1, *[1] * (leaf.ndim - 1))


def _offered(top: int, lora: dict[str, LoraFactors], layers: int) -> int:
    """Number of matrices that a domain offers: `top` for a model of `layers` layers, in proportion for fewer."""
    leaves = jax.tree.leaves(lora)
    depth = leaves[0].shape[1]
    return min(max(1, round(top * depth / layers)), len(leaves) * depth)


def shared_matrices(lora: dict[str, LoraFactors], *, top: int) -> dict[str, LoraFactors]:
    """Matrices that are among the `top` largest of all domains, by squared norm: bool[L] for every leaf [J, L, ...].

    Of equal norms the one of the earlier leaf and layer counts as larger.

    Args:
      lora: leaves [J, L, ...].
      top: number of matrices that a domain offers.
    """
    leaves, structure = jax.tree.flatten(lora)
    depth = leaves[0].shape[1]
    norms = jnp.concatenate([jnp.sum(leaf**2, axis=(2, 3)) for leaf in leaves], axis=1)
    _, chosen = jax.lax.top_k(norms, top)
    offered = jnp.any(jax.nn.one_hot(chosen, norms.shape[1], dtype=bool), axis=1)
    shared = jnp.all(offered, axis=0)
    return jax.tree.unflatten(structure, list(shared.reshape(len(leaves), depth)))


def step_between_domains(
    lora: dict[str, LoraFactors], shared: dict[str, LoraFactors], *, step: float, rule: str
) -> dict[str, LoraFactors]:
    """The shared matrices after the step between domains; see the module's docstring.

    Args:
      lora: leaves [J, L, ...].
      shared: bool[L] for each.
      step: c.
      rule: "dofit" or "mean".
    """

    def one(leaf: jax.Array, flags: jax.Array) -> jax.Array:
        mean = jnp.mean(leaf, axis=0, keepdims=True)
        if rule == "mean":
            moved = jnp.broadcast_to(mean, leaf.shape)
        else:
            apart = jnp.abs(leaf - mean)
            norm, size = (jnp.linalg.norm(part, axis=(2, 3), keepdims=True) for part in (apart, mean))
            differs = norm > ROUNDING * size
            moved = leaf + jnp.where(differs, step * apart / jnp.where(differs, norm, 1), 0)
        return jnp.where(flags[None, :, None, None], moved, leaf)

    return jax.tree.map(one, lora, shared)


def averaged(server: Server, sums: Sums) -> dict[str, LoraFactors]:
    """Every domain's factors after FedIT's mean of its participants' changes; domains without participants are unchanged.

    Args:
      server: the server before the round.
      sums: the sums of the round.
    """

    def one(total: jax.Array, old: jax.Array) -> jax.Array:
        weight = _per_domain(sums.weight, old)
        return old + jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)

    return jax.tree.map(one, sums.lora, server.lora)


def submodel(server: Server, layer_map: LayerMap) -> Server:
    """The stage's state, with every domain's adapter fused separately.

    Args:
      server: the server at full depth.
      layer_map: the stage's map.
    """
    stage = _renewed(server, [stage_adapter(adapter, layer_map) for adapter in _adapters(server)])
    return stage.replace(learns=jnp.asarray(layer_map.train))


def transfer(full: Server, stage: Server, layer_map: LayerMap, mode: str) -> Server:
    """The state at full depth after a stage, with every domain's adapter returned separately.

    Args:
      full: the server at full depth before the stage.
      stage: the stage's server after training.
      layer_map: the stage's map.
      mode: mode of `inherit`.
    """
    pairs = zip(_adapters(full), _adapters(stage), strict=True)
    return _renewed(full, [returned_adapter(old, new, layer_map, mode) for old, new in pairs])


def _adapters(server: Server) -> list[Adapter]:
    """One adapter per domain; scale and dropout have no effect on fusion."""
    domains = jax.tree.leaves(server.lora)[0].shape[0]
    parts = [jax.tree.map(lambda leaf, which=domain: leaf[which], server.lora) for domain in range(domains)]
    return [Adapter(lora=lora, scale=jnp.float32(1.0)) for lora in parts]


def _renewed(server: Server, adapters: list[Adapter]) -> Server:
    return server.replace(lora=jax.tree.map(lambda *parts: jnp.stack(parts), *(adapter.lora for adapter in adapters)))


def dofit(config: DoFITOptions) -> Algorithm:
    """DoFIT with the configured adapters. Row: the client's domain, {"domain": i32[]}.

    Args:
      config: the options of the run's methods.
    """

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        lora = initial_adapter(key, model, config).lora
        repeated = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (config.domains, *leaf.shape)), lora)
        return Server(lora=repeated, learns=jnp.ones(model.layers, bool), layers=model.layers)

    def start_from(server: Server, start: WarmStart) -> Server:
        fresh = jax.tree.map(lambda leaf: leaf[0], server.lora)
        lora = start.factors(fresh, lora_scale(config))
        return server.replace(lora=jax.tree.map(lambda leaf: jnp.stack([leaf] * config.domains), lora))

    def finish(participant: Participant, train: PyTree) -> tuple[PyTree, PyTree]:
        domain = Unsent(participant.row["domain"])
        return (change_of(train, participant.down, config.message_dtype), domain), participant.row

    def contribution(up: PyTree, share: Share) -> Sums:
        lora, domain = up
        weight = share.weight * jax.nn.one_hot(domain.value, config.domains)
        return Sums(
            lora=jax.tree.map(lambda leaf: _per_domain(weight, leaf[None]) * leaf[None], as_float32(lora)), weight=weight
        )

    def finalize(server: Server, sums: Sums) -> tuple[Server, dict[str, jax.Array]]:
        lora = averaged(server, sums)
        shared = shared_matrices(lora, top=_offered(config.domain_top, lora, server.layers))
        shared = jax.tree.map(lambda flags: flags & server.learns, shared)
        stepped = step_between_domains(lora, shared, step=config.domain_step, rule=config.domain_rule)
        metrics = {
            "update_norm": optax.tree.norm(jax.tree.map(jnp.subtract, stepped, server.lora)),
            "shared_matrices": sum(jnp.sum(flags, dtype=jnp.float32) for flags in jax.tree.leaves(shared)),
        }
        return server.replace(lora=stepped), metrics

    def view(server: Server) -> Adapter:
        return adapter_of(jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), server.lora), config)

    return dataclasses.replace(
        fedit(config),
        **described("dofit"),
        principal=False,
        init_server=init_server,
        broadcast=lambda server: in_message_dtype(server.lora, config.message_dtype),
        address=lambda down, row: jax.tree.map(lambda leaf: leaf[row["domain"]], down),
        finish=finish,
        contribution=contribution,
        finalize=finalize,
        view=view,
        submodel=submodel,
        transfer=transfer,
        start_from=start_from,
        traits=lambda clients: {"domain": jnp.asarray(clients.domains(config.domains), jnp.int32)},
        personal=lambda server, row: adapter_of(jax.tree.map(lambda leaf: leaf[row["domain"]], server.lora), config),
        consensus=lambda server, bank: view(server),
    )
