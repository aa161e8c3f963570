"""What the clients of a run keep between rounds; rows pass from stage to stage only when they are used.

Every client begins with the row that its algorithm makes from the server's first state and the client's traits. The row is
made when the client first takes part, and a stage's map is applied to a row when it is next used. At the end of a stage only
the rows that were trained in it are mapped back to full depth. For all others the bank stores how many stages they have
passed, and applies the later ones when the row is used: for stage t with map M_t

    full_{t+1} = transfer_row(full_t, submodel_row(full_t, M_t), M_t)

as for a client that took no part in the stage. Rows are stored in two places: `full` has those at full depth, from the
beginning of some stage, and `stage` those trained in the current stage. Rows are mapped on the host's CPU, each by the same
compiled function, so that a row never depends on the other rows mapped with it.

Of several processes, the one that trained a client last has its rows; they are moved before a round in which another one
trains it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np

from devft_jax.developmental import LayerMap
from devft_jax.federated.algorithm import Algorithm, own_traits
from devft_jax.federated.row_exchange import move_rows
from devft_jax.runtime.devices import host_device
from devft_jax.runtime.processes import ALONE, Processes
from devft_jax.storage.rows import MOST_IN_MEMORY, Rows, SavedRows, blocks, save_rows
from devft_jax.typing import PyTree


@dataclass(frozen=True)
class BankView:
    """All clients' rows, of a stage or at full depth.

    Attributes:
      take: indices of clients i64[K] -> rows [K, ...].
      trained: i64[M], indices of the clients that have taken part.
      kinds: returns the indices of the other clients, one i64[K] for each group of equal rows.
    """

    take: Callable[[np.ndarray], PyTree]
    trained: np.ndarray
    kinds: Callable[[], list[np.ndarray]]

    def of_trained(self) -> PyTree:
        """Rows of the clients that have taken part; the first client's row if none has."""
        return self.take(self.trained if len(self.trained) else np.array([0]))


class ClientBank:
    """The rows of all clients of one run.

    Args:
      algorithm: makes and maps the rows.
      origin: returns the server's first state, at full depth.
      traits: properties in which clients differ before training, [N, ...] on the host.
      clients: N.
      mode: how a stage's result returns to full depth.
      in_memory: largest size in bytes of the rows that are held in memory; larger rows are held in a file.
      folder: folder of that file; None for the system's temporary folder.
      processes: the processes that keep the rows together; each stores those of the clients that it trained last.

    Attributes:
      row: shapes of one row of the current stage; between stages at full depth.
      maps: the maps of all stages so far, the current one last.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        origin: Callable[[], PyTree],
        traits: PyTree,
        *,
        clients: int,
        mode: str,
        in_memory: int = MOST_IN_MEMORY,
        folder: Path | None = None,
        processes: Processes = ALONE,
    ):
        self._processes = processes
        # The process that has a client's rows; -1 where no process has any yet.
        self._holder = np.full(clients if processes.several else 0, -1, np.int32)
        self._algorithm, self._traits, self._clients, self._mode = algorithm, traits, clients, mode
        self._in_memory, self._folder = in_memory, folder
        trait = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), traits)
        self._full_row = trait
        if algorithm.init_row is not own_traits:
            self._full_row = jax.eval_shape(lambda trait: algorithm.init_row(origin(), trait), trait)
        # A server may be as large as the model: it is not kept if no row is made from it.
        self._origin = None if self.empty or algorithm.init_row is own_traits else origin
        self._full = self._bank(self._full_row)
        # The number of stages that a client's full row has passed.
        self._since = np.zeros(clients, np.int32)
        self._stage: Rows | None = None
        self._enter: list[Callable[..., PyTree]] = []
        self._leave: list[Callable[..., PyTree]] = []
        self.maps: list[LayerMap] = []
        self.row = self._full_row

    def _bank(self, row: PyTree) -> Rows:
        return Rows(row, self._clients, in_memory=self._in_memory, folder=self._folder)

    @property
    def empty(self) -> bool:
        """Whether clients keep nothing."""
        return not jax.tree.leaves(self._full_row)

    def stage_row(self, layer_map: LayerMap) -> PyTree:
        """Shapes and dtypes of one row in a stage of this map."""
        return jax.eval_shape(lambda row: self._algorithm.submodel_row(row, layer_map), self._full_row)

    def enter(self, layer_map: LayerMap) -> None:
        """Begin a stage of this map."""
        algorithm, mode = self._algorithm, self._mode
        # On the host its values are known while the rows' programs are traced: an identity map then changes nothing.
        layer_map = jax.device_get(layer_map)
        self.row = self.stage_row(layer_map)
        self._stage = self._bank(self.row)
        if self.empty:
            return
        self.maps.append(layer_map)
        self._enter.append(_per_row(lambda row: algorithm.submodel_row(row, layer_map)))
        self._leave.append(_per_row(lambda full, row: algorithm.transfer_row(full, row, layer_map, mode)))

    def leave(self) -> None:
        """End the stage: rows that were trained in it return to full depth."""
        assert self._stage is not None
        for some in blocks(np.flatnonzero(self._stage.stored)):
            self._full.put(some, self._returned(some))
            self._since[some] = len(self.maps)
        self._stage, self.row = None, self._full_row

    def take(self, positions: np.ndarray) -> PyTree:
        """Rows [K, ...] of the clients at `positions` i64[K], in the current stage."""
        if self.empty:
            return self.row
        assert self._stage is not None
        trained = self._stage.stored[positions]
        stored = self._stage.take(positions)
        if trained.all():
            return stored
        return _chosen(trained, stored, self._enter[-1](self._at_start(positions)))

    def put(self, positions: np.ndarray, rows: PyTree) -> None:
        """Store rows [K, ...] of the clients at `positions` i64[K], in the current stage."""
        if not self.empty:
            assert self._stage is not None
            self._stage.put(positions, rows)

    def move(self, positions: np.ndarray, to: np.ndarray) -> None:
        """Bring clients' rows to the processes that will train them; called by all processes, before a round.

        Args:
          positions: i64[K], the clients.
          to: i64[K], the number of a process for each.
        """
        if self.empty:
            return
        assert self._stage is not None
        old = self._holder[positions]
        moving = (old >= 0) & (old != to)
        move_rows(self._processes, [self._full, self._stage], self._since, positions[moving], old[moving], to[moving])
        self._holder[positions] = to

    def _at_start(self, positions: np.ndarray) -> PyTree:
        """Full rows at the beginning of the current stage; between stages, the current full rows."""
        known = self._full.stored[positions]
        rows = self._full.take(positions)
        if not known.all():
            rows = _chosen(known, rows, self._first(positions))
        since = self._since[positions]
        finished = len(self.maps) - (self._stage is not None)
        for stage in range(int(since.min(initial=finished)), finished):
            rows = _chosen(since > stage, rows, self._leave[stage](rows, self._enter[stage](rows)))
        return rows

    @cached_property
    def _make_first(self) -> Callable[..., PyTree]:
        assert self._origin is not None
        return _per_row(self._algorithm.init_row, jax.device_get(self._origin()))

    def _first(self, positions: np.ndarray) -> PyTree:
        """The rows with which clients begin."""
        traits = jax.tree.map(lambda leaf: leaf[positions], self._traits)
        return traits if self._algorithm.init_row is own_traits else self._make_first(traits, count=len(positions))

    def _returned(self, positions: np.ndarray) -> PyTree:
        """Full rows as if the current stage ended now."""
        if self.empty:
            return self._full_row
        if self._stage is None:
            return self._at_start(positions)
        return self._leave[-1](self._at_start(positions), self.take(positions))

    def view(self, *, full: bool) -> BankView:
        """All clients' rows: of the current stage or, if `full`, at full depth as if the stage ended now."""
        trained = self._full.stored if self._stage is None else self._full.stored | self._stage.stored
        others = np.flatnonzero(~trained)
        return BankView(self._returned if full else self.take, np.flatnonzero(trained), partial(self._kinds, others))

    def _kinds(self, positions: np.ndarray) -> list[np.ndarray]:
        """Clients that have not taken part, in groups of equal traits, whose rows are equal."""
        leaves = [np.ascontiguousarray(leaf[positions]) for leaf in jax.tree.leaves(self._traits)]
        if not leaves or not len(positions):
            return [positions] if len(positions) else []
        as_bytes = np.concatenate([leaf.reshape(len(positions), -1).view(np.uint8) for leaf in leaves], axis=1)
        _, kind = np.unique(as_bytes, axis=0, return_inverse=True)
        return [positions[kind.ravel() == which] for which in range(kind.max() + 1)]

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the rows of clients that have taken part, and all clients' traits, to a file; raises OSError if that
        fails."""
        assert self._stage is not None
        save_rows(
            path, {"traits": self._trait_rows(), "since": self._since_rows(), "full": self._full, "stage": self._stage}
        )

    def restore(self, paths: Sequence[Path], maps: Sequence[LayerMap]) -> None:
        """Continue from files of `save`; of several processes, each reads the rows of every P-th client.

        Args:
          paths: the files that as many processes have saved.
          maps: the maps of all stages so far; the files were saved in the last one.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is damaged.
          KeyError: it belongs to another algorithm.
        """
        for layer_map in maps:
            self.enter(layer_map)
        assert self._stage is not None
        for path in paths:
            saved = SavedRows(path)
            traits, since = self._trait_rows(), self._since_rows()
            for name, rows in (("traits", traits), ("since", since)):
                saved.restore(name, rows)
            self._traits = traits.take(np.arange(self._clients))
            # Only clients with rows have passed stages.
            held = np.union1d(saved.positions("full"), saved.positions("stage"))
            self._since[held] = since.take(held)[0]
            if self._processes.several:
                self._holder[held] = held % self._processes.count
            for name, rows in (("full", self._full), ("stage", self._stage)):
                saved.restore(name, rows, self._is_own if self._processes.several else None)
            saved.close()

    def _is_own(self, positions: np.ndarray) -> np.ndarray:
        return self._holder[positions] == self._processes.index

    def _trait_rows(self) -> Rows:
        return _rows_of(self._traits, self._clients)

    def _since_rows(self) -> Rows:
        return _rows_of([self._since], self._clients)


def _rows_of(tree: PyTree, clients: int) -> Rows:
    """A tree [N, ...] as rows of all clients."""
    rows = Rows(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree), clients)
    rows.put(np.arange(clients), tree)
    return rows


def _per_row(function: Callable[..., PyTree], *shared: PyTree) -> Callable[..., PyTree]:
    """Apply `function(*shared, *trees of one row)` to trees of rows [K, ...] on the host.

    Rows pass one after the other through a program that is compiled for a power of two of rows, at most `BLOCK`. The
    returned function takes K as `count`, for trees without leaves.
    """

    @jax.jit
    def mapped(shared: PyTree, rows: PyTree) -> PyTree:
        return jax.lax.map(lambda row: function(*shared, *row[1:]), rows)

    def of_block(trees: PyTree, some: np.ndarray) -> PyTree:
        padded = np.pad(some, (0, (1 << (len(some) - 1).bit_length()) - len(some)), "edge")
        rows = jax.tree.map(lambda leaf: leaf[padded], trees)
        # Rows are in host memory, because an accelerator may be too small for them.
        with jax.default_device(host_device()):
            new = jax.device_get(mapped(shared, (padded, *rows)))
        return jax.tree.map(lambda leaf: leaf[: len(some)], new)

    def call(*trees: PyTree, count: int | None = None) -> PyTree:
        size = count if count is not None else len(jax.tree.leaves(trees)[0])
        parts = [of_block(trees, some) for some in blocks(np.arange(size))]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return call


def _chosen(which: np.ndarray, rows: PyTree, others: PyTree) -> PyTree:
    """Rows [K, ...] of the first tree where `which` bool[K] is True, else of the second."""

    def one(row: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.where(which.reshape(-1, *[1] * (row.ndim - 1)), row, other)

    return jax.tree.map(one, rows, others)
