"""Shapes of one client's messages, adapter and trained leaves, traced once for every shape of the server's state."""

from dataclasses import dataclass
from typing import Any

import jax

from devft_jax.federated.algorithm import Algorithm
from devft_jax.federated.round.client import participant_shapes, uplink_shapes
from devft_jax.models.adapter import Adapter
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class ClientShapes:
    """Shapes and dtypes.

    Attributes:
      down: of the message to the client.
      up: of its message.
      adapter: of its adapter.
      train: of its trained leaves.
    """

    down: PyTree
    up: PyTree
    adapter: Adapter
    train: PyTree


class ShapesByState:
    """The shapes of a client, stored by those of what it receives and keeps.

    Args:
      algorithm: what is trained and sent.
    """

    def __init__(self, algorithm: Algorithm):
        self._algorithm = algorithm
        self._known: dict[Any, ClientShapes] = {}

    def of(self, broadcast: tuple[PyTree, PyTree], row: PyTree) -> ClientShapes:
        """The shapes for such a state.

        Args:
          broadcast: what the server sends, and what clients know without a message; arrays or shapes.
          row: what one client keeps.
        """
        algorithm, (leaves, structure) = self._algorithm, jax.tree.flatten((broadcast, row))
        key = structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        if key not in self._known:
            participant = participant_shapes(algorithm, broadcast, row)
            train, frozen = jax.eval_shape(algorithm.start, participant)
            self._known[key] = ClientShapes(
                down=participant.down,
                up=uplink_shapes(algorithm, participant),
                adapter=jax.eval_shape(algorithm.adapter, train, frozen),
                train=train,
            )
        return self._known[key]
