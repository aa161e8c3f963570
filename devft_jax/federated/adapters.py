"""Operations on adapters that most algorithms share: initialise them, map them through a stage, probe their products."""

from typing import Literal

import jax
import jax.numpy as jnp

from devft_jax.developmental import LayerMap, align_factors, fuse, inherit
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.lora import init_lora
from devft_jax.models.options import LoraOptions, lora_scale, resolve_alpha
from devft_jax.typing import PyTree

PROBES = 16


def initial_adapter(key: jax.Array, model: ModelConfig, options: LoraOptions) -> Adapter:
    """The adapter before the first round; it leaves the base unchanged.

    Args:
      key: random key.
      model: the architecture of the model.
      options: rank, alpha, targets and dropout.
    """
    adapter = init_lora(
        key,
        model,
        rank=options.rank,
        alpha=resolve_alpha(options),
        targets=options.targets,
        dropout=options.dropout,
    )
    return adapter.replace(scale=jnp.float32(lora_scale(options)))


def adapter_of(lora: dict[str, LoraFactors], options: LoraOptions, delta: dict[str, jax.Array] | None = None) -> Adapter:
    """The adapter of factors and dense corrections; scale and dropout are known to everyone in advance.

    Args:
      lora: factors of every projection.
      options: rank, alpha and dropout.
      delta: dense corrections by projection, [L, in, out].
    """
    return Adapter(lora=lora, scale=jnp.float32(lora_scale(options)), dropout=options.dropout, delta=delta or {})


def one_factor(lora: dict[str, LoraFactors], factor: Literal["a", "b"]) -> dict[str, jax.Array]:
    """The factors a, or the factors b, of all projections.

    Args:
      lora: factors of every projection.
      factor: "a" or "b".
    """
    return {name: getattr(factors, factor) for name, factors in lora.items()}


def both_factors(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> dict[str, LoraFactors]:
    """Factors from their two parts.

    Args:
      a: {projection: [L, in, r]}.
      b: {projection: [L, r, out]}.
    """
    return {name: LoraFactors(a=a[name], b=b[name]) for name in a}


def stage_adapter(adapter: Adapter, layer_map: LayerMap) -> Adapter:
    """The adapter of a stage's submodel: factors and dense corrections are fused like the layers to which they belong.

    Args:
      adapter: the adapter at full depth.
      layer_map: the stage's map.
    """
    lora, delta = fuse(layer_map, (aligned(adapter.lora, layer_map), adapter.delta))
    return adapter.replace(lora=lora, delta=delta)


def aligned(lora: dict[str, LoraFactors], layer_map: LayerMap) -> dict[str, LoraFactors]:
    """The same products in factors that can be fused: each layer's are rotated to its anchor's if the map asks for it.

    Args:
      lora: factors at full depth.
      layer_map: the stage's map.
    """
    if not layer_map.align:
        return lora
    rotated = {name: align_factors(layer_map, factors.a, factors.b) for name, factors in lora.items()}
    return {name: LoraFactors(a=a, b=b) for name, (a, b) in rotated.items()}


def returned_adapter(full: Adapter, stage: Adapter, layer_map: LayerMap, mode: str) -> Adapter:
    """The full-depth adapter after a stage.

    Factors return as `mode` says. A dense correction belongs to a frozen layer rather than to its adapter, so each layer of
    a group always gets the change that the stage made to the correction.

    Args:
      full: the adapter at full depth before the stage.
      stage: the stage's adapter after training.
      layer_map: the stage's map.
      mode: mode of `inherit`.
    """
    lora = inherit(layer_map, stage.lora, full.lora, mode=mode)
    delta = inherit(layer_map, stage.delta, full.delta, mode="delta") if full.delta else {}
    return full.replace(lora=lora, delta=delta)


def with_returned_adapter(full: PyTree, stage: PyTree, layer_map: LayerMap, mode: str) -> PyTree:
    """The full-depth state after a stage, of which the adapter alone returns: all else is as it was before the stage.

    Args:
      full: a state with an `adapter`, at full depth before the stage.
      stage: after its training.
      layer_map: of the stage.
      mode: of `inherit`.
    """
    return full.replace(adapter=returned_adapter(full.adapter, stage.adapter, layer_map, mode))


def probe(lora: dict[str, LoraFactors]) -> dict[str, jax.Array]:
    """`x a b` f32[G, PROBES, out] of each projection, for fixed Gaussian probes x.

    E ||x M||^2 = ||M||_F^2, so norms of products can be estimated from sums over clients that are small, while the products
    themselves are as large as the base model.

    Args:
      lora: factors of every projection.
    """

    def one(name: str, factors: LoraFactors) -> jax.Array:
        vectors = probe_vectors(name, factors.a.shape[-2])
        return jnp.einsum("pi,gir,gro->gpo", vectors, factors.a, factors.b)

    return {name: one(name, factors) for name, factors in lora.items()}


def probe_vectors(name: str, fan_in: int) -> jax.Array:
    """The Gaussian vectors f32[PROBES, in] with which a projection's products are probed.

    Args:
      name: the projection.
      fan_in: its inputs.
    """
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), PROJECTIONS.index(name))
    return jax.random.normal(key, (PROBES, fan_in), jnp.float32)
