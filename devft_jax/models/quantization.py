"""Frozen weights packed in 8 or 4 bits: symmetric integers, or NF4, in blocks that share one float16 scale.

    w  ~  value(code) * scale,    scale = max |w| over the block / bound

    int8   value(c) = c, -128..127   bound 127.5
    int4   value(c) = c, -8..7       bound 7.5
    nf4    value(c) = one of 16 quantiles of the normal distribution in [-1, 1], bound 1  (Dettmers et al. 2023, QLoRA)

The half above the largest integer uses its whole rounding interval. A block is 64 consecutive inputs of one output; if 64
does not divide the number of inputs, it is the largest power of two that does. Two 4-bit codes share a byte: the first half
of a block is in the low nibbles and the second in the high ones. JAX's own 4-bit types are not used: neither safetensors nor
orbax can store all of them, and scanning over a stack of them unpacks the whole stack.

Embedding, head, norms and biases stay floats. Low-rank factors are trained beside the packed weights (QLoRA), which are
expanded one layer at a time in the forward pass and again in the backward pass.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from devft_jax.errors import InputError
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.base import Base, init_base
from devft_jax.models.options import BITS

BLOCK = 64

_BOUND = {"int8": 127.5, "int4": 7.5, "nf4": 1.0}

# Appendix E of Dettmers et al. 2023: quantiles of the standard normal distribution, asymmetric so that zero is exact.
NF4_VALUES = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


class QTensor(struct.PyTreeNode):
    """A packed weight `[..., in, out]` with N blocks of K inputs: a `Weight`.

    Attributes:
      code: i8[..., N, K, out] for int8 and u8[..., N, K / 2, out] for the 4-bit kinds.
      scale: f16[..., N, out].
      kind: one of `BITS`.
    """

    code: Any
    scale: Any
    kind: str = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, `[..., in, out]`."""
        *lead, blocks, rows, fan_out = self.code.shape
        return (*lead, blocks * rows * 8 // BITS[self.kind], fan_out)

    @property
    def divisions(self) -> tuple[tuple[int, ...], ...]:
        """Codes and scales together, without cutting a block: along the blocks, or along the outputs."""
        return (-3, -2), (-1, -1)

    def dequantize(self, dtype: Any) -> jax.Array:
        """The weight `[..., in, out]`; multiplied in float32, then rounded to `dtype`.

        Args:
          dtype: data type of the result.
        """
        codes = self.code
        if BITS[self.kind] == 4:
            codes = jnp.concatenate([codes & 15, codes >> 4], axis=-2)
        if self.kind == "nf4":
            values = jnp.asarray(NF4_VALUES)[codes]
        elif self.kind == "int4":
            values = codes.astype(jnp.float32) - 8
        else:
            values = codes.astype(jnp.float32)
        weight = (values * self.scale[..., None, :].astype(jnp.float32)).astype(dtype)
        return weight.reshape(self.shape)


def block_size(fan_in: int) -> int:
    """Number of inputs that share a scale: 64, or the largest power of two that divides `fan_in`.

    Args:
      fan_in: number of inputs of the weight.
    """
    return math.gcd(fan_in, BLOCK)


def quantize(weight: jax.Array, kind: str) -> QTensor:
    """Pack a float weight `[..., in, out]`; pure and traceable.

    Args:
      weight: finite; magnitudes up to 65,504 times the kind's bound can be represented.
      kind: "int8", "int4" or "nf4".

    Raises:
      ValueError: `kind` is unknown, or the number of inputs is odd for a 4-bit kind.
    """
    if kind not in BITS:
        raise ValueError(f"quantization {kind!r} is unknown; choose from {', '.join(BITS)}.")
    *lead, fan_in, fan_out = weight.shape
    size = block_size(fan_in)
    if BITS[kind] == 4 and size == 1:
        raise ValueError(f"quantization {kind!r} packs pairs of inputs and a weight has {fan_in}; use int8 or none.")
    blocks = weight.astype(jnp.float32).reshape(*lead, fan_in // size, size, fan_out)
    scale = (jnp.max(jnp.abs(blocks), axis=-2) / _BOUND[kind]).astype(jnp.float16)
    # Codes are chosen for the stored scale; a block whose stored scale is zero is zero.
    stored = scale[..., None, :].astype(jnp.float32)
    scaled = jnp.where(stored > 0, blocks / jnp.where(stored > 0, stored, 1.0), 0.0)
    if kind == "int8":
        return QTensor(jnp.clip(jnp.round(scaled), -128, 127).astype(jnp.int8), scale, kind)
    if kind == "int4":
        codes = (jnp.clip(jnp.round(scaled), -8, 7) + 8).astype(jnp.uint8)
    else:
        # Comparing with every border between neighbouring values is one pass of arithmetic; a search needs many gathers.
        borders = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2
        codes = sum((scaled > border).astype(jnp.uint8) for border in borders)
    low, high = jnp.split(codes, 2, axis=-2)
    return QTensor(low | (high << 4), scale, kind)


def quantize_base(base: Base, kind: str) -> Base:
    """The base with its seven projections packed; weights that are already packed are unchanged.

    Args:
      base: floats, or partly packed.
      kind: "int8", "int4" or "nf4".

    Raises:
      InputError: a projection cannot be packed this way.
    """
    packed = {}
    for name in PROJECTIONS:
        weight = getattr(base.blocks, name)
        if not isinstance(weight, QTensor):
            packed[name] = quantize_projection(name, weight, kind)
    return base.replace(blocks=base.blocks.replace(**packed))


def quantize_projection(name: str, weight: Any, kind: str) -> QTensor:
    """One projection, packed.

    Args:
      name: name of the projection, for messages.
      weight: [..., in, out], on a device or in host memory.
      kind: "int8", "int4" or "nf4".

    Raises:
      InputError: it cannot be packed this way, or has a value that a float16 scale cannot represent.
    """
    try:
        packed = _quantize(weight, kind)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error
    if not bool(jnp.all(jnp.isfinite(packed.scale))):
        raise InputError(
            f"{name} has a value that is not finite or too large for quantization {kind!r}; restore the weights or use none."
        )
    return packed


_quantize = jax.jit(quantize, static_argnums=1)


def is_quantized(base: Base) -> bool:
    """Whether a base's projections are packed.

    Args:
      base: arrays or shapes.
    """
    return any(isinstance(getattr(base.blocks, name), QTensor) for name in PROJECTIONS)


@functools.lru_cache(maxsize=64)
def base_shapes(config: ModelConfig, *, dtype: str, quantization: str = "none") -> Base:
    """A base's leaves as shapes and dtypes, as `load_pretrained` stores them; takes milliseconds at any size.

    Args:
      config: the architecture.
      dtype: data type of weights that stay floats.
      quantization: "none", "int8", "int4" or "nf4".

    Raises:
      InputError: a projection cannot be packed this way.
    """
    base = jax.eval_shape(lambda: init_base(jax.random.key(0), config, dtype=dtype))
    if quantization == "none":
        return base
    packed = {}
    for name in PROJECTIONS:
        try:
            packed[name] = jax.eval_shape(lambda weight: quantize(weight, quantization), getattr(base.blocks, name))
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error
    return base.replace(blocks=base.blocks.replace(**packed))
