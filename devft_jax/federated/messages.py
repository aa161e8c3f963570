"""Messages between the server and a client, and their size: exactly what is sent is counted.

A message is a pytree. Its bytes are the sizes of its leaves in their own dtypes. Clients of one cohort train together under
`vmap`, so their messages have one shape; if ranks differ between clients or rounds, smaller factors are padded with zeros
that are not sent. Such a message is marked as `Ranked`. A part that is not sent in every round is marked as `Due`. What the
receiver already knows, and needs to use the message, is marked as `Unsent`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from devft_jax.models.adapter import LoraFactors
from devft_jax.typing import PyTree


class Ranked(struct.PyTreeNode):
    """Low-rank factors padded to a common rank, of which `rank` directions are sent; the others are zero.

    Attributes:
      lora: factors of rank `most` [L, in, most], [L, most, out].
      rank: i32[], at most `most`; it is sent too.
      most: the rank to which the factors are padded.
    """

    lora: dict[str, LoraFactors]
    rank: jax.Array
    most: int = struct.field(pytree_node=False)


class Due(struct.PyTreeNode):
    """A part of a message that is sent only in some rounds, known to both sides.

    Attributes:
      value: the part; in the other rounds zero, or what the receiver already has.
      due: bool[], whether it is sent; this flag itself is not sent.
      every: if it is sent in exactly one of so many rounds of a stage, their number; 1 if that is not known in advance.
      first: the first of these rounds, from 0.
    """

    value: PyTree
    due: jax.Array
    every: int = struct.field(pytree_node=False, default=1)
    first: int = struct.field(pytree_node=False, default=0)


class Unsent(struct.PyTreeNode):
    """A part of a message's pytree that is not sent: what the receiver already knows of the sender, such as its group.

    Attributes:
      value: what the receiver already knows.
    """

    value: PyTree


def sent_parts(message: PyTree) -> list[Any]:
    """Leaves and `Ranked` and `Due` parts of a message, without `Unsent` parts.

    Args:
      message: a pytree.
    """
    parts = jax.tree.leaves(message, is_leaf=lambda node: isinstance(node, Ranked | Due | Unsent))
    return [part for part in parts if not isinstance(part, Unsent)]


def _size(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def message_bytes(message: PyTree, ranks: Sequence[int] | None = None) -> int:
    """Bytes of one message, of arrays or shapes.

    Args:
      message: the message.
      ranks: ranks of its `Ranked` and `Due` parts in their order, as `ranks_of` returns them; without them
        these parts count in full, an upper bound, or as the mean over the rounds of a `Due` part that knows it (`every`).
    """
    chosen = None if ranks is None else iter(ranks)
    total = 0
    for part in sent_parts(message):
        if isinstance(part, Ranked):
            full = sum(map(_size, jax.tree.leaves(part.lora)))
            total += full * (part.most if chosen is None else int(next(chosen))) // part.most + _size(part.rank)
        elif isinstance(part, Due):
            size = message_bytes(part.value)
            total += size // part.every if chosen is None else size * int(next(chosen))
        else:
            total += _size(part)
    return total


def bytes_of_rounds(message: PyTree, rounds: int) -> int:
    """Bytes of one message in each of a stage's rounds, counted like `message_bytes` without ranks.

    Args:
      message: the message.
      rounds: number of rounds of the stage.
    """
    total = 0
    for part in sent_parts(message):
        if isinstance(part, Due):
            total += message_bytes(part.value) * len(range(part.first, rounds, part.every))
        else:
            total += message_bytes(part) * rounds
    return total


def ranks_of(message: PyTree) -> tuple[jax.Array, ...]:
    """How much of a message's parts is sent, in their order; empty for a message whose shape determines its size.

    For a `Ranked` part its rank i32[], for a `Due` part bool[].

    Args:
      message: a pytree.
    """
    sized = [part for part in sent_parts(message) if isinstance(part, Ranked | Due)]
    return tuple(part.rank if isinstance(part, Ranked) else part.due for part in sized)


def is_upper_bound(message: PyTree) -> bool:
    """Whether the size of a message without its ranks is an upper bound only, not the mean over rounds.

    Args:
      message: a pytree.
    """
    sized = [part for part in sent_parts(message) if isinstance(part, Ranked | Due)]
    return any(isinstance(part, Ranked) or part.every == 1 for part in sized)


def messages_bytes(message: PyTree, ranks: Sequence[np.ndarray], count: int) -> int:
    """Bytes of several messages of one shape.

    Args:
      message: one of them, or its shapes.
      ranks: i32[count] for each of their `Ranked` and `Due` parts.
      count: how many.
    """
    if not ranks:
        return count * message_bytes(message)
    return sum(message_bytes(message, [int(part[index]) for part in ranks]) for index in range(count))
