"""Several processes that work on one run together, through `jax.distributed`.

Every process runs the same program on its own devices, and no compiled program of a run's clients contains a collective
operation between processes. What they exchange stands here; all processes call it in the same order, from their main
threads:

    meet, of_all         wait for all; a small value of every process, through the coordination service of process 0
    gathered             arrays of every process                                        [P, ...]
    sum_of_words         the sum of integers over the processes, exact in any order
    everywhere           arrays that all processes hold alike, as arrays of all processes (for checkpoints)

Arrays are exchanged after all have met, because libraries of collectives wait only for a short time for a late process.

One process exchanges nothing: `Processes()` needs no `jax.distributed` and returns its arguments.
"""

import itertools
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from devft_jax.errors import InputError
from devft_jax.typing import PyTree

LONGEST_WAIT = 10 * 24 * 3600 * 1000
"""Milliseconds that a process waits for the others; one that has ended is noticed otherwise
(`devft_jax.runtime.watching`)."""

_turns = itertools.count()


def several() -> bool:
    """Whether this process is one of several of `jax.distributed`; if it is not, no back end is started."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def refuse_several(what: str) -> None:
    """Refuse what only one process can do.

    Args:
      what: what is refused, in words that begin a sentence.

    Raises:
      InputError: this process is one of several.
    """
    if several():
        raise InputError(
            f"{what} works in one process only, and jax.distributed has joined {jax.process_count()}; start it in a process "
            "of its own."
        )


def coordination() -> Any:
    """The client of the coordination service; JAX has no public name for it."""
    return distributed.global_state.client


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
      index: number of this process, from 0.
      count: P, the number of processes.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> "Processes":
        """Those that `jax.distributed` has joined; this one alone if it was not initialised."""
        return cls(jax.process_index(), jax.process_count()) if several() else cls()

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this is process 0, which writes the run's files."""
        return self.index == 0

    def name(self, index: int | None = None) -> str:
        """A process in words, such as `process 1 of 2` (numbered from 0).

        Args:
          index: its number; None for this one.
        """
        return f"process {self.index if index is None else index} of {self.count}"

    def of_all(self, value: Any) -> list[Any]:
        """A value of every process, in their order; waits for all of them.

        Args:
          value: of this process; JSON-ready and small.
        """
        if not self.several:
            return [value]
        client, turn = coordination(), next(_turns)
        folder = f"devft/turn/{turn}/"
        client.key_value_set(f"{folder}{self.index}", json.dumps(value))
        client.wait_at_barrier(f"devft-{turn}", LONGEST_WAIT)
        found = dict(client.key_value_dir_get(folder))
        if turn:
            # All have read it, because all have come to this turn.
            client.key_value_delete(f"devft/turn/{turn - 1}/{self.index}")
        return [json.loads(found[f"{folder}{index}"]) for index in range(self.count)]

    def meet(self) -> None:
        """Wait until all processes have come this far."""
        self.of_all(None)

    def from_first(self, value: Any) -> Any:
        """The value of process 0.

        Args:
          value: of this process; JSON-ready and small. Only that of process 0 is used.
        """
        return self.of_all(value if self.first else None)[0]

    def differing(self, values: dict[str, Any]) -> tuple[str, int, Any, Any] | None:
        """Compare values that should be equal in all processes.

        Args:
          values: of this process by name; JSON-ready and small.

        Returns:
          The first name whose values differ, the number of a process whose value is not that of process 0, and these two
            values, that of process 0 last; None if all are equal.
        """
        first, *others = self.of_all(values)
        for index, other in enumerate(others, 1):
            for name in {**first, **other}:
                if other.get(name) != first.get(name):
                    return name, index, other.get(name), first.get(name)
        return None

    def gathered(self, tree: PyTree) -> PyTree:
        """Arrays of every process.

        Args:
          tree: numpy arrays, of equal shapes in all processes.

        Returns:
          The tree with a leading axis P.
        """
        if not self.several:
            return jax.tree.map(lambda leaf: leaf[None], tree)
        leaves, structure = jax.tree.flatten(tree)
        parts = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in leaves]
        packed = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
        if not len(packed):
            return jax.tree.map(lambda leaf: np.repeat(leaf[None], self.count, 0), tree)
        words = np.pad(packed, (0, -len(packed) % 4)).view(np.uint32)
        self.meet()
        received = np.asarray(_jit_copy(self.whole)(self._part(words)).addressable_data(0)).view(np.uint8)
        found, start = [], 0
        for leaf, part in zip(leaves, parts, strict=True):
            some = np.ascontiguousarray(received[:, start : start + len(part)])
            found.append(some.view(leaf.dtype).reshape(self.count, *leaf.shape))
            start += len(part)
        return jax.tree.unflatten(structure, found)

    def sum_of_words(self, words: np.ndarray) -> np.ndarray:
        """The sum over the processes, modulo 2**32; the bits of a value that only one process has are kept.

        Args:
          words: u32[...], of the same shape in all processes.
        """
        if not self.several:
            return words
        self.meet()
        return np.asarray(_jit_sum(self.whole)(self._part(words)).addressable_data(0))

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays that all processes hold alike, as arrays of all processes; unchanged with one process.

        Args:
          tree: arrays, each with the same value in all processes.
        """
        if not self.several:
            return tree

        def one(leaf: Any) -> jax.Array:
            held = jax.device_put(leaf, self._mesh.local_devices[0])
            return jax.make_array_from_single_device_arrays(held.shape, self.whole, [held])

        return jax.tree.map(one, tree)

    @cached_property
    def _mesh(self) -> Mesh:
        """One device of every process."""
        firsts = {device.process_index: device for device in reversed(jax.devices())}
        return Mesh(np.array([firsts[index] for index in range(self.count)]), ("process",))

    @property
    def whole(self) -> Sharding:
        """Where an array is that every process holds whole, on its first device."""
        if not self.several:
            return SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(self._mesh, PartitionSpec())

    def _part(self, array: np.ndarray) -> jax.Array:
        """The array [P, ...] of which this process has a part."""
        sharding = NamedSharding(self._mesh, PartitionSpec("process"))
        held = jax.device_put(array[None], self._mesh.local_devices[0])
        return jax.make_array_from_single_device_arrays((self.count, *array.shape), sharding, [held])


ALONE = Processes()
"""This process alone."""


# Cached, so that JAX finds what it compiled before.
@lru_cache
def _jit_copy(whole: Sharding) -> Any:
    return jax.jit(lambda part: part, out_shardings=whole)


@lru_cache
def _jit_sum(whole: Sharding) -> Any:
    return jax.jit(partial(jnp.sum, axis=0, dtype=jnp.uint32), out_shardings=whole)
