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

from devft_jax.data.examples import Examples
from devft_jax.data.partition import random_stream

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

    Args:
      max_length: of an example.
      smallest: bucket.
    """
    largest = -(-max_length // 8) * 8
    buckets = [-(-smallest // 8) * 8]
    while buckets[-1] < largest:
        buckets.append(2 * buckets[-1])
    return (*buckets[:-1], largest)


def fitted_lengths(lengths: np.ndarray, most: int, *, worth: float = 0.05) -> tuple[int, ...]:
    """The padded lengths to which examples of these lengths lose least, ascending.

    Every example is padded to the shortest of them that holds it, all in multiples of 8 tokens. As many are taken, up to
    `most`, as each save the share `worth` of all tokens run; each is one more program to compile.

    Args:
      lengths: integers [N], positive.
      most: number of padded lengths, 1 or more.
      worth: share of all tokens that each of them must save.
    """
    steps, counts = np.unique(-(-np.asarray(lengths) // 8), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[i]: least padded tokens of the examples of the first i steps, with as many lengths as rows were made.
    cost = np.concatenate([[0.0], np.full(len(steps), np.inf)])
    parents: list[np.ndarray] = []
    totals: list[float] = []
    for _ in range(min(most, len(steps))):
        # [i, j]: the first j steps with one length fewer, the rest up to i padded to step i.
        padded = cost[None, :] + (below[1:, None] - below[None, :]) * steps[:, None].astype(float)
        padded = np.where(np.arange(len(steps) + 1)[None, :] <= np.arange(len(steps))[:, None], padded, np.inf)
        parents.append(np.argmin(padded, axis=1))
        cost = np.concatenate([[np.inf], np.min(padded, axis=1)])
        totals.append(cost[-1])
    kept = 1
    while kept < len(totals) and totals[kept] <= (1 - worth) * totals[kept - 1]:
        kept += 1
    found, end = [], len(steps)
    for parent in reversed(parents[:kept]):
        found.append(8 * int(steps[end - 1]))
        end = int(parent[end - 1])
    return tuple(reversed(found))


def bucket_for(length: int, buckets: Sequence[int]) -> int:
    """The smallest of ascending `buckets` that holds `length` tokens; ValueError if none does.

    Args:
      length: tokens.
      buckets: ascending.
    """
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


def evaluation_order(examples: Examples, batch_size: int, buckets: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Every example once, shortest first, in batches of few shapes and little padding.

    Yields (index i64[B], T) with T out of `buckets`, ascending. The last batch is filled up with rows of index -1.

    Args:
      examples: to be evaluated.
      batch_size: B.
      buckets: ascending.
    """
    lengths = examples.lengths
    order = np.argsort(lengths, kind="stable")
    order = np.concatenate([order, np.full(-len(order) % batch_size, -1)])
    for index in order.reshape(-1, batch_size):
        yield index, bucket_for(int(lengths[index[index >= 0][-1]]), buckets)


def evaluation_batches(
    examples: Examples, batch_size: int, buckets: Sequence[int], *, pad_id: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The batches of `evaluation_order`.

    Yields (index i64[B], tokens i32[B, T], mask bool[B, T]); rows of index -1 are all padding and masked out.

    Args:
      examples: to be evaluated.
      batch_size: B.
      buckets: ascending.
      pad_id: token of the padding.
    """
    for index, length in evaluation_order(examples, batch_size, buckets):
        yield index, *gather_batch(examples, index, length, pad_id)
