"""Bottleneck adapters whose weights a hypernetwork generates for every example (C2A: Kim et al., Findings of ACL 2023).

After the attention and after the MLP of layer l, on a sublayer's output x [T, D] of an example, before the residual sum,

    x <- x + g (gelu(x U + b1) V + b2),

with a bottleneck of width r, and biases b1 [r], b2 [D] and a gate g that all layers share. U [D, r] and V [r, D] are two
shapes of one vector v = e H, computed from a token e of width t = 8 that encodes the client, the context of the example and
the layer:

    e = y Y + c_Y + m X + c_X + E_l,        m = the mean of x over the prompt's tokens, of norm one,

with y [C] the client's shares of examples in C clusters, and E [L, t] a table of layers. H [t, r D] is F S + beta with
every row divided by its norm, F [t, r, c], S [c, D], beta [r, D]. Everything that is trained and sent, except E, is
therefore as large for one layer as for a hundred. The gate begins at zero, so that the model is unchanged at first; without
it an adapter is not the identity at the beginning.

Only the prompt's tokens enter m, one example at a time: predictions never depend on the answer, on padding, or on other
examples of the batch. (Within a prompt every position depends on the whole prompt; nothing is predicted there.)

Axis letters: B batch, T tokens, L layers, D width, r bottleneck, c inner width, C clusters, t token width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

TOKEN_WIDTH = 8
_TINY = 1e-12


class Hypernetwork(struct.PyTreeNode):
    """The trained parameters; see the module's docstring.

    Attributes:
      label_weight: Y [C, t].
      label_bias: c_Y [t].
      context_weight: X [D, t].
      context_bias: c_X [t].
      layer_tokens: E [L, t].
      left: F [t, r, c].
      right: S [c, D].
      shift: beta [r, D].
      inner_bias: b1 [r].
      outer_bias: b2 [D].
      gate: g f32[]; None for one that is always 1.
    """

    label_weight: jax.Array
    label_bias: jax.Array
    context_weight: jax.Array
    context_bias: jax.Array
    layer_tokens: jax.Array
    left: jax.Array
    right: jax.Array
    shift: jax.Array
    inner_bias: jax.Array
    outer_bias: jax.Array
    gate: jax.Array | None


class HyperAdapter(struct.PyTreeNode):
    """A hypernetwork, and its input from a client.

    Attributes:
      network: the trained parameters.
      histogram: f32[C], the shares of the client's examples in the clusters.
    """

    network: Hypernetwork
    histogram: jax.Array


class Generator(struct.PyTreeNode):
    """Values that all layers of a pass share.

    Attributes:
      rows: H, f32[t, r, D].
      token: f32[t], the part of e that is the same for all layers and examples.
      context_weight: X [D, t].
      inner_bias: b1 [r].
      outer_bias: b2 [D].
      gate: g f32[], or None.
    """

    rows: jax.Array
    token: jax.Array
    context_weight: jax.Array
    inner_bias: jax.Array
    outer_bias: jax.Array
    gate: jax.Array | None


def init_hypernetwork(
    key: jax.Array, *, width: int, layers: int, rank: int, inner: int, clusters: int, gate: bool
) -> Hypernetwork:
    """Initial parameters: F, S ~ N(0, 0.01^2), E ~ N(0, 1), linear maps uniform within 1 / sqrt(inputs), the rest zero.

    Args:
      key: random key.
      width: D of the model.
      layers: L of the model.
      rank: r.
      inner: c.
      clusters: C.
      gate: whether there is a gate.
    """
    keys = jax.random.split(key, 7)

    def uniform(key: jax.Array, inputs: int, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, minval=-(inputs**-0.5), maxval=inputs**-0.5)

    return Hypernetwork(
        label_weight=uniform(keys[0], clusters, (clusters, TOKEN_WIDTH)),
        label_bias=uniform(keys[1], clusters, (TOKEN_WIDTH,)),
        context_weight=uniform(keys[2], width, (width, TOKEN_WIDTH)),
        context_bias=uniform(keys[3], width, (TOKEN_WIDTH,)),
        layer_tokens=jax.random.normal(keys[4], (layers, TOKEN_WIDTH), jnp.float32),
        left=0.01 * jax.random.normal(keys[5], (TOKEN_WIDTH, rank, inner), jnp.float32),
        right=0.01 * jax.random.normal(keys[6], (inner, width), jnp.float32),
        shift=jnp.zeros((rank, width), jnp.float32),
        inner_bias=jnp.zeros(rank, jnp.float32),
        outer_bias=jnp.zeros(width, jnp.float32),
        gate=jnp.float32(0.0) if gate else None,
    )


def generator_of(adapter: HyperAdapter) -> Generator:
    """The values that all layers of a pass share, computed once per pass.

    Args:
      adapter: the hypernetwork and the client's shares.
    """
    network = adapter.network
    rows = jnp.einsum("trc,cd->trd", network.left, network.right) + network.shift[None]
    norm = jnp.sqrt(jnp.sum(rows**2, axis=(1, 2), keepdims=True) + _TINY)
    token = adapter.histogram @ network.label_weight + network.label_bias + network.context_bias
    return Generator(rows / norm, token, network.context_weight, network.inner_bias, network.outer_bias, network.gate)


def prompt_shares(prompt_lengths: jax.Array, length: int) -> jax.Array:
    """Each token's weight in the mean over its prompt, f32[B, T]: zero after the first i32[B] tokens of a row.

    Args:
      prompt_lengths: i32[B], tokens of each prompt.
      length: T.
    """
    inside = jnp.arange(length, dtype=jnp.int32)[None] < prompt_lengths[:, None]
    return inside / jnp.maximum(prompt_lengths, 1)[:, None].astype(jnp.float32)


def adapt(generator: Generator, shares: jax.Array, layer_token: jax.Array, x: jax.Array) -> jax.Array:
    """A sublayer's output with the adapter's output added.

    Args:
      generator: from `generator_of`.
      shares: f32[B, T], weights of the tokens in the means over their prompts.
      layer_token: the layer's row of E, f32[t].
      x: [B, T, D]; large products are computed in its dtype, the context and the token in float32.
    """
    mean = jnp.einsum("bt,btd->bd", shares, x.astype(jnp.float32))
    context = mean * jax.lax.rsqrt(jnp.sum(mean**2, axis=-1, keepdims=True) + _TINY)
    token = (generator.token + layer_token)[None] + context @ generator.context_weight
    inwards, outwards = bottleneck_weights(generator, token)
    low = jnp.einsum("btd,bdr->btr", x, inwards.astype(x.dtype)) + generator.inner_bias[None, None].astype(x.dtype)
    low = jax.nn.gelu(low, approximate=False)
    added = jnp.einsum("btr,brd->btd", low, outwards.astype(x.dtype)) + generator.outer_bias[None, None].astype(x.dtype)
    return x + (added if generator.gate is None else (generator.gate * added).astype(x.dtype))


def bottleneck_weights(generator: Generator, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """U [B, D, r] and V [B, r, D] of tokens f32[B, t]: the same numbers in two shapes, not transposes of each other.

    Args:
      generator: from `generator_of`.
      tokens: f32[B, t].
    """
    made = jnp.einsum("bt,trd->brd", tokens, generator.rows)
    batch, rank, width = made.shape
    return made.reshape(batch, width, rank), made


def generated_norms(adapter: HyperAdapter) -> jax.Array:
    """Size of every layer's adapter, f32[L]: the norm of the weights generated without a context, times the gate.

    Args:
      adapter: the hypernetwork and the client's shares.
    """
    generator = generator_of(adapter)
    _, made = bottleneck_weights(generator, generator.token[None] + adapter.network.layer_tokens)
    norms = jnp.sqrt(jnp.sum(made**2, axis=(1, 2)))
    return norms if generator.gate is None else jnp.abs(generator.gate) * norms


class Products(NamedTuple):
    """Multiply-adds of a forward pass through all layers' adapters.

    Attributes:
      token: for every token, x U and its product with V.
      example: for every example, its context's part of e, and e H.
      batch: for every batch of one client, F S and the client's part of e.
    """

    token: int
    example: int
    batch: int


def products(network: Hypernetwork) -> Products:
    """The multiply-adds of a hypernetwork; each layer has two adapters.

    Args:
      network: arrays or shapes.
    """
    adapters = 2 * network.layer_tokens.shape[0]
    tokens, rank, inner = network.left.shape
    width = network.right.shape[1]
    return Products(
        token=adapters * 2 * width * rank,
        example=adapters * (width * tokens + tokens * rank * width),
        batch=tokens * rank * inner * width + network.label_weight.size,
    )
