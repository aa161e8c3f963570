"""The client bank: what every client keeps between rounds, a pytree whose leaves lead with the number of clients N.

It lies on the host; an algorithm whose clients keep nothing has an empty one.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

PyTree = Any


def map_rows(function: Callable[..., PyTree], *banks: PyTree) -> PyTree:
    """`function` of every client's rows, one client at a time; a bank that is empty stays so."""
    leaves = jax.tree.leaves(banks)
    if not leaves:
        return banks[0]
    rows = [function(*jax.tree.map(lambda leaf, where=client: leaf[where], banks)) for client in range(len(leaves[0]))]
    return jax.tree.map(lambda *parts: np.stack(parts), *rows)


def mapped_shapes(function: Callable[..., PyTree], bank: PyTree, *others: PyTree) -> PyTree:
    """Shapes and dtypes of `function(row, *others)` for every row of a bank, all known by shape and dtype alone."""

    def sized(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    clients = {leaf.shape[0] for leaf in jax.tree.leaves(bank)}
    row = jax.tree.map(lambda leaf: sized(leaf, leaf.shape[1:]), bank)
    return jax.tree.map(lambda leaf: sized(leaf, (*clients, *leaf.shape)), jax.eval_shape(function, row, *others))


def scatter_rows(bank: PyTree, positions: np.ndarray, rows: PyTree) -> PyTree:
    """The bank with new rows [K, ...] for the clients at `positions` [K]; everyone else's stay bit for bit."""

    def one(leaf: np.ndarray, new: np.ndarray) -> np.ndarray:
        updated = np.array(leaf)
        updated[positions] = new
        return updated

    return jax.tree.map(one, bank, rows)
