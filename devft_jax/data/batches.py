"""Arrays of a few fixed shapes from examples: what a client draws, and padded rows of it.

Data order is derived from (seed, global round, client id) and nothing else: every algorithm and every growth trains on the
same examples, and adding, removing or reordering other clients does not change a client's draw. As in OpenFedLLM's rounds a
client draws without replacement and takes exactly the requested number of local steps; a client with too few examples starts
over, freshly shuffled.

Lengths are padded to a few buckets, so that XLA compiles few programs and short examples are not padded to the longest.
Padding is on the right, where causal attention never sees it.
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
      seed: seed of the run.
      round: global round, counted through all stages.
      client_id: stable id of the client.
      steps: S, local steps.
      batch_size: B.

    Returns:
      i64[S, B], members of `client_indices`. Read row by row, each run of n is a permutation of
        them; with fewer steps the result is the first rows of that with more.
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
      max_length: largest length of an example.
      smallest: the smallest bucket.
    """
    largest = -(-max_length // 8) * 8
    buckets = [-(-smallest // 8) * 8]
    while buckets[-1] < largest:
        buckets.append(2 * buckets[-1])
    return (*buckets[:-1], largest)


def fitted_lengths(lengths: np.ndarray, most: int, *, worth: float = 0.05, least: float = 0.0) -> tuple[int, ...]:
    """The padded lengths, ascending, with which examples of these lengths need the least padding.

    Every example is padded to the shortest length that holds it; all are multiples of 8 tokens. Lengths are added, up to
    `most`, as long as each saves the share `worth` of all tokens run, and `least` tokens an example on average; each one is
    another program to compile.

    Args:
      lengths: integers [N], positive.
      most: largest number of padded lengths, at least 1.
      worth: share of all tokens that each of them must save.
      least: tokens that each of them must save in an example on average.
    """
    steps, counts = np.unique(-(-np.asarray(lengths) // 8), return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[i]: fewest padded tokens for the examples of the first i steps, with as many lengths as rows so far.
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
    # Totals are in steps of 8 tokens.
    enough = least * len(lengths) / 8
    while kept < len(totals) and totals[kept] <= min((1 - worth) * totals[kept - 1], totals[kept - 1] - enough):
        kept += 1
    found, end = [], len(steps)
    for parent in reversed(parents[:kept]):
        found.append(8 * int(steps[end - 1]))
        end = int(parent[end - 1])
    return tuple(reversed(found))


def bucket_for(length: int, buckets: Sequence[int]) -> int:
    """The smallest of ascending `buckets` that holds `length` tokens; raises ValueError if none does.

    Args:
      length: number of tokens.
      buckets: padded lengths, ascending.
    """
    for bucket in buckets:
        if length <= bucket:
            return bucket
    raise ValueError(f"an example of {length} tokens exceeds the longest bucket, {buckets[-1]}.")


def gather_batch(examples: Examples, index: np.ndarray, length: int, pad_id: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of examples, padded on the right.

    Args:
      examples: N examples.
      index: integers [...], numbers of examples; -1 gives a row of padding.
      length: T, at least the length of the longest of these examples.
      pad_id: token id of the padding.

    Returns:
      tokens i32[..., T], and mask bool[..., T] that is True for tokens of an answer, which the model
        predicts at the position before; False at position 0, which is never predicted.

    Raises:
      ValueError: one of the examples is longer than T.
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

    Yields (index i64[B], T) with T from `buckets`, ascending. The last batch is filled up with rows of index -1.

    Args:
      examples: the examples to evaluate.
      batch_size: B.
      buckets: padded lengths, ascending.
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
      examples: the examples to evaluate.
      batch_size: B.
      buckets: padded lengths, ascending.
      pad_id: token id of the padding.
    """
    for index, length in evaluation_order(examples, batch_size, buckets):
        yield index, *gather_batch(examples, index, length, pad_id)
