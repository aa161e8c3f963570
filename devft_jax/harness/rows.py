"""Log-likelihood requests as token ids, and the distinct inputs that answer all of them.

A request asks for log p(continuation | context). The model reads both without the last token, so requests that differ in
that token alone, such as the letters of a multiple-choice question, share one input, here called a row. Rows are sorted like
words in a dictionary: neighbours share the longest beginnings, which is all that `devft_jax.harness.packing` needs to know
of the trie that they form.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from devft_jax.errors import InputError

Tokens = Sequence[int] | np.ndarray
"""Token ids."""


@dataclass(frozen=True)
class ScoringRequest:
    """The log-likelihood of a continuation behind its context.

    Attributes:
      tokens: i32[n], context and continuation, cut on the left to one token more than the model reads.
      scored: how many of the last tokens are the continuation.
    """

    tokens: np.ndarray
    scored: int

    @classmethod
    def of(cls, context: Tokens, continuation: Tokens, max_length: int) -> Self:
        """The request for a context and its continuation, cut on the left where the model cannot read it all.

        Args:
          context: token ids; one or more.
          continuation: token ids.
          max_length: most tokens that the model reads.

        Raises:
          InputError: the continuation alone is longer than the model reads.
        """
        if len(continuation) > max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens is to be scored and the model reads {max_length}; leave the "
                "task out, or use a model of more positions."
            )
        whole = np.concatenate([np.asarray(context, np.int32), np.asarray(continuation, np.int32)])
        return cls(whole[-(max_length + 1) :], len(continuation))


@dataclass(frozen=True)
class Rows:
    """The distinct inputs of some requests, in ascending order.

    Attributes:
      tokens: i32[n] of each row.
      requests: of each row, the numbers of the requests that it answers.
      lengths: i64[R], tokens of each row.
      shared: i64[R], how many first tokens a row shares with the row before; 0 for the first.
    """

    tokens: list[np.ndarray]
    requests: list[list[int]]
    lengths: np.ndarray
    shared: np.ndarray

    @classmethod
    def of(cls, requests: Iterable[ScoringRequest]) -> Self:
        """The rows that answer requests; those with an empty continuation need none.

        Args:
          requests: numbered from 0 in this order.
        """
        # The bytes of big-endian numbers are in the order of the numbers, a beginning before what it begins.
        found: dict[bytes, list[int]] = {}
        for number, request in enumerate(requests):
            if request.scored:
                found.setdefault(request.tokens[:-1].astype(">u4").tobytes(), []).append(number)
        names = sorted(found)
        tokens = [np.frombuffer(name, ">u4").astype(np.int32) for name in names]
        shared = [0, *(common_start(a, b) for a, b in pairwise(tokens))]
        return cls(
            tokens=tokens,
            requests=[found[name] for name in names],
            lengths=np.array([len(row) for row in tokens], np.int64),
            shared=np.array(shared[: len(tokens)], np.int64),
        )

    def shared_by(self, first: int, last: int) -> int:
        """How many first tokens all rows from `first` to before `last` share, at least two rows.

        Args:
          first: the first row.
          last: behind the last row.
        """
        return int(self.shared[first + 1 : last].min())


def common_start(a: np.ndarray, b: np.ndarray) -> int:
    """How many first tokens two rows share.

    Args:
      a: i32[n].
      b: i32[m].
    """
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
