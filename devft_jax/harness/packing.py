"""How sorted rows are computed: beginnings that many share once, into a cache of keys and values, the rest packed.

The rows form a trie. Written down depth first, each token once, it is a sequence in which a token's descendants are the ones
right behind it, up to some end: token i is seen from token j exactly where i <= j < end(i). So a pass over the model takes a
packed sequence with three numbers for each token (id, position, end), and computes any part of the trie without computing a
token twice. What does not fit into one pass is divided: a beginning whose rows fill several passes goes into a cache first
(`Group`), where that saves more than it costs; any other is repeated in each pass (`Bin`).

SGLang shares prefixes by a radix tree in the same way (Zheng et al. 2024, arXiv:2312.07104); masks by ancestors are those of
tree attention (Miao et al. 2024, arXiv:2305.09781).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np

from devft_jax.harness.rows import Rows, ScoringRequest

SHORTEST_PREFIX = 24
"""Tokens that rows must share, for a cache of them to be worth a pass of its own."""
WORTH = 128
"""Tokens that a cache must save; about what its own pass costs beyond its tokens."""
SMALLEST_BUCKET = 64


def bucket(length: int) -> int:
    """The padded length for a number of tokens: few different ones, none more than a quarter too long above 256.

    Args:
      length: 1 or more.
    """
    step = max(SMALLEST_BUCKET, 1 << max(length - 1, 7).bit_length() - 3)
    return -(-length // step) * step


@dataclass(frozen=True)
class Bin:
    """Rows that are packed into one sequence.

    Attributes:
      rows: their numbers, ascending.
      tokens: of the sequence.
    """

    rows: tuple[int, ...]
    tokens: int


@dataclass
class Group:
    """Rows that begin alike, behind a cache of that beginning.

    Attributes:
      first: the first of its rows; each row begins with the group's prefix.
      last: behind the last of them.
      start: tokens of the prefix that the cache of the group around it holds.
      length: tokens of the prefix; 0 for the outermost group, which has none.
      bins: what is computed behind the cache.
      groups: those with a longer prefix.
    """

    first: int
    last: int
    start: int
    length: int
    bins: list[Bin] = field(default_factory=list)
    groups: list["Group"] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens to compute, of the caches too."""
        own = self.length - self.start + sum(each.tokens for each in self.bins)
        return own + sum(group.tokens for group in self.groups)


def plan(rows: Rows, capacity: int) -> Group:
    """How all rows are computed.

    Args:
      rows: sorted.
      capacity: most tokens of a packed sequence of several rows.

    Returns:
      The outermost group.
    """
    return _grouped(rows, Group(0, len(rows.tokens), 0, 0), capacity)


def _grouped(rows: Rows, group: Group, capacity: int) -> Group:
    """The group with its bins and inner groups."""
    whole: list[tuple[int, int]] = []
    # A row that is the prefix itself is computed with it.
    first = group.first + int(group.first < group.last and rows.lengths[group.first] == group.length)
    waiting = [(first, group.last)] if first < group.last else []
    while waiting:
        first, last = waiting.pop()
        total = _tokens(rows, first, last, group.length)
        if total <= capacity or last - first == 1:
            whole.append((first, last))
            continue
        common = rows.shared_by(first, last)
        saved = common - group.length
        passes = -(-(total - saved) // max(capacity - saved, capacity // 4))
        if saved >= SHORTEST_PREFIX and saved * (passes - 1) >= WORTH:
            group.groups.append(_grouped(rows, Group(first, last, group.length, common), capacity))
            continue
        cuts = [first, *(first + 1 + np.flatnonzero(rows.shared[first + 1 : last] == common)).tolist(), last]
        # The last part first, because the stack gives the last one out first.
        waiting += list(pairwise(cuts))[::-1]
    group.bins = list(_bins(rows, whole, group.length, capacity))
    return group


def _tokens(rows: Rows, first: int, last: int, prefix: int) -> int:
    """Tokens of the packed sequence of some neighbouring rows behind a prefix that they share."""
    own = rows.lengths[first + 1 : last] - np.maximum(rows.shared[first + 1 : last], prefix)
    return int(rows.lengths[first] - prefix + own.sum())


def _bins(rows: Rows, parts: list[tuple[int, int]], prefix: int, capacity: int) -> Iterator[Bin]:
    """Parts, ascending and each a whole one where it is given so, put together as long as they fit."""
    taken: list[int] = []
    total = 0
    for first, last in parts:
        shared = max(prefix, int(rows.shared[taken[-1] + 1 : first + 1].min())) if taken else prefix
        more = _tokens(rows, first, last, prefix) - (shared - prefix)
        if taken and total + more > capacity:
            yield Bin(tuple(taken), total)
            taken, total = [], 0
            more = _tokens(rows, first, last, prefix)
        taken += range(first, last)
        total += more
    if taken:
        yield Bin(tuple(taken), total)


class Packed:
    """A packed sequence as arrays, with what is scored in it.

    Attributes:
      tokens: i32[n], ids.
      positions: i32[n], in the rows that they are tokens of.
      ends: i32[n], behind the last token that sees a token.
      places: the tokens at which something is scored, each once.
      targets: for each of them the tokens whose log-likelihood is asked for.
      asked: (request, number of the place, number of the target) of every score that is wanted.
      finished: requests of which nothing is left to score afterwards.
    """

    def __init__(self, size: int) -> None:
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.ends = np.full(size, size, np.int32)
        self.places: list[int] = []
        self.targets: list[list[int]] = []
        self.asked: list[tuple[int, int, int]] = []
        self.finished: list[int] = []
        self._number: dict[int, int] = {}

    @classmethod
    def of_bin(cls, rows: Rows, requests: list[ScoringRequest], packed: Bin, prefix: int) -> Self:
        """A bin's sequence.

        Args:
          rows: all of them.
          requests: that the rows answer.
          packed: the bin.
          prefix: tokens of each row that the cache holds.
        """
        new = cls(packed.tokens)
        # Where in the sequence the tokens of the newest row are, behind the prefix.
        path = np.zeros(0, np.int64)
        size, before = 0, None
        for row in packed.rows:
            tokens = rows.tokens[row]
            shared = prefix if before is None else max(prefix, int(rows.shared[before + 1 : row + 1].min()))
            new.ends[path[shared - prefix :]] = size
            added = np.arange(size, size + len(tokens) - shared)
            new.tokens[added], new.positions[added] = tokens[shared:], np.arange(shared, len(tokens))
            path = np.concatenate([path[: shared - prefix], added])
            size, before = size + len(added), row
            for number in rows.requests[row]:
                new._ask(number, requests[number], path, prefix, len(tokens))
                new.finished.append(number)
        return new

    @classmethod
    def of_prefix(cls, rows: Rows, requests: list[ScoringRequest], group: Group) -> Self:
        """The tokens that a group's cache needs beyond that of the group around it.

        Args:
          rows: all of them.
          requests: that the rows answer.
          group: the group.
        """
        new = cls(group.length - group.start)
        new.tokens[:] = rows.tokens[group.first][group.start : group.length]
        new.positions[:] = np.arange(group.start, group.length)
        path = np.arange(group.length - group.start)
        for row in range(group.first, group.last):
            for number in rows.requests[row]:
                if rows.lengths[row] - requests[number].scored < group.length:
                    new._ask(number, requests[number], path, group.start, group.length)
                if rows.lengths[row] == group.length:
                    new.finished.append(number)
        return new

    def _ask(self, number: int, request: ScoringRequest, path: np.ndarray, first: int, last: int) -> None:
        """Ask for a request's scores at positions from `first` to before `last`, which are at `path` in the sequence."""
        begin = max(first, len(request.tokens) - 1 - request.scored)
        for position in range(begin, last):
            place, target = int(path[position - first]), int(request.tokens[position + 1])
            index = self._number.setdefault(place, len(self.places))
            if index == len(self.places):
                self.places.append(place)
                self.targets.append([])
            targets = self.targets[index]
            if target not in targets:
                targets.append(target)
            self.asked.append((number, index, targets.index(target)))
