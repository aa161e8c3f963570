"""Messages of fewer bits: bfloat16, or whole numbers of 8 or 4 bits with a scale for each block.

bfloat16 keeps the first 16 bits of a float32. For whole numbers, a leaf's entries, in their order, are divided into blocks
of `BLOCK`; with the block's largest magnitude m,

    scale = m / Q,    code = round(x / scale) in [-Q, Q],    Q = 127 for int8 and 7 for int4,

and the receiver takes code x scale. A message has the codes, two of 4 bits in a byte, and a float32 scale per block: 8.25
and 4.25 bits per entry.

Stochastic rounding, floor(x / scale + u) with u uniform in [0, 1), is unbiased and off by less than one step. Rounding to
the nearest is off by at most half a step, but always in the same direction for the same x. Either way the largest error of a
block is at most m / Q, so that error feedback converges.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from devft_jax.federated.channels.channel import Channel, compressor, is_float
from devft_jax.typing import PyTree

BLOCK = 128
"""Entries that share a scale."""
LARGEST = {8: 127, 4: 7}
"""The largest code, by number of bits."""


class Packed(struct.PyTreeNode):
    """One leaf as whole numbers of 8 or 4 bits.

    Attributes:
      codes: i8[n], or u8[ceil(n / 2)] with two codes in a byte, each plus 8, the first in the lower bits.
      scales: f32[ceil(n / BLOCK)].
      shape: shape of the leaf, of n entries.
      bits: 8 or 4.
    """

    codes: jax.Array
    scales: jax.Array
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    bits: int = struct.field(pytree_node=False)

    def dense(self) -> jax.Array:
        """The leaf in float32."""
        codes, size = self.codes, int(np.prod(self.shape, dtype=np.int64))
        if self.bits == 4:
            codes = jnp.stack([codes & 15, codes >> 4], axis=-1).ravel()[:size].astype(jnp.int32) - 8
        scales = jnp.repeat(self.scales, BLOCK)[:size]
        return (codes.astype(jnp.float32) * scales).reshape(self.shape)


def rounded(values: jax.Array, uniform: jax.Array | None) -> jax.Array:
    """Whole numbers next to the values: floor(value + u), or the nearest.

    Args:
      values: floats.
      uniform: u in [0, 1) of the same shape; None to round to the nearest, and halves to the even number.
    """
    return jnp.round(values) if uniform is None else jnp.floor(values + uniform)


def packed(leaf: jax.Array, bits: int, key: jax.Array | None) -> Packed:
    """A leaf as whole numbers.

    Args:
      leaf: floats.
      bits: 8 or 4.
      key: random key of stochastic rounding; None to round to the nearest.
    """
    most, size = LARGEST[bits], leaf.size
    blocks = jnp.pad(leaf.ravel().astype(jnp.float32), (0, -size % BLOCK)).reshape(-1, BLOCK)
    scales = jnp.max(jnp.abs(blocks), axis=1) / most
    steps = blocks / jnp.where(scales > 0, scales, 1.0)[:, None]
    uniform = None if key is None else jax.random.uniform(key, steps.shape)
    codes = jnp.clip(rounded(steps, uniform), -most, most).astype(jnp.int8).ravel()[:size]
    if bits == 4:
        halves = jnp.pad(codes.astype(jnp.uint8) + jnp.uint8(8), (0, size % 2)).reshape(-1, 2)
        codes = halves[:, 0] | (halves[:, 1] << 4)
    return Packed(codes=codes, scales=scales, shape=leaf.shape, bits=bits)


def in_bfloat16(leaf: jax.Array, key: jax.Array | None) -> jax.Array:
    """A leaf in bfloat16.

    Args:
      leaf: floats.
      key: random key of stochastic rounding; None to round to the nearest.
    """
    if key is None:
        return leaf.astype(jnp.bfloat16)
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    # The last 16 bits are a number of 2^-16 steps: a uniform number of these carries into the first 16 as often.
    carried = (bits + jax.random.bits(key, leaf.shape, jnp.uint16)) >> 16
    found = jax.lax.bitcast_convert_type(carried.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(leaf), found, leaf.astype(jnp.bfloat16))


def quantised(kind: str, rounding: str) -> Channel:
    """The channel that quantises every float leaf.

    Args:
      kind: "bf16", "int8" or "int4".
      rounding: "stochastic" or "nearest".
    """

    def encode(message: PyTree, key: jax.Array) -> PyTree:
        leaves, structure = jax.tree.flatten(message)
        sent = []
        for index, leaf in enumerate(leaves):
            own = jax.random.fold_in(key, np.uint32(index)) if rounding == "stochastic" else None
            if is_float(leaf):
                sent.append(in_bfloat16(leaf, own) if kind == "bf16" else packed(leaf, int(kind[3:]), own))
            else:
                sent.append(leaf)
        return jax.tree.unflatten(structure, sent)

    def decode(message: PyTree) -> PyTree:
        def one(leaf: Packed | jax.Array) -> jax.Array:
            if isinstance(leaf, Packed):
                return leaf.dense()
            return leaf.astype(jnp.float32) if is_float(leaf) else leaf

        return jax.tree.map(one, message, is_leaf=lambda leaf: isinstance(leaf, Packed))

    return compressor(kind, encode, decode)
