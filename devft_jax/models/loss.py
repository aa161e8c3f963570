"""Next-token statistics without ever holding all logits: the head is multiplied a chunk of the vocabulary at a time.

At a vocabulary of 128,256 the logits of one batch of 16 x 512 tokens are 4.2 GB in float32, far more than the rest of a
low-rank training step. A scan over chunks of the head keeps a running log-sum-exp instead, and the backward pass
recomputes each chunk.
"""

import jax
import jax.numpy as jnp
from flax import struct

from devft_jax.models.llama import (
    DEFAULT_COMPUTE,
    Adapter,
    Base,
    Compute,
    ModelConfig,
    head_weight,
    hidden_states,
)


class TokenStatistics(struct.PyTreeNode):
    """Per token: `nll` negative log-likelihood in nats, `hit` whether the token is the most likely one; both [...]."""

    nll: jax.Array
    hit: jax.Array


def token_statistics(hidden: jax.Array, head: jax.Array, targets: jax.Array, *, chunk: int = 16_384) -> TokenStatistics:
    """Score `targets` i32[...] under `softmax(hidden @ head)`.

    Args:
      hidden: [..., D].
      head: [D, V].
      targets: i32[...], the token that each hidden state should predict.
      chunk: columns of the head multiplied at once; a vocabulary that it does not divide is handled exactly.
    """
    vocabulary = head.shape[-1]
    width = min(chunk, vocabulary)
    shape = targets.shape

    def step(carry, start):
        normaliser, best, best_index, target_logit = carry
        # The last chunk is moved back to stay inside the head; columns already counted are masked out.
        offset = jnp.minimum(start, vocabulary - width)
        columns = offset + jnp.arange(width)
        part = jax.lax.dynamic_slice_in_dim(head, offset, width, axis=1).astype(hidden.dtype)
        logits = jnp.einsum("...d,dv->...v", hidden, part, preferred_element_type=jnp.float32)
        logits = jnp.where(columns >= start, logits, -jnp.inf)
        normaliser = jnp.logaddexp(normaliser, jax.nn.logsumexp(logits, axis=-1))
        local = targets - offset
        inside = (targets >= start) & (local < width)
        picked = jnp.take_along_axis(logits, jnp.clip(local, 0, width - 1)[..., None], axis=-1)
        target_logit = jnp.where(inside, picked[..., 0], target_logit)
        top = jnp.argmax(logits, axis=-1)
        top_logit = jnp.max(logits, axis=-1)
        best_index = jnp.where(top_logit > best, columns[top], best_index)
        return (normaliser, jnp.maximum(best, top_logit), best_index, target_logit), None

    lowest = jnp.full(shape, -jnp.inf, jnp.float32)
    carry = (lowest, lowest, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    starts = jnp.arange(0, vocabulary, width)
    if len(starts) == 1:
        carry, _ = step(carry, starts[0])
    else:
        carry, _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, starts)
    normaliser, _, best_index, target_logit = carry
    return TokenStatistics(nll=normaliser - target_logit, hit=best_index == targets)


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
) -> TokenStatistics:
    """`nll` and `hit` f32/bool[B, T-1] of tokens 1..T-1, zero and True where `mask` bool[B, T] is False.

    `mask[b, t]` marks the completion tokens, those that a client learns to produce; `prefix` as in `hidden_states`.
    """
    # The first True of a row; 0 where there is none.
    prompt_lengths = jnp.argmax(mask, axis=-1)
    hidden = hidden_states(
        config, base, adapter, tokens, compute=compute, key=key, prompt_lengths=prompt_lengths, prefix=prefix
    )
    statistics = token_statistics(hidden[:, :-1], head_weight(base), tokens[:, 1:], chunk=compute.vocabulary_chunk)
    counted = mask[:, 1:]
    return TokenStatistics(nll=jnp.where(counted, statistics.nll, 0.0), hit=statistics.hit | ~counted)


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
) -> jax.Array:
    """Mean negative log-likelihood of the completion tokens of a batch, in nats; 0 for a batch without any."""
    statistics = completion_statistics(config, base, adapter, tokens, mask, compute=compute, key=key, prefix=prefix)
    return jnp.sum(statistics.nll) / jnp.maximum(jnp.sum(mask[:, 1:]), 1)
