"""Splits of a data set over clients, as pure functions of group codes and a seed.

- `iid`: one shuffle, then parts whose sizes differ by at most one.
- `dirichlet`: label skew as in Hsu et al. 2019 (arXiv:1909.06335): for every category the clients' shares are one draw from
  a
symmetric Dirichlet(alpha). Common implementations redraw until no client is empty, which at small alpha may never end; here
a single draw is used and an empty client gets one example of the largest client, so that the function ends for every alpha.
- `topic` and `length`: the same draw over clusters of texts (as in FedNLP, Lin et al. 2022, arXiv:2104.08815) or over bins
  of
lengths, for data without labels.
- `quantity`: quantity skew as in Li et al., ICDE 2022 (arXiv:2102.02079): every client has the same distribution, and sizes
  are
proportional to one Dirichlet(alpha) draw. Here the draw divides what remains after one example for each client.
- `field` and `file`: natural splits, one client per value of a field or per file.

Every example goes to exactly one client, and indices are sorted, so that a split is a set and not an order. The same seed
gives the same split of the same sequence. If `keys` of the examples' contents are given, a drawn split is also a function of
the multiset of (key, group): whatever the order of the examples, a client gets the same contents.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from devft_jax.data.choices import METHODS, NATURAL
from devft_jax.errors import InputError

# First element of the random stream of partitions.
_PARTITION_STREAM = 2


def random_stream(*path: int) -> np.random.Generator:
    """The random generator for a path of non-negative integers: a purpose, a seed, a round ...

    Different paths give independent streams, whatever else is drawn and in which order.

    Args:
      *path: non-negative integers.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(path)))


def apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """Divide `total` into whole parts i64[n] in proportion to `weights` [n], by largest remainders.

    The parts add up to `total` exactly; of equal remainders the earlier part is preferred.

    Args:
      total: the number to divide.
      weights: [n], not negative, not all zero.
    """
    exact = total * np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    parts = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(parts - exact, kind="stable")
    parts[by_remainder[: total - parts.sum()]] += 1
    return parts


def partition(
    groups: Sequence[int] | np.ndarray,
    method: str,
    *,
    num_clients: int | None = None,
    alpha: float = 0.5,
    seed: int | np.random.Generator = 0,
    keys: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Assign every example to one client.

    Args:
      groups: i32[N], the group of each example: its category for `dirichlet` and `field`, its topic
        or bin for `topic` and `length`, its file for `file`; for `iid` and `quantity` only the number
        of examples matters.
      method: one of `METHODS`.
      num_clients: C, for the drawn splits; the natural splits have one client per group, from 0 to
        the largest code, or to C - 1 if that is given and larger.
      alpha: Dirichlet concentration; small values give each group to few clients, or most examples
        to few clients with `quantity`.
      seed: an integer, or a generator, which is then advanced. Natural splits draw nothing.
      keys: u64[N], a digest of each example's content. Drawn splits then distribute the examples in the
        order of their keys instead of the given order.
    Returns:
      C sorted arrays i64 that together hold 0..N-1 once each. With the drawn splits none is empty;
        with `field` and `file` a client is empty if no example has its code.

    Raises:
      InputError: unknown method, fewer examples than clients, alpha not positive, or a negative
        code (an example without a group) where groups matter.
    """
    codes = np.asarray(groups)
    if method not in METHODS:
        raise InputError(f"partition {method!r} is unknown; choose from {', '.join(METHODS)}.")
    if method not in ("iid", "quantity") and (codes < 0).any():
        raise InputError(
            f"partition {method!r} needs a group for every example and example "
            f"{int(np.argmax(codes < 0))} has none; use iid, or give it one."
        )
    if method in NATURAL:
        return _by_group(codes, num_clients)
    if num_clients is None or num_clients < 1:
        raise InputError(f"clients {num_clients} is not a positive number; use 1 or more.")
    if len(codes) < num_clients:
        raise InputError(f"{len(codes)} examples cannot fill {num_clients} clients; use fewer clients or more data.")
    if not 0 < alpha < np.inf:
        raise InputError(f"alpha {alpha} is not a positive number; 0.5 is usual.")
    stream = seed
    if not isinstance(stream, np.random.Generator):
        stream = random_stream(_PARTITION_STREAM, stream)
    order = np.arange(len(codes)) if keys is None else np.lexsort((codes, keys))
    if method == "iid":
        parts = np.array_split(stream.permutation(len(codes)), num_clients)
    elif method == "quantity":
        parts = _by_size(len(codes), num_clients, alpha, stream)
    else:
        parts = _dirichlet(codes[order], num_clients, alpha, stream)
    return [np.sort(order[part]) for part in parts]


def _by_group(codes: np.ndarray, num_groups: int | None) -> list[np.ndarray]:
    num_groups = max(num_groups or 0, int(codes.max(initial=-1)) + 1)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.searchsorted(codes[order], np.arange(1, num_groups)))


def _by_size(count: int, num_clients: int, alpha: float, stream: np.random.Generator) -> list[np.ndarray]:
    shares = stream.dirichlet(np.full(num_clients, alpha))
    sizes = 1 + apportion(count - num_clients, shares)
    return np.split(stream.permutation(count), np.cumsum(sizes)[:-1])


def _dirichlet(codes: np.ndarray, num_clients: int, alpha: float, stream: np.random.Generator) -> list[np.ndarray]:
    owner = np.empty(len(codes), np.int64)
    for category in np.unique(codes):
        members = stream.permutation(np.flatnonzero(codes == category))
        shares = stream.dirichlet(np.full(num_clients, alpha))
        owner[members] = np.repeat(np.arange(num_clients), apportion(len(members), shares))
    parts = _by_group(owner, num_clients)
    # The largest client first, the earlier of two equal ones. A client that was empty never becomes the largest.
    largest_first = [(-len(part), client) for client, part in enumerate(parts)]
    heapq.heapify(largest_first)
    for empty in [client for client, part in enumerate(parts) if not len(part)]:
        negative_size, largest = largest_first[0]
        taken = stream.choice(parts[largest])
        parts[largest] = parts[largest][parts[largest] != taken]
        parts[empty] = np.array([taken])
        heapq.heapreplace(largest_first, (negative_size + 1, largest))
    return parts
