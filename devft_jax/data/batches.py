"""From examples to arrays of a few fixed shapes: what a client draws, and padded rows of it.

Data order folds (seed, global round, client id) and nothing else: every algorithm and every growth
schedule trains on the same examples, and adding, dropping or reordering other clients changes
nobody's draw. As in OpenFedLLM's rounds a client draws without replacement and takes exactly the
number of local steps asked for; one with too few examples starts over, freshly shuffled.

Lengths are padded to a few buckets, so that XLA compiles a few programs and short examples do not
pay for the longest. Padding is on the right, where causal attention never sees it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from devft_jax.data.partition import random_stream
from devft_jax.data.tokens import Examples

# First element of the random stream of data order.
_DRAW_STREAM = 3


def draw_examples(
    client_indices: np.ndarray,
    *,
    seed: int,
    round: int,
    client_id: int,
    steps: int,
    batch_size: int,
) -> np.ndarray:
    """The examples that a client trains on in a round.

    Args:
      client_indices: i64[n], the client's examples; n >= 1.
      seed: of the run.
      round: global round, counted through all stages.
      client_id: stable id of the client.
      steps: local steps S.
      batch_size: B.

    Returns:
      i64[S, B], members of `client_indices`. Read row by row, each run of n is a permutation of
      them; fewer steps give the first rows of more.
    """
    needed = steps * batch_size
    stream = random_stream(_DRAW_STREAM, seed, round, client_id)
    epochs = -(-needed // len(client_indices))
    order = np.concatenate([stream.permutation(client_indices) for _ in range(epochs)])
    return order[:needed].reshape(steps, batch_size)


def length_buckets(max_length: int, *, smallest: int = 32) -> tuple[int, ...]:
    """Padded lengths, ascending: `smallest` times powers of two, then `max_length`.

    Both are rounded up to multiples of 8, the narrowest tile of the accelerators.
    """
    largest = -(-max_length // 8) * 8
    buckets = [-(-smallest // 8) * 8]
    while buckets[-1] < largest:
        buckets.append(2 * buckets[-1])
    return (*buckets[:-1], largest)


def bucket_for(length: int, buckets: Sequence[int]) -> int:
    """The smallest of ascending `buckets` that holds `length` tokens; ValueError if none does."""
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"an example of {length} tokens exceeds the longest bucket, {buckets[-1]}.")


def gather_batch(examples: Examples, index: np.ndarray, length: int, pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of examples, padded on the right.

    Args:
      examples: N examples.
      index: integers [...] into the examples; -1 makes a row that is all padding.
      length: T, at least that of the longest example named.
      pad_id: token of the padding.

    Returns:
      tokens i32[..., T], and mask bool[..., T] that is True where the token is one of an answer,
      which the model predicts at the position before; False at position 0, which nothing predicts.

    Raises:
      ValueError: an example named is longer than T.
    """
    index = np.asarray(index)
    lengths = np.where(index < 0, 0, examples.lengths[index])
    if lengths.max(initial=0) > length:
        raise ValueError(f"an example of {lengths.max()} tokens does not fit into {length}.")
    position = np.arange(length)
    inside = position < lengths[..., None]
    flat = np.where(inside, examples.starts[index][..., None] + position, 0)
    tokens = np.where(inside, examples.tokens[flat], np.int32(pad_id))
    return tokens, inside & (position > 0) & examples.is_answer[flat]


def evaluation_batches(
    examples: Examples, batch_size: int, buckets: Sequence[int], *, pad_id: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Every example once, shortest first, in batches of few shapes and little padding.

    Yields (index i64[B], tokens i32[B, T], mask bool[B, T]) with T out of `buckets`, ascending. The
    last batch is filled up with rows of index -1, all padding and masked out.
    """
    lengths = examples.lengths
    order = np.argsort(lengths, kind="stable")
    order = np.concatenate([order, np.full(-len(order) % batch_size, -1)])
    for index in order.reshape(-1, batch_size):
        length = bucket_for(int(lengths[index[index >= 0][-1]]), buckets)
        yield index, *gather_batch(examples, index, length, pad_id)
