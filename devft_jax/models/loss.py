"""Next-token loss of the counted tokens, without ever holding the logits of all of them.

A client learns only completions: predictions inside a prompt or padding are never used, so the head is not applied
there. The counted tokens are gathered and processed in blocks; the number of blocks depends on the number of tokens, not on
the batch's shape. With a vocabulary of 128,256 the logits of 16 x 512 tokens would be 4.2 GB in float32, far
more than the rest of a low-rank training step; those of a block of 256 are 131 MB.

When the loss is differentiated, a block's gradient with respect to its hidden states is computed together with its
probabilities, so that each logit is computed once.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.base import Base, head_weight
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute, hidden_states


class TokenStatistics(struct.PyTreeNode):
    """Loss and exact match of each token.

    Attributes:
      nll: f32[...], negative log-likelihood in nats.
      hit: bool[...], whether the token is the most likely one; None if it was not requested, because the search through the
        vocabulary costs a small model more than a layer.
    """

    nll: jax.Array
    hit: jax.Array | None


def completion_loss(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    compute: Compute = DEFAULT_COMPUTE,
    key: jax.Array | None = None,
    prefix: jax.Array | None = None,
    count: jax.Array | None = None,
    axis: str | None = None,
) -> jax.Array:
    """Mean negative log-likelihood of the completion tokens of a batch, in nats; 0 for a batch without any.

    Args:
      config: as in `hidden_states`.
      base: frozen weights.
      adapter: the adapter, or None.
      tokens: i32[B, T], padded on the right.
      mask: bool[B, T], the completion tokens.
      compute: execution choices.
      key: as in `hidden_states`.
      prefix: as in `hidden_states`.
      count: i32[], number of completion tokens of the whole batch if the rows are only a part of it: the losses of the
        parts then add up to that of the batch.
      axis: as in `token_statistics`.
    """
    options: dict[str, Any] = {"compute": compute, "key": key, "prefix": prefix, "hits": False, "axis": axis}
    statistics = completion_statistics(config, base, adapter, tokens, mask, **options)
    return jnp.sum(statistics.nll) / jnp.maximum(completion_tokens(mask) if count is None else count, 1)


def completion_tokens(mask: jax.Array) -> jax.Array:
    """i32[], the number of counted tokens of a batch; the first token of a row is never predicted.

    Args:
      mask: bool[B, T], the completion tokens.
    """
    return jnp.sum(mask[:, 1:], dtype=jnp.int32)


def completion_statistics(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    compute: Compute = DEFAULT_COMPUTE,
    key: jax.Array | None = None,
    prefix: jax.Array | None = None,
    hits: bool = True,
    axis: str | None = None,
) -> TokenStatistics:
    """Statistics [B, T-1] of tokens 1..T-1; where `mask` is False, `nll` is zero and `hit` True.

    Args:
      config: as in `hidden_states`.
      base: frozen weights.
      adapter: the adapter, or None.
      tokens: i32[B, T], padded on the right.
      mask: bool[B, T], the completion tokens, which a client learns to produce.
      compute: execution choices.
      key: as in `hidden_states`.
      prefix: as in `hidden_states`.
      hits: as in `token_statistics`.
      axis: as in `token_statistics`.
    """
    # The first True of a row; 0 if there is none.
    prompt_lengths = jnp.argmax(mask, axis=-1)
    hidden = hidden_states(
        config, base, adapter, tokens, compute=compute, key=key, prompt_lengths=prompt_lengths, prefix=prefix
    )
    return token_statistics(
        hidden[:, :-1], head_weight(base), tokens[:, 1:], mask[:, 1:], rows=compute.head_rows, hits=hits, axis=axis
    )


def token_statistics(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    counted: jax.Array,
    *,
    rows: int = DEFAULT_COMPUTE.head_rows,
    hits: bool = True,
    axis: str | None = None,
) -> TokenStatistics:
    """Loss of `targets` under `softmax(hidden @ head)` where they are counted.

    Args:
      hidden: [..., D].
      head: [D, V].
      targets: i32[...], the token that each hidden state should predict.
      counted: bool[...]; elsewhere `nll` is zero, without a gradient, and `hit` is True.
      rows: number of tokens whose logits are held at once; it need not divide the number of tokens.
      hits: whether to determine if targets are the most likely tokens.
      axis: name of a `vmap` over which all run as many blocks as the member that needs most. Without it a `vmap` costs a
        copy of everything in every block.
    """
    states = hidden.reshape(-1, hidden.shape[-1])
    scored = _scored(min(rows, counted.size), axis, hits, states, head, targets.ravel(), counted.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(targets.shape), scored)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scored(
    rows: int, axis: str | None, hits: bool, hidden: jax.Array, head: jax.Array, targets: jax.Array, counted: jax.Array
) -> TokenStatistics:
    """`token_statistics` of tokens on one axis [N]."""
    return _score(rows, axis, hits, hidden, head, targets, counted, differentiate=False)[0]


class _Order(struct.PyTreeNode):
    """The counted tokens, gathered.

    Attributes:
      index: i32[M], their numbers, then zeros. M is N rounded up to whole blocks.
      place: i32[N], the position of a counted token in `index`.
      blocks: i32[], the number of blocks with any tokens.
    """

    index: jax.Array
    place: jax.Array
    blocks: jax.Array


def _score(
    rows: int,
    axis: str | None,
    hits: bool,
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    counted: jax.Array,
    *,
    differentiate: bool,
) -> tuple[TokenStatistics, Any]:
    """As `_scored`, with the values that the backward pass needs."""
    order = _order(rows, axis, counted)

    def body(number: jax.Array, carry: Any) -> Any:
        nll, hit, slopes, normalisers = carry
        tokens, _, logits = _block(rows, number, hidden, head, order.index)
        wanted = targets[tokens]
        top = jnp.max(logits, axis=-1)
        shares = jnp.exp(logits - top[:, None])
        total = jnp.sum(shares, axis=-1)
        normaliser = top + jnp.log(total)
        picked = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * rows, axis=0)
        if differentiate:
            slope = shares / total[:, None] - (jnp.arange(logits.shape[-1], dtype=jnp.int32)[None] == wanted[:, None])
            by_state = jnp.einsum(
                "nv,dv->nd",
                slope.astype(hidden.dtype),
                head.astype(hidden.dtype),
                preferred_element_type=jnp.float32,
            )
            slopes = put(slopes, by_state.astype(hidden.dtype))
        if hits:
            hit = put(hit, jnp.argmax(logits, axis=-1) == wanted)
        return put(nll, normaliser - picked), hit, slopes, put(normalisers, normaliser)

    size = len(order.index)
    slopes = jnp.zeros((size, hidden.shape[-1]), hidden.dtype) if differentiate else None
    carry = jnp.zeros(size, jnp.float32), jnp.zeros(size, bool) if hits else None, slopes, jnp.zeros(size, jnp.float32)
    nll, hit, slopes, normalisers = jax.lax.fori_loop(0, order.blocks, body, carry)
    scored = TokenStatistics(
        nll=jnp.where(counted, nll[order.place], 0.0), hit=hit[order.place] | ~counted if hits else None
    )
    return scored, (order, slopes, normalisers, hidden, head, targets, counted)


def _order(rows: int, axis: str | None, counted: jax.Array) -> _Order:
    room = -(-counted.size // rows) * rows
    blocks = -(-jnp.sum(counted, dtype=jnp.int32) // rows)
    return _Order(
        index=jnp.nonzero(counted, size=room, fill_value=0)[0].astype(jnp.int32),
        place=jnp.maximum(jnp.cumsum(counted, dtype=jnp.int32) - 1, 0),
        blocks=blocks if axis is None else jax.lax.pmax(blocks, axis),
    )


def _block(rows: int, number: jax.Array, hidden: jax.Array, head: jax.Array, index: jax.Array) -> tuple[jax.Array, ...]:
    """A block's tokens, their hidden states and their logits f32[rows, V]."""
    tokens = jax.lax.dynamic_slice_in_dim(index, number * rows, rows)
    states = hidden[tokens]
    logits = jnp.einsum("nd,dv->nv", states, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return tokens, states, logits


def _backward(rows: int, axis: str | None, hits: bool, kept: Any, gradients: TokenStatistics) -> tuple[Any, ...]:
    order, slopes, normalisers, hidden, head, targets, counted = kept
    weights = jnp.where(counted, gradients.nll, 0.0)
    by_hidden = (weights[:, None] * slopes[order.place].astype(jnp.float32)).astype(hidden.dtype)
    in_order = jnp.where(jnp.arange(len(order.index), dtype=jnp.int32) < jnp.sum(counted), weights[order.index], 0.0)

    # Needed only if the head itself is trained, as in pretraining; otherwise unused, and the compiler removes it.
    def body(number: jax.Array, total: jax.Array) -> jax.Array:
        tokens, states, logits = _block(rows, number, hidden, head, order.index)
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=number * rows, slice_size=rows)
        slope = jnp.exp(logits - cut(normalisers)[:, None])
        slope = slope - (jnp.arange(logits.shape[-1], dtype=jnp.int32)[None] == targets[tokens][:, None])
        slope = (cut(in_order)[:, None] * slope).astype(hidden.dtype)
        return total + jnp.einsum("nd,nv->dv", states, slope, preferred_element_type=jnp.float32)

    by_head = jax.lax.fori_loop(0, order.blocks, body, jnp.zeros(head.shape, jnp.float32)).astype(head.dtype)
    integers = (np.zeros(leaf.shape, jax.dtypes.float0) for leaf in (targets, counted))
    return by_hidden, by_head, *integers


_scored.defvjp(functools.partial(_score, differentiate=True), _backward)
