"""Which texts are generated together, and which beginning of their prompts is read once for all of them.

Prompts of a benchmark often begin with the same worked examples or system prompt. Prompts that do form a group, whose common
beginning goes into a cache of keys and values behind which its batches are generated. Groups are chosen from all requests,
also from those that are finished, so that an evaluation that is resumed reads the same beginnings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np

from devft_jax.harness.rows import Rows, ScoringRequest, common_start
from devft_jax.harness.texts import TextRequest
from devft_jax.models.generation.options import GenerationOptions

SHORTEST_BEGINNING = 64
"""Tokens that prompts must share, for a cache of them to be worth a pass of its own; groups are told apart by as many."""


@dataclass(frozen=True)
class Batch:
    """Requests that are answered together.

    Attributes:
      numbers: of the requests, which have equal options, the longest prompt first.
      shared: i32[n], with which all of their prompts begin and which is read once; empty where each is read whole.
    """

    numbers: list[int]
    shared: np.ndarray


@dataclass(frozen=True)
class _Group:
    """Requests and the tokens with which all of their prompts begin."""

    numbers: list[int]
    shared: np.ndarray


def batches(requests: Sequence[TextRequest], missing: Sequence[int]) -> Iterator[Batch]:
    """Batches of the requests that are to be answered.

    Args:
      requests: all of them.
      missing: numbers of those that are to be answered.

    Yields:
      Batches in which every missing request is once.
    """
    alike: dict[GenerationOptions, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(request.options, []).append(number)
    for options, numbers in alike.items():
        yield from _batches_of(requests, numbers, set(missing), options.generation_batch)


def _batches_of(requests: Sequence[TextRequest], numbers: list[int], missing: set[int], size: int) -> Iterator[Batch]:
    """Batches of requests with equal options: those of each group, then those of what groups leave over."""

    def longest_first(some: list[int]) -> list[int]:
        return sorted(some, key=lambda number: (-len(requests[number].tokens), number))

    nothing = np.zeros(0, np.int32)
    # What is left for the end, with the beginning that its group shares.
    alone = {number: nothing for number in numbers if number in missing}
    fewest = _half(min(size, len(alone)))
    for group in _groups(requests, numbers, _half(min(size, len(numbers)))):
        left = longest_first([number for number in group.numbers if number in missing])
        for first in range(0, len(left), size):
            batch = left[first : first + size]
            # A smaller batch takes as many steps as a full one, which may cost more than the beginning.
            if len(batch) < fewest:
                alone |= dict.fromkeys(batch, group.shared)
                continue
            for number in batch:
                del alone[number]
            yield Batch(batch, group.shared)
    rest = longest_first(list(alone))
    for first in range(0, len(rest), size):
        batch = rest[first : first + size]
        shared = reduce(_common, [alone[number] for number in batch])
        yield Batch(batch, shared if len(shared) >= SHORTEST_BEGINNING else nothing)


def _half(size: int) -> int:
    """The fewest requests of a group's batch: half of a full one, and two."""
    return max(2, -(-size // 2))


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[: common_start(a, b)]


def _groups(requests: Sequence[TextRequest], numbers: list[int], fewest: int) -> list[_Group]:
    """Groups of at least so many requests, disjoint, so that the fewest tokens are read; not every request is in one."""
    # Rows leave out the last token, which no cache may hold, because each prompt needs one to read behind it.
    rows = Rows.of(ScoringRequest(requests[number].tokens, 1) for number in numbers)
    found = _chosen(rows, 0, len(rows.tokens), fewest)[1]
    return [
        _Group([numbers[index] for row in range(first, last) for index in rows.requests[row]], rows.tokens[first][:length])
        for first, last, length in found
    ]


def _chosen(rows: Rows, first: int, last: int, fewest: int) -> tuple[int, list[tuple[int, int, int]]]:
    """How many tokens groups of neighbouring rows save, and the groups: first row, last row + 1, shared tokens."""
    count = sum(map(len, rows.requests[first:last]))
    if count < fewest:
        return 0, []
    length = int(rows.lengths[first]) if last - first == 1 else rows.shared_by(first, last)
    level = length // SHORTEST_BEGINNING
    own = length * (count - 1) if level else 0
    if last - first == 1:
        return own, [(first, last, length)] if level else []
    # Coarse steps keep the recursion shallow; what they pass over is less than one step of each prompt.
    cuts = first + 1 + np.flatnonzero(rows.shared[first + 1 : last] // SHORTEST_BEGINNING == level)
    inner = [_chosen(rows, start, end, fewest) for start, end in pairwise([first, *cuts.tolist(), last])]
    saved = sum(each for each, _ in inner)
    if saved > own:
        return saved, [group for _, groups in inner for group in groups]
    return own, [(first, last, length)] if level else []
