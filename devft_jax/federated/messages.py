"""Messages between the server and a client, and their size: what is counted is what travels.

A message is a pytree. Its bytes are the sizes of its leaves in the dtype in which they travel. Clients of one cohort are
trained together under `vmap`, so that their messages have one shape; where ranks differ between clients or rounds, smaller
factors are padded with zeros that do not travel. Such a message says so by being `Ranked`. A part that not every round has
is `Due` in the others. What its receiver knows of the sender beforehand, and needs to make use of the message, is `Unsent`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from devft_jax.models.adapter import LoraFactors
from devft_jax.typing import PyTree


class Ranked(struct.PyTreeNode):
    """Low-rank factors padded to a common rank, of which `rank` directions travel; the others are zero.

    Attributes:
      lora: factors of rank `most` [L, in, most], [L, most, out].
      rank: i32[], at most `most`; it travels too.
      most: the rank that the factors are padded to.
    """

    lora: dict[str, LoraFactors]
    rank: jax.Array
    most: int = struct.field(pytree_node=False)


class Due(struct.PyTreeNode):
    """A part of a message that travels in some rounds alone, of which both sides know which; zero in the others.

    Attributes:
      value: what travels.
      due: bool[], whether it does; this does not travel.
    """

    value: PyTree
    due: jax.Array


class Unsent(struct.PyTreeNode):
    """A part of a message's pytree that does not travel: what the receiver knows of the sender, such as its group.

    Attributes:
      value: what the receiver knows already.
    """

    value: PyTree


def travelling_parts(message: PyTree) -> list[Any]:
    """Leaves and `Ranked` and `Due` parts of a message, without what is `Unsent`.

    Args:
      message: a pytree.
    """
    parts = jax.tree.leaves(message, is_leaf=lambda node: isinstance(node, Ranked | Due | Unsent))
    return [part for part in parts if not isinstance(part, Unsent)]


def _size(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def message_bytes(message: PyTree, ranks: Sequence[int] | None = None) -> int:
    """Bytes of one message, of arrays or their shapes.

    Args:
      message: what travels.
      ranks: of its `Ranked` and `Due` parts in their order, as `ranks_of` gives them; without them
        these count in full, which is the most that they can be.
    """
    chosen = None if ranks is None else iter(ranks)
    total = 0
    for part in travelling_parts(message):
        if isinstance(part, Ranked):
            full = sum(map(_size, jax.tree.leaves(part.lora)))
            total += full * (part.most if chosen is None else int(next(chosen))) // part.most + _size(part.rank)
        elif isinstance(part, Due):
            total += message_bytes(part.value) * (1 if chosen is None else int(next(chosen)))
        else:
            total += _size(part)
    return total


def ranks_of(message: PyTree) -> tuple[jax.Array, ...]:
    """How much of a message's parts travels, in their order; empty for a message whose shape says all.

    The rank i32[] of a `Ranked` part, bool[] for one that is `Due` or not.

    Args:
      message: a pytree.
    """
    sized = [part for part in travelling_parts(message) if isinstance(part, Ranked | Due)]
    return tuple(part.rank if isinstance(part, Ranked) else part.due for part in sized)


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
