"""Low-rank adapters: PEFT's initialisation (Hu et al. 2022; Kaiming-uniform a, zero b)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from devft_jax.errors import InputError
from devft_jax.models.adapter import Adapter, LoraFactors, layer_scales
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.hypernetwork import generated_norms
from devft_jax.models.options import LoraOptions
from devft_jax.options import check_options


def narrowest_target(model: ModelConfig, targets: Sequence[str]) -> tuple[int, str]:
    """The largest rank that the updates of all adapted projections can have, and the projection that limits it.

    Args:
      model: the architecture.
      targets: adapted projections.
    """
    return min((min(model.projection_shape(name)), name) for name in targets)


def check_rank(model: ModelConfig, targets: Sequence[str], rank: int, option: str = "rank") -> None:
    """Raise `InputError` for a rank that exceeds what the update of an adapted projection can have.

    Args:
      model: the architecture.
      targets: adapted projections.
      rank: r.
      option: name of the option, for messages.
    """
    most, narrowest = narrowest_target(model, targets)
    if rank > most:
        shape = " x ".join(map(str, model.projection_shape(narrowest)))
        raise InputError(
            f"{option} {rank} exceeds {most}, the largest rank that projection '{narrowest}' [{shape}] can have; "
            f"use {most} or less, or adapt other targets."
        )


def init_lora(
    key: jax.Array,
    config: ModelConfig,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = ("q", "v"),
    dropout: float = 0.0,
) -> Adapter:
    """A new adapter that leaves the base unchanged: a ~ U(-1/sqrt(in), 1/sqrt(in)) per layer, b = 0.

    Args:
      key: random key; each layer and target draws its own `a`.
      config: the base's architecture.
      rank: r.
      alpha: the update is scaled by alpha / r.
      targets: adapted projections.
      dropout: probability of dropping an input element of the low-rank product while training.
    """
    check_options(LoraOptions(rank=rank, alpha=alpha, targets=tuple(targets), dropout=dropout))
    lora = {}
    for name in sorted(targets, key=PROJECTIONS.index):
        fan_in, fan_out = config.projection_shape(name)
        a = initial_a(key, name, (config.layers, fan_in, rank))
        lora[name] = LoraFactors(a=a, b=jnp.zeros((config.layers, rank, fan_out), jnp.float32))
    return Adapter(lora=lora, scale=jnp.float32(alpha / rank), dropout=dropout)


def initial_a(key: jax.Array, name: str, shape: tuple[int, int, int]) -> jax.Array:
    """An initial a of a projection, uniform within 1/sqrt(in), of `shape` (L, in, r).

    Args:
      key: random key.
      name: name of the projection; each draws its own numbers.
      shape: (L, in, r).
    """
    bound = shape[1] ** -0.5
    return jax.random.uniform(
        jax.random.fold_in(key, PROJECTIONS.index(name)), shape, jnp.float32, minval=-bound, maxval=bound
    )


def adapter_norms(adapter: Adapter) -> jax.Array:
    """Size of the update of each layer, f32[L]: the root of the sum over targets of ||delta + scale a b||_F^2.

    The product a b [in, out] is never formed: ||a b||_F^2 is the sum of the elementwise product of a^T a and b b^T, both
    [r, r], and <delta, a b> that of a^T delta and b. A hypernetwork updates no weight: its norms are `generated_norms`.

    Args:
      adapter: an adapter of any kind.
    """
    if adapter.hyper is not None:
        return generated_norms(adapter.hyper)

    def squared(name: str, factors: LoraFactors) -> jax.Array:
        a, b = factors.a.astype(jnp.float32), factors.b.astype(jnp.float32)
        inner = jnp.einsum("lir,lis->lrs", a, a, precision="highest")
        outer = jnp.einsum("lro,lso->lrs", b, b, precision="highest")
        scale = adapter.scale[name] if isinstance(adapter.scale, dict) else adapter.scale
        total = scale**2 * jnp.sum(inner * outer, axis=(1, 2))
        if name in adapter.delta:
            across = jnp.einsum("lir,lio->lro", a, adapter.delta[name], precision="highest")
            total += 2 * scale * jnp.sum(across * b, axis=(1, 2))
        return total

    layers = [squared(name, factors) for name, factors in adapter.lora.items()]
    layers += [jnp.sum(delta**2, axis=(1, 2)) for delta in adapter.delta.values()]
    # Rounding may make a product of Gram matrices slightly negative.
    return jnp.sqrt(jnp.maximum(sum(layers), 0))


def factor_norm(lora: dict[str, LoraFactors]) -> jax.Array:
    """Frobenius norm of the products a b of all layers and projections together, f32[].

    Args:
      lora: factors of every projection.
    """
    return jnp.linalg.norm(adapter_norms(Adapter(lora=lora, scale=jnp.float32(1.0))))


def weight_changes(adapter: Adapter) -> dict[str, np.ndarray]:
    """What an adapter adds to each weight, delta + scale a b: f32[L, in, out] by projection, in host memory.

    Args:
      adapter: an adapter of factors and corrections.
    """
    scales = jax.device_get(layer_scales(adapter, adapter.depth(otherwise=0)))
    changes = {name: np.array(delta, np.float32) for name, delta in jax.device_get(adapter.delta).items()}
    for name, factors in jax.device_get(adapter.lora).items():
        product = np.asarray(factors.a, np.float32) @ np.asarray(factors.b, np.float32)
        product *= np.asarray(scales[name], np.float32)[:, None, None]
        changes[name] = product + changes[name] if name in changes else product
    return changes


def as_low_rank(adapter: Adapter) -> Adapter:
    """The same update in low-rank factors only, with scale 1, for formats without dense corrections.

    Each layer's delta + scale a b is factored by its singular values, down to those below float32's rounding, so that
    the rank is what the correction needs: at most the sum of the ranks that it consists of. An adapter without corrections
    is returned unchanged.

    Args:
      adapter: an adapter with or without dense corrections.
    """
    if not adapter.delta:
        return adapter
    lora: dict[str, LoraFactors] = {}
    for name in sorted({*adapter.lora, *adapter.delta}, key=PROJECTIONS.index):
        layers = []
        for layer in range(adapter.depth(otherwise=0)):
            weight = np.zeros(()) if name not in adapter.delta else np.asarray(adapter.delta[name][layer], np.float64)
            if name in adapter.lora:
                scale = adapter.scale[name][layer] if isinstance(adapter.scale, dict) else adapter.scale
                factors = adapter.lora[name]
                product = np.asarray(factors.a[layer], np.float64) @ np.asarray(factors.b[layer], np.float64)
                weight = weight + float(scale) * product
            left, values, right = np.linalg.svd(weight, full_matrices=False)
            rank = int(np.count_nonzero(values > values[0] * max(weight.shape) * np.finfo(np.float32).eps))
            root = np.sqrt(values[:rank])
            layers.append((left[:, :rank] * root, root[:, None] * right[:rank]))
        widest = max(1, *(a.shape[1] for a, _ in layers))
        a = np.stack([np.pad(a, ((0, 0), (0, widest - a.shape[1]))) for a, _ in layers])
        b = np.stack([np.pad(b, ((0, widest - b.shape[0]), (0, 0))) for _, b in layers])
        lora[name] = LoraFactors(a=jnp.asarray(a, jnp.float32), b=jnp.asarray(b, jnp.float32))
    return Adapter(lora=lora, scale=jnp.float32(1.0), dropout=adapter.dropout)
