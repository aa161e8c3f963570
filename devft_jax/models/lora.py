"""Low-rank adapters: their options and PEFT's initialisation (Hu et al. 2022; Kaiming-uniform a, zero b)."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from devft_jax.errors import InputError
from devft_jax.models.llama import PROJECTIONS, Adapter, LoraFactors, ModelConfig


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """Low-rank adaptation of the frozen model."""

    rank: int = 32
    """Rank r of the low-rank update of each adapted projection."""
    alpha: float = 64.0
    """Numerator of the update's scale alpha / r."""
    dropout: float = 0.05
    """Probability of dropping an input element of the low-rank product while training."""
    targets: tuple[str, ...] = ("q", "v")
    """Adapted projections, any of q, k, v, o, gate, up, down."""


def validate_lora(options: LoraOptions) -> None:
    """Raise `InputError` unless the options describe an adapter."""
    if options.rank < 1:
        raise InputError(f"rank {options.rank} is not positive; use 1 or more, such as 32.")
    if options.alpha <= 0:
        raise InputError(f"alpha {options.alpha} is not positive; twice the rank is usual.")
    if not 0.0 <= options.dropout < 1.0:
        raise InputError(f"dropout {options.dropout} is outside [0, 1); 0.05 is usual.")
    unknown = [name for name in options.targets if name not in PROJECTIONS]
    if unknown or not options.targets or len(set(options.targets)) < len(options.targets):
        raise InputError(
            f"targets {','.join(options.targets) or '(none)'} must name projections once each; "
            f"choose from {', '.join(PROJECTIONS)}."
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
    """A fresh adapter that leaves the base unchanged: a ~ U(-1/sqrt(in), 1/sqrt(in)) per layer, b = 0.

    Args:
      key: random key; each layer and target draws its own `a`.
      config: the base's architecture.
      rank: r. alpha: the update is scaled by alpha / r. targets: adapted projections.
      dropout: probability of dropping an input element of the low-rank product while training.
    """
    validate_lora(LoraOptions(rank=rank, alpha=alpha, targets=tuple(targets), dropout=dropout))
    lora = {}
    for name in sorted(targets, key=PROJECTIONS.index):
        fan_in, fan_out = config.projection_shape(name)
        bound = fan_in**-0.5
        target_key = jax.random.fold_in(key, PROJECTIONS.index(name))
        a = jax.random.uniform(target_key, (config.layers, fan_in, rank), minval=-bound, maxval=bound)
        lora[name] = LoraFactors(a=a, b=jnp.zeros((config.layers, rank, fan_out)))
    return Adapter(lora=lora, scale=jnp.float32(alpha / rank), dropout=dropout)


def adapter_norms(adapter: Adapter) -> jax.Array:
    """Size of the update of each layer, f32[L]: the root of the sum over targets of ||scale a b||_F^2.

    The product [in, out] is never formed: ||a b||_F^2 is the sum of the elementwise product of a^T a and b b^T, both [r, r].
    """

    def squared(name: str, factors: LoraFactors) -> jax.Array:
        a, b = factors.a.astype(jnp.float32), factors.b.astype(jnp.float32)
        inner = jnp.einsum("lir,lis->lrs", a, a, precision="highest")
        outer = jnp.einsum("lro,lso->lrs", b, b, precision="highest")
        scale = adapter.scale[name] if isinstance(adapter.scale, dict) else adapter.scale
        return scale**2 * jnp.sum(inner * outer, axis=(1, 2))

    # Rounding may leave a product of Gram matrices just below zero.
    return jnp.sqrt(jnp.maximum(sum(squared(name, factors) for name, factors in adapter.lora.items()), 0))
